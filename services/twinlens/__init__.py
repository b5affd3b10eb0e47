"""twinlens: one model seen through two lenses, the call and the pipeline, live on a Kafka stream.

The names in `__all__` are public: the changelog says when one of them changes. Everything else may change with any
version. To read the topics, use the decoders and the record types. To run twinlens from Python, use `Settings` and
`build`.

>>> import twinlens
>>> source, model = b'{"topic":"tweets","partition":0,"offset":42}', b'{"name":"demo","revision":"1"}'
>>> value = b'{"id":"7","source":%s,"application":"twinlens","model":%s,"label":"positive"}' % (source, model)
>>> twinlens.decode_prediction(value).label
'positive'

Names are loaded when they are first used, so importing this module costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinlens.app import build
    from twinlens.errors import AskUser, RefusalReason
    from twinlens.records import (
        BatchProvenance,
        Cause,
        Certainty,
        ComparisonRecord,
        DivergenceRecord,
        LabelScore,
        LogitsRecord,
        ModelId,
        PathError,
        PathView,
        PredictionMode,
        PredictionRecord,
        SourceCoordinates,
        Tally,
        Verdict,
        decode_comparison,
        decode_divergence,
        decode_logits,
        decode_prediction,
    )
    from twinlens.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AskUser",
    "BatchProvenance",
    "Cause",
    "Certainty",
    "ComparisonRecord",
    "DivergenceRecord",
    "LabelScore",
    "LogitsRecord",
    "ModelId",
    "PathError",
    "PathView",
    "PredictionMode",
    "PredictionRecord",
    "RefusalReason",
    "Settings",
    "SourceCoordinates",
    "Tally",
    "Verdict",
    "build",
    "decode_comparison",
    "decode_divergence",
    "decode_logits",
    "decode_prediction",
]

_HOMES = {"build": "app", "Settings": "settings", "AskUser": "errors", "RefusalReason": "errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"twinlens.{_HOMES.get(name, 'records')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
