"""What a forward pass costs, learned from the replica's own timings. Pure.

    seconds(n, L) = c0 + c1 * n * L + c2 * n * L^2        (n texts padded to L tokens)

c0 is the fixed price of a pass, c1 belongs to the linear layers, c2 to attention. The coefficients are fitted online by
recursive least squares with forgetting, in the form that keeps sums instead of a covariance (the information filter;
Haykin, "Adaptive Filter Theory", ch. 10). No coefficient may be negative.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

FORGETTING = 0.99  #: a timing from 100 passes ago counts a third
OUTLIER_RATIO = 3.0  #: a timing of more than this many times its prediction is an outlier
TRUST = 1e-6  #: weight of the first coefficients, relative to all timings: they decide where timings say nothing
LEAST = np.array([1e-6, 1e-9, 0.0])  #: coefficients

Vector = npt.NDArray[np.float64]


class CostModel:
    """Predicts the seconds of a forward pass, and learns from every pass.

    `first` are the coefficients before the first timing. The default ones are those of a small encoder on one core;
    only their ratios matter to the split.

    It minimises sum(forgetting^age * ((predicted - actual) / scale)^2) over coefficients that are not negative. The
    scale of a timing is what was predicted for it, so small passes teach as much as large ones, and the result is a
    mean. The scale of an outlier is larger, in proportion: the farther out it is, the less it weighs. It is not
    dropped, since a model that is far off must recover. Setting negative coefficients of the unrestricted solution to 0
    would be wrong: the other ones were fitted together with them, and the next step would start from the error.

    One thread may call `learn` while another one asks for predictions.
    """

    def __init__(self, first: npt.ArrayLike = (2e-3, 2e-5, 2e-8), relative_error: float = 0.0) -> None:
        self.observations = 0
        self.relative_error = relative_error  #: exponentially weighted mean of |actual - predicted| / actual
        # In units of the first coefficients, so that features of 1 and of 1e7 are comparable. A 0 stays at LEAST.
        self._unit = np.array(first, np.float64)
        self._unit.setflags(write=False)
        # Sums over timings of features by features and of features by seconds, all in scales.
        self._timings = (np.zeros((3, 3)), np.zeros(3))
        self._fit = (self._timings, self._unit)  # the timings, and the coefficients found from them

    @property
    def coefficients(self) -> Vector:
        """c0, c1, c2: seconds per pass, per token, and per pair of tokens of one text."""
        timings = self._timings
        fit = self._fit
        if fit[0] is not timings:
            fit = self._fit = (timings, self._fitted(*timings))
        return fit[1]

    def predict(self, texts: npt.ArrayLike, padded_tokens: npt.ArrayLike) -> Vector:
        """Seconds of passes with `texts` texts of `padded_tokens` tokens each (broadcast together)."""
        n, length = np.asarray(texts, np.float64), np.asarray(padded_tokens, np.float64)
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + c1 * n * length + c2 * n * length**2)

    def learn(self, texts: npt.ArrayLike, padded_tokens: npt.ArrayLike, seconds: npt.ArrayLike) -> None:
        """Learn from one timing, or from a row of them."""
        n, length, actual = (np.atleast_1d(np.asarray(each, np.float64)) for each in (texts, padded_tokens, seconds))
        predicted = self.predict(n, length)
        features = self._unit * np.stack([np.ones_like(n), n * length, n * length**2], axis=1)
        for row, took_s, said_s in zip(features, actual.tolist(), predicted.tolist(), strict=True):
            if took_s <= 0:  # a clock that stood still
                continue
            self.relative_error += 0.05 * (abs(took_s - said_s) / took_s - self.relative_error)
            self.observations += 1
            scale_s = max(said_s, took_s / OUTLIER_RATIO)
            scaled = row / scale_s
            squares, sums = self._timings
            self._timings = (
                FORGETTING * squares + np.outer(scaled, scaled),
                FORGETTING * sums + scaled * (took_s / scale_s),
            )

    def _fitted(self, squares: npt.NDArray[np.float64], sums: Vector) -> Vector:
        # The first coefficients, which are 1 in this unit, count like timings of each coefficient alone.
        trust = TRUST * float(squares.trace())
        squares, sums = squares + trust * np.eye(3), sums + trust
        least = LEAST / np.where(self._unit > 0, self._unit, 1.0)
        found: Vector = np.maximum(self._unit * (least + non_negative(squares, sums - squares @ least)), LEAST)
        found.setflags(write=False)
        return found


def non_negative(squares: npt.NDArray[np.float64], sums: Vector) -> Vector:
    """The x >= 0 that minimises x @ squares @ x - 2 * sums @ x.

    Non-negative least squares (Lawson & Hanson, "Solving Least Squares Problems", ch. 23). `squares` is positive
    definite and small, so every set of entries that may be above 0 is tried, the full one first.
    """
    best, least = np.zeros(len(sums)), 0.0
    for size in range(len(sums), 0, -1):
        for chosen in map(list, itertools.combinations(range(len(sums)), size)):
            values = np.linalg.solve(squares[chosen][:, chosen], sums[chosen])
            value = -float(sums[chosen] @ values)
            if value < least and (values >= 0).all():
                best, least = np.zeros(len(sums)), value
                best[chosen] = values
                if size == len(sums):
                    return best
    return best
