"""What the metrics say about a window: why it had its size, and how well the cost model predicted it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlens.paths.observations import Observations
from twinlens.replica.cost import CostModel
from twinlens.window.window import Dispatch


@dataclass(frozen=True)
class PathWork:
    """The forward passes of one path over a window, before the cost model learns from them."""

    tokens: int  #: without padding
    padded_tokens: int
    seconds: float
    predicted_s: float
    coefficients: tuple[float, float, float]  #: c0, c1, c2 of `cost`
    relative_error: float

    @classmethod
    def of(cls, seen: Observations, cost: CostModel) -> PathWork:
        sizes = np.array([batch.size for batch in seen.batches], np.int64)
        padded = np.array([batch.padded_tokens for batch in seen.batches], np.int64)
        c0, c1, c2 = cost.coefficients.tolist()
        return cls(
            tokens=sum(len(seen.input_ids[row]) for row in np.flatnonzero(seen.batch_of >= 0)),
            padded_tokens=int((sizes * padded).sum()),
            seconds=sum(batch.seconds for batch in seen.batches),
            predicted_s=float(cost.predict(sizes, padded).sum()),
            coefficients=(c0, c1, c2),
            relative_error=cost.relative_error,
        )


@dataclass(frozen=True)
class WindowReport:
    """A window that was published, or that must be read again."""

    tweets: int
    refused: int
    dispatch: Dispatch
    compute_s: float
    publish_s: float | None  #: None: it must be read again
    paths: dict[str, PathWork]  #: by name, `raw` and `predict`
