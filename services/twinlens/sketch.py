"""A mergeable quantile sketch over non-negative numbers: a histogram with logarithmic buckets.

The bucket rule is DDSketch's (Masson, Rim, Lee: "DDSketch", VLDB 2019, section 2.1): value x falls into bucket
ceil(log_gamma(x)) with gamma = (1 + ACCURACY) / (1 - ACCURACY), so that every quantile is returned with a relative
error of at most ACCURACY. Merging is adding counts: any order and grouping gives the same sketch. A sketch is a plain
`dict[int, int]`, so it travels in JSON as it is.

>>> from twinlens.sketch import histogram, quantile
>>> round(quantile(histogram([0.1, 0.2, 0.4]), 0.5), 2)
0.2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from twinlens.records import Histogram

ACCURACY = 0.01  #: relative error of a quantile
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = float(np.log(_GAMMA))
SMALLEST = 1e-9  #: smaller values, zero included, count as zero
ZERO_BUCKET = int(np.ceil(np.log(SMALLEST) / _LOG_GAMMA)) - 1


def histogram(values: npt.ArrayLike) -> Histogram:
    """Sketch of `values` (any shape, finite, non-negative).

    Raises ValueError for a negative or non-finite value: a delta or a latency cannot be one.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        return {}
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("a sketch takes finite, non-negative values")
    buckets = np.full(array.shape, ZERO_BUCKET, dtype=np.int64)
    positive = array >= SMALLEST
    buckets[positive] = np.ceil(np.log(array[positive]) / _LOG_GAMMA).astype(np.int64)
    keys, counts = np.unique(buckets, return_counts=True)
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def merge(sketches: Iterable[Mapping[int, int]]) -> Histogram:
    """The sketch of all values of `sketches` together."""
    merged: Histogram = {}
    for sketch in sketches:
        for bucket, count in sketch.items():
            merged[bucket] = merged.get(bucket, 0) + count
    return merged


def quantile(sketch: Mapping[int, int], q: float) -> float:
    """The q-quantile (0 <= q <= 1, lower of two neighbours); NaN for an empty sketch."""
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"a quantile lies between 0 and 1, not {q}")
    total = sum(sketch.values())
    if total == 0:
        return float("nan")
    rank = q * (total - 1)
    seen = 0
    for bucket in sorted(sketch):
        seen += sketch[bucket]
        if seen > rank:
            return _value(bucket)
    raise AssertionError("unreachable: the counts sum to the total")


def _value(bucket: int) -> float:
    """Middle of a bucket in the sense of the relative error: 2 gamma^i / (gamma + 1)."""
    if bucket <= ZERO_BUCKET:
        return 0.0
    return float(2.0 * _GAMMA**bucket / (_GAMMA + 1.0))
