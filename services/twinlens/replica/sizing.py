"""How many of the waiting records make the next window, judged by how long earlier windows took. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinlens.replica.batching import Forward, WindowSeconds, window_seconds, window_size
from twinlens.replica.cost import OUTLIER_RATIO, CostModel
from twinlens.window.window import Dispatch, Reason

LEARNING_RATE = 0.2  #: weight of the newest window
FIRST_PUBLISHING = (10e-3, 1e-4, 0.0)  #: seconds per commit and per record, before the first commit


class Sizing:
    """What is learned from whole windows, in addition to the cost of passes. Another thread may call `published`.

    `publishing` is the assumed cost of a commit before the first one: a fixed part, and a part per record.
    """

    def __init__(self, publishing: CostModel | None = None) -> None:
        self.overhead = 1.0  #: a window's seconds to compute, relative to those of its passes without padding
        self.relative_error = 0.0  #: exponentially weighted mean of |actual - predicted| / actual, to compute
        self._publishing = publishing or CostModel(np.array(FIRST_PUBLISHING))

    def decide(
        self, lengths: Sequence[int], forwards: Sequence[Forward], *, waiting: int, age_s: float, objective_s: float
    ) -> tuple[int, Dispatch]:
        """The size of the next window, at least 1, and why.

        `lengths` are the token counts of the records that a window may hold, oldest first, of `waiting` records in all.
        `age_s` is the age of the oldest of them. Its results are due when it is `objective_s` old.
        """
        bare = window_seconds(lengths, forwards)
        compute_s = self.overhead * bare.total
        publish_s = self._publishing.predict(np.arange(1, len(lengths) + 1), 1)
        seconds = WindowSeconds(compute_s + publish_s, self.overhead * bare.fixed)
        size, reason = window_size(seconds, objective_s - age_s)
        if size == waiting:
            reason = Reason.DRAINED
        return size, Dispatch(
            reason=reason,
            queue_delay_s=age_s,
            predicted_s=float(compute_s[size - 1]),
            overhead=self.overhead,
            publish_reserve_s=float(publish_s[size - 1]),
            relative_error=self.relative_error,
        )

    def computed(self, lengths: Sequence[int], forwards: Sequence[Forward], seconds: float) -> None:
        """Learn that a window of texts of `lengths` tokens took `seconds` to compute. `forwards` must not have learned
        from it yet. An outlier is limited, not ignored.
        """
        if not lengths or seconds <= 0:
            return
        bare_s = float(window_seconds(lengths, forwards).total[-1])
        self.relative_error += 0.05 * (abs(seconds - self.overhead * bare_s) / seconds - self.relative_error)
        ratio = min(seconds / bare_s, OUTLIER_RATIO * self.overhead)
        self.overhead += LEARNING_RATE * (ratio - self.overhead)

    def published(self, records: int, seconds: float) -> None:
        """Learn that a window of `records` records was encoded, sent and committed in `seconds`."""
        self._publishing.learn(records, 1, seconds)
