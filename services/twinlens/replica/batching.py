"""How a window is split into micro-batches, and how large a window may be. Pure.

Padding makes a forward pass as expensive as its longest text, so texts of similar length go together. Lengths are
sorted, and the sorted list is cut at the points of least predicted cost (`cost.CostModel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from twinlens.replica.cost import CostModel, Vector
from twinlens.window.window import Reason

MAX_FIXED_SHARE = 0.25  #: a window is worth drawing if the fixed price of its passes is at most this share of it


@dataclass(frozen=True)
class Limits:
    """Bounds of one micro-batch: texts, and texts times padded tokens."""

    max_items: int
    max_tokens: int


def split(lengths: Sequence[int], cost: CostModel, limits: Limits) -> list[list[int]]:
    """Micro-batches of least predicted cost: lists of indices into `lengths`, each index once.

    Dynamic programming over the cut points of the sorted lengths. Lengths ascend, so a batch that ends at text j is
    padded to lengths[j], and best[j] = min over sizes s of best[j - s] + cost(s, lengths[j]). A text longer than
    `max_tokens` gets a batch of its own. Time O(len(lengths) * max_items), vectorised over sizes.
    """
    if not lengths:
        return []
    order = np.argsort(np.asarray(lengths), kind="stable")
    row = np.maximum(np.asarray(lengths, dtype=np.int64)[order], 1)
    count = len(row)
    best = np.empty(count + 1)
    best[0] = 0.0
    cut = np.zeros(count + 1, dtype=np.int64)
    sizes = np.arange(1, limits.max_items + 1)
    c0, c1, c2 = cost.coefficients
    per_text = c1 * row + c2 * row.astype(np.float64) ** 2
    allowed = np.clip(limits.max_tokens // row, 1, limits.max_items)
    for end in range(1, count + 1):
        most = min(end, int(allowed[end - 1]))
        totals = best[end - most : end][::-1] + sizes[:most] * per_text[end - 1]
        size = int(totals.argmin()) + 1
        best[end] = totals[size - 1] + c0
        cut[end] = size
    batches: list[list[int]] = []
    end = count
    while end:
        batches.append(order[end - cut[end] : end].tolist())
        end -= int(cut[end])
    return batches[::-1]


def predicted_cost(lengths: Sequence[int], batches: Sequence[Sequence[int]], cost: CostModel) -> float:
    """Seconds of all `batches` under the model."""
    return float(sum(float(cost.predict(len(batch), max(1, *(lengths[i] for i in batch)))) for batch in batches))


@dataclass(frozen=True)
class Forward:
    """One path's part in a window."""

    cost: CostModel
    limits: Limits
    share: float = 1.0  #: share of the texts that go through this path


class WindowSeconds(NamedTuple):
    """Predicted seconds of windows of the first 1, 2 ... n texts."""

    total: Vector
    fixed: Vector  #: the part of it that is fixed prices of passes


def window_seconds(lengths: Sequence[int], forwards: Sequence[Forward]) -> WindowSeconds:
    """[n] seconds of both paths together, for windows of the first 1, 2 ... n texts.

    It assumes batches without padding that are as large as allowed. Padding and additional passes cost a factor that
    hardly depends on the window; `sizing.Sizing` learns it.
    """
    row = np.maximum(np.asarray(lengths, np.float64), 1.0)
    fixed, work = np.zeros(len(row)), np.zeros(len(row))
    for forward in forwards:
        c0, c1, c2 = forward.cost.coefficients
        passes = np.maximum(1 / forward.limits.max_items, np.minimum(1.0, row / forward.limits.max_tokens))
        fixed += c0 * np.ceil(forward.share * np.cumsum(passes) - 1e-9)
        work += forward.share * np.cumsum(c1 * row + c2 * row**2)
    return WindowSeconds(fixed + work, fixed)


def window_size(seconds: WindowSeconds, budget_s: float) -> tuple[int, Reason]:
    """How many of the texts that a window could hold, oldest first, make the next one. At least one.

    When the backlog already misses the latency objective, a smaller window would not help. The largest one has the best
    throughput and drains the backlog soonest. The same holds where the budget only has room for windows that spend more
    than `MAX_FIXED_SHARE` of their time on the fixed price of passes.
    """
    total = seconds.total
    count = len(total)
    if total[-1] <= budget_s:
        return count, Reason.FULL
    share = seconds.fixed / total
    useful = int(np.argmax(share <= max(MAX_FIXED_SHARE, float(share[-1])))) + 1
    if total[useful - 1] > budget_s:
        return count, Reason.BEHIND
    return int(np.searchsorted(total, budget_s, side="right")), Reason.DEADLINE
