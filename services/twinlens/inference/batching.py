"""How a window is split into micro-batches, and how large a window may be. Pure.

Padding makes a forward pass as expensive as its longest text, so texts of similar length go together: lengths are
sorted and the sorted row is cut. The cut points are those of least predicted cost under

    seconds(n, L) = c0 + c1 * n * L + c2 * n * L^2        (n texts padded to L tokens)

c0 is a pass's fixed price, c1 the linear layers, c2 the attention. The coefficients are fitted online from the
replica's own timings by recursive least squares with forgetting (Haykin, "Adaptive Filter Theory", ch. 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FORGETTING = 0.99  #: a timing 100 passes ago counts for a third
NOISE = 0.1  #: variance of a timing, relative to its prediction
OUTLIER_RATIO = 3.0  #: a pass that took longer than this many times the prediction counts as that long
MAX_FIXED_SHARE = 0.25  #: of a window worth drawing: fixed price of its passes, relative to all its seconds

Vector = npt.NDArray[np.float64]


@dataclass
class CostModel:
    """Predicts a forward pass's seconds; learns from every pass.

    Before the first timing it predicts like a small encoder on one core: only ratios matter to the split.
    """

    coefficients: Vector = field(default_factory=lambda: np.array([2e-3, 2e-5, 2e-8]))
    _covariance: npt.NDArray[np.float64] = field(default_factory=lambda: np.diag([1e-2, 1.0, 1e-2]))
    observations: int = 0
    relative_error: float = 0.0  #: exponentially weighted mean of |actual - predicted| / actual

    # Scaling the features keeps the covariance well conditioned: n*L^2 reaches 1e7 where c0's feature is 1.
    _SCALE = np.array([1.0, 1e-3, 1e-6])

    def predict(self, texts: npt.ArrayLike, padded_tokens: npt.ArrayLike) -> Vector:
        """Seconds of passes with `texts` texts of `padded_tokens` tokens each (broadcast together)."""
        n, length = np.asarray(texts, np.float64), np.asarray(padded_tokens, np.float64)
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + c1 * n * length + c2 * n * length**2)

    def learn(self, texts: int, padded_tokens: int, seconds: float) -> None:
        """Take one timing into account. Errors count relative to the prediction, so small passes teach too.

        An outlier is cut, not ignored: one is a disturbance, many are news, and a model that is far off must recover.
        """
        predicted = float(self.predict(texts, padded_tokens))
        if seconds <= 0:
            return
        error = abs(seconds - predicted) / seconds
        self.relative_error += 0.05 * (error - self.relative_error)
        self.observations += 1
        features = np.array([1.0, texts * padded_tokens, texts * padded_tokens**2]) * self._SCALE / predicted
        gain = self._covariance @ features / (FORGETTING * NOISE + features @ self._covariance @ features)
        update = gain * (min(seconds / predicted, OUTLIER_RATIO) - 1.0)
        self.coefficients = np.maximum(self.coefficients + update * self._SCALE, np.array([1e-6, 1e-9, 0.0]))
        covariance = (self._covariance - np.outer(gain, features @ self._covariance)) / FORGETTING
        # Without new information forgetting lets the covariance grow without bound: cap it.
        trace = float(np.trace(covariance))
        self._covariance = covariance if trace < 10 else covariance * (10 / trace)


@dataclass(frozen=True)
class Limits:
    """Bounds of one micro-batch: texts, and texts times padded tokens."""

    max_items: int
    max_tokens: int


def split(lengths: Sequence[int], cost: CostModel, limits: Limits) -> list[list[int]]:
    """Micro-batches of least predicted cost: lists of indices into `lengths`, each index once.

    Dynamic programming over the cut points of the sorted lengths. With the lengths ascending, a batch that ends at
    text j pads to lengths[j], so best[j] = min over sizes s of best[j - s] + cost(s, lengths[j]). Texts longer than
    `max_tokens` get a batch of their own. Time O(len(lengths) * max_items), vectorised over sizes.
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
    share: float = 1.0  #: of the texts that go through this path


class WindowSeconds(NamedTuple):
    """Predicted seconds of windows of the first 1, 2 ... n texts."""

    total: Vector
    fixed: Vector  #: of these, the fixed prices of passes


def window_seconds(lengths: Sequence[int], forwards: Sequence[Forward]) -> WindowSeconds:
    """[n] seconds of both paths together, for every number of texts from the first on.

    As if the batches had no padding and were as large as they may be: what padding and more passes add is a factor
    that hardly depends on the window, and is learned as such (`compute.Compute`).
    """
    row = np.maximum(np.asarray(lengths, np.float64), 1.0)
    fixed, work = np.zeros(len(row)), np.zeros(len(row))
    for forward in forwards:
        c0, c1, c2 = forward.cost.coefficients
        passes = np.maximum(1 / forward.limits.max_items, np.minimum(1.0, row / forward.limits.max_tokens))
        fixed += c0 * np.ceil(forward.share * np.cumsum(passes) - 1e-9)
        work += forward.share * np.cumsum(c1 * row + c2 * row**2)
    return WindowSeconds(fixed + work, fixed)


class Reason(StrEnum):
    """Why a window has the size that it has."""

    DRAINED = "drained"  #: all that waited
    FULL = "full"  #: as much as a window holds, in records or bytes
    DEADLINE = "deadline"  #: as many as end within the latency objective of the oldest
    BEHIND = "behind"  #: too few would end in time to be worth a window: as much as it holds, for the best throughput


def window_size(seconds: WindowSeconds, budget_s: float) -> tuple[int, Reason]:
    """How many of the texts that a window could hold, oldest first, make the next one. There is at least one.

    When the backlog already breaks the latency objective, a smaller window would not save it: the largest one has the
    best throughput and drains the backlog soonest. It is broken, too, where the budget only has room for windows that
    spend more than `MAX_FIXED_SHARE` of their time on the fixed price of passes.
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
