"""From a compared window to its comparison records: counts and sketches that can be merged. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from twinlens.paths.observations import Observations
from twinlens.records import Cause, ComparisonRecord, Histogram, Tally
from twinlens.replica.report import PathWork
from twinlens.sketch import histogram
from twinlens.verdict.compare import Comparison
from twinlens.window.item import Item, Partition
from twinlens.window.window import Window

K = TypeVar("K")

LENGTH_BUCKETS = (8, 16, 32, 64, 128, 256, 512)  #: upper bounds of `by_length`, in tokens
NO_LABEL = "(error)"  #: stands for the label of a path that raised


@dataclass(frozen=True)
class ComparedWindow:
    """What compute hands over to publish. Row i of the observations is the i-th tweet of the window."""

    window: Window
    raw: Observations
    predict: Observations
    comparison: Comparison
    causes: dict[int, Cause]  #: by row, of every diverging tweet
    compute_s: float
    paths: dict[str, PathWork]  #: by name, `raw` and `predict`


def comparison_records(
    done: ComparedWindow, *, application: str, replica: str, window: str, now_ms: int
) -> list[ComparisonRecord]:
    """One record per source partition. The first one also carries what belongs to the whole window."""
    items: dict[Partition, list[Item]] = {}
    rows: dict[Partition, list[int]] = {}
    row = 0
    for item in done.window.items:
        items.setdefault(item.source, []).append(item)
        rows.setdefault(item.source, [])
        if item.refusal is None:
            rows[item.source].append(row)
            row += 1
    whole = _whole_window(done)
    records = []
    for source, held in items.items():
        records.append(
            ComparisonRecord(
                application=application,
                replica=replica,
                window=window,
                source_topic=source[0],
                source_partition=source[1],
                first_offset=held[0].offset,
                last_offset=held[-1].offset,
                published_at_ms=now_ms,
                raw_model=done.raw.facts.model,
                predict_model=done.predict.facts.model,
                refused=_count(item.refusal.reason for item in held if item.refusal is not None),
                causes=_count(done.causes[row] for row in rows[source] if row in done.causes),
                latency_s=histogram([max(0, now_ms - item.timestamp_ms) / 1000 for item in held]),
                score_delta=_score_deltas(done.comparison, rows[source]),
                tolerance=done.comparison.tolerance,
                **_tallies(done, rows[source]),
                **whole,
            )
        )
        whole = {}
    return records


def length_bucket(tokens: int) -> str:
    """Upper bound of the bucket that `tokens` falls into, as text. The last bucket has none."""
    return next((f"<={bound}" for bound in LENGTH_BUCKETS if tokens <= bound), f">{LENGTH_BUCKETS[-1]}")


def _tallies(done: ComparedWindow, rows: list[int]) -> dict[str, Any]:
    tally = Tally()
    derived = 0
    by_length: dict[str, Tally] = {}
    labels: dict[str, dict[str, int]] = {}
    for row in rows:
        verdict = done.comparison.verdicts[row]
        if verdict is None:
            derived += 1
            continue
        tally.count(verdict)
        by_length.setdefault(length_bucket(len(done.raw.input_ids[row])), Tally()).count(verdict)
        pairs = labels.setdefault(done.raw.label(row) or NO_LABEL, {})
        other = done.predict.label(row) or NO_LABEL
        pairs[other] = pairs.get(other, 0) + 1
    return {"tally": tally, "derived": derived, "by_length": by_length, "labels": labels}


def _whole_window(done: ComparedWindow) -> dict[str, Any]:
    return {
        "batch_sizes": _count(batch.size for batch in done.raw.batches),
        "tokens": sum(map(len, done.raw.input_ids)),
        "padded_tokens": sum(batch.size * batch.padded_tokens for batch in done.raw.batches),
        "compute_s": done.compute_s,
    }


def _score_deltas(comparison: Comparison, rows: list[int]) -> Histogram:
    deltas = comparison.score_delta[rows]
    return histogram(deltas[np.isfinite(deltas)])


def _count(keys: Iterable[K]) -> dict[K, int]:
    counts: dict[K, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return counts
