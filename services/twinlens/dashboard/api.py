"""The HTTP API of a running application. Served by the Monitor deployment through Ray Serve."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Response

from twinlens import __version__

JSON = "application/json"

api = FastAPI(title="twinlens", version=__version__, docs_url="/api/docs", openapi_url="/api/openapi.json")


def json_response(value: Any) -> Response:
    """A msgspec value as a JSON response."""
    return Response(msgspec.json.encode(value), media_type=JSON)
