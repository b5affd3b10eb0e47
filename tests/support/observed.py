"""Observations and items made by hand, for tests that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinlens.paths.observations import Batch, Observations, PathFacts, apply_function
from twinlens.records import ModelId, PathError
from twinlens.text import Text
from twinlens.window.item import Item
from twinlens.window.window import Dispatch, Reason

DISPATCH = Dispatch(Reason.DRAINED, 0.0, 0.0, 1.0, 0.0, 0.0)
LABELS = ("negative", "neutral", "positive")
MODEL = ModelId("demo", "1")
BROKEN = PathError(type="IndexError", message="index out of range in self")


def item(
    offset: int = 0, text: str = "", partition: int = 0, *, timestamp_ms: int = 0, size_bytes: int | None = None
) -> Item:
    """A tweet as intake hands it on, not yet tokenized."""
    return Item(
        topic="tweets",
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        key=None,
        headers=[],
        size_bytes=len(text.encode()) if size_bytes is None else size_bytes,
        id=str(offset),
        text=Text(text),
    )


def texts_of(texts: Sequence[str]) -> list[Text]:
    """As intake hands them on, not yet tokenized."""
    return [Text(text) for text in texts]


def items_of(texts: Sequence[str]) -> list[Item]:
    """One item per text, all of one partition."""
    return [item(offset, text) for offset, text in enumerate(texts)]


def observed(
    logits: Sequence[Sequence[float]],
    *,
    labels: Sequence[str] = LABELS,
    failed: Sequence[int] = (),
    batches: Sequence[Batch] = (Batch(1, 8, 0.001),),
    **changes: Any,
) -> Observations:
    """Observations with these logits, all in the first of `batches`; `failed` rows raised. `changes`: PathFacts."""
    facts: dict[str, Any] = {
        "model": MODEL,
        "function": "softmax",
        "dtype": "float32",
        "device": "cpu",
        "training": False,
        **changes,
    }
    seen = Observations.empty(PathFacts(labels=list(labels), **facts), len(logits))
    seen.batches = list(batches)
    for row, values in enumerate(logits):
        seen.input_ids[row] = [2, 10 + row, 3]
        seen.mask_counts[row] = 3
        if row in failed:
            seen.errors[row] = BROKEN
            continue
        seen.logits[row] = values
        seen.scores[row] = apply_function(seen.facts.function, seen.logits[row : row + 1])[0]
        seen.top[row] = int(np.argmax(seen.scores[row]))
        seen.batch_of[row] = 0
    return seen
