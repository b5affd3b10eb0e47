"""What a forward pass costs, learned from the replica's own timings. Pure.

    seconds(n, L) = c0 + c1 * n * L + c2 * n * L^2        (n texts padded to L tokens)

c0 is a pass's fixed price, c1 the linear layers, c2 the attention. The coefficients are fitted online by recursive
least squares with forgetting, in the form that keeps sums instead of a covariance (the information filter; Haykin,
"Adaptive Filter Theory", ch. 10), under the condition that none is negative.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

FORGETTING = 0.99  #: a timing 100 passes ago counts for a third
OUTLIER_RATIO = 3.0  #: a timing of more than so many times its prediction is an outlier
TRUST = 1e-6  #: in the first coefficients, relative to all timings: it decides where these say nothing
LEAST = np.array([1e-6, 1e-9, 0.0])  #: coefficients

Vector = npt.NDArray[np.float64]


class CostModel:
    """Predicts a forward pass's seconds; learns from every pass.

    `first` are the coefficients before the first timing. As they are by default it predicts like a small encoder on one
    core: only ratios matter to the split.

    It minimises sum(forgetting^age * ((predicted - actual) / scale)^2) over coefficients that are not negative. The
    scale of a timing is what was predicted for it when it came: small passes teach as much as large ones, and what is
    found is a mean. An outlier's is larger, in proportion, so that it has the less weight the farther out it is; it is
    not dropped, since a model that is far off must recover. Setting negative coefficients of the unrestricted solution
    to 0 would not do: the others, fitted along with them, would be wrong by as much, and the next step would start
    from there.

    One thread may call `learn` while another one asks.
    """

    def __init__(self, first: npt.ArrayLike = (2e-3, 2e-5, 2e-8), relative_error: float = 0.0) -> None:
        self.observations = 0
        self.relative_error = relative_error  #: exponentially weighted mean of |actual - predicted| / actual
        # In units of the first coefficients, which makes features of 1 and of 1e7 comparable. One of 0 stays at LEAST.
        self._unit = np.array(first, np.float64)
        self._unit.setflags(write=False)
        # Sums over timings of features by features and of features by seconds, all in scales.
        self._timings = (np.zeros((3, 3)), np.zeros(3))
        self._fit = (self._timings, self._unit)  # coefficients, and the timings that they were found from

    @property
    def coefficients(self) -> Vector:
        """c0, c1, c2: seconds per pass, per token, and per token and token of its text."""
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
        """Take a timing, or a row of them, into account."""
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
        # The first coefficients, 1 in this unit, count as timings of each coefficient alone.
        trust = TRUST * float(squares.trace())
        squares, sums = squares + trust * np.eye(3), sums + trust
        least = LEAST / np.where(self._unit > 0, self._unit, 1.0)
        found: Vector = np.maximum(self._unit * (least + non_negative(squares, sums - squares @ least)), LEAST)
        found.setflags(write=False)
        return found


def non_negative(squares: npt.NDArray[np.float64], sums: Vector) -> Vector:
    """The x >= 0 of least x @ squares @ x - 2 * sums @ x (non-negative least squares; Lawson & Hanson, "Solving Least
    Squares Problems", ch. 23). `squares` is positive definite and small: every set of entries that are not 0 is tried,
    the full one first.
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
