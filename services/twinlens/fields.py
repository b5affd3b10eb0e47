"""Fields of a JSON object by name or by dotted path."""

from __future__ import annotations

from typing import Any


def field_at(body: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None if there is none. A field whose own name is the whole path wins.

    >>> field_at({"user": {"id": 7}}, "user.id")
    7
    """
    if path in body:
        return body[path]
    node: Any = body
    for part in path.split("."):
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return node
