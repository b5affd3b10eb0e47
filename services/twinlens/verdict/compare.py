"""Two observations of the same texts to a verdict per text. Vectorised and pure.

A tweet diverges when the labels differ (`label`), when they agree and the scores differ by more than the tolerance
(`score`), or when one path raised and the other did not (`one_sided`). The tolerance is the configured one or the
measured noise floor, whichever is larger: half of all rows differ in their last bits, which means nothing. A derived
prediction is not compared. It comes from the raw path and says nothing about the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinlens.paths.observations import Floats, Observations
from twinlens.records import Verdict

_VERDICTS = (Verdict.AGREE, Verdict.LABEL, Verdict.SCORE, Verdict.ONE_SIDED, Verdict.BOTH_FAILED, None)


@dataclass(frozen=True)
class Comparison:
    """Columns over n tweets. Deltas are NaN where nothing was compared or a path raised; `logits_delta` also where the
    paths have different numbers of labels.
    """

    verdicts: list[Verdict | None]  #: None: the prediction is derived, so nothing was compared
    score_delta: Floats  #: [n] |raw score - predict score|, each of its own best label
    logits_delta: Floats  #: [n] largest |raw logit - predict logit|
    margin: Floats  #: [n] raw path: highest logit minus second highest; of a single logit, its distance from 0
    tolerance: float

    @property
    def diverging(self) -> list[int]:
        """Rows whose verdict is a divergence."""
        return [row for row, verdict in enumerate(self.verdicts) if verdict is not None and verdict.diverges]


def compare(raw: Observations, predict: Observations, score_tolerance: float, noise_floor: float = 0.0) -> Comparison:
    """Compare row by row. Raises ValueError when the observations have different lengths."""
    if len(raw.errors) != len(predict.errors):
        raise ValueError(f"{len(raw.errors)} raw observations against {len(predict.errors)} predictions")
    tolerance = max(score_tolerance, noise_floor)
    score_delta = np.abs(raw.top_scores() - predict.top_scores())
    score_delta[predict.derived] = np.nan
    codes = np.zeros(len(raw.errors), np.int64)
    raw_failed, predict_failed = raw.failed, predict.failed
    both = ~raw_failed & ~predict_failed
    differ = _labels_differ(raw, predict)
    codes[both & differ] = 1
    codes[both & ~differ & (score_delta > tolerance)] = 2
    codes[raw_failed != predict_failed] = 3
    codes[raw_failed & predict_failed] = 4
    codes[predict.derived] = 5
    return Comparison(
        verdicts=[_VERDICTS[code] for code in codes],
        score_delta=score_delta,
        logits_delta=_logits_delta(raw, predict, both),
        margin=_margin(raw, ~raw_failed),
        tolerance=tolerance,
    )


def _labels_differ(raw: Observations, predict: Observations) -> npt.NDArray[np.bool_]:
    """Compare labels by name, not by index: a permuted label map is a divergence, two indices of one name are none.

    Ignore rows where a path raised.
    """
    names = {name: number for number, name in enumerate((*raw.facts.labels, *predict.facts.labels))}
    raw_names, predict_names = (np.array([names[name] for name in seen.facts.labels]) for seen in (raw, predict))
    return np.asarray(raw_names[raw.top] != predict_names[predict.top])


def _logits_delta(raw: Observations, predict: Observations, both: npt.NDArray[np.bool_]) -> Floats:
    delta = np.full(len(raw.errors), np.nan, np.float32)
    if raw.logits.shape == predict.logits.shape and both.any():
        delta[both] = np.abs(raw.logits[both] - predict.logits[both]).max(axis=1)
    return delta


def _margin(raw: Observations, held: npt.NDArray[np.bool_]) -> Floats:
    margin = np.full(len(raw.errors), np.nan, np.float32)
    if held.any():
        logits = raw.logits[held]
        highest = np.sort(logits, axis=1)[:, -2:]
        margin[held] = np.abs(logits[:, 0]) if logits.shape[1] == 1 else highest[:, 1] - highest[:, 0]
    return margin
