"""Why a tweet diverges: a ladder of checks. The first one that fails names the cause. Pure.

Once a check has failed, later ones say nothing: different tokens explain any difference in the logits. No cause is
forced. When every check holds and the paths still differ, the cause is `unexplained`. The certainty is `consistent`:
the evidence fits. `confirmed` is reserved for an experiment that closed the gap.
"""

from __future__ import annotations

import numpy as np

from twinlens.paths.observations import Observations, apply_function
from twinlens.records import Cause, Verdict
from twinlens.verdict.compare import Comparison

#: Logits this close count as the same: a float32 softmax makes scores of them that differ by less than 1e-5.
SAME_LOGITS = 1e-5


def cause_of(row: int, comparison: Comparison, raw: Observations, predict: Observations) -> Cause:
    """The cause of the divergence in `row`. Raises ValueError for a row that does not diverge."""
    verdict = comparison.verdicts[row]
    if verdict is None or not verdict.diverges:
        raise ValueError(f"row {row} does not diverge")
    return (
        _inputs(row, verdict, raw, predict)
        or _circumstances(raw, predict)
        or _numbers(row, comparison, raw, predict)
        or Cause.UNEXPLAINED
    )


def _inputs(row: int, verdict: Verdict, raw: Observations, predict: Observations) -> Cause | None:
    """Check what went in: truncation, token ids, mask."""
    if verdict is Verdict.ONE_SIDED:
        # One path cut the text, and the other one raised on the whole of it: the missing cut is the reason.
        survivor = raw if predict.errors[row] is not None else predict
        broken = predict if survivor is raw else raw
        return Cause.TRUNCATION if survivor.truncated[row] and not broken.truncated[row] else Cause.ERROR
    if raw.truncated[row] != predict.truncated[row]:
        return Cause.TRUNCATION
    if raw.input_ids[row] != predict.input_ids[row]:
        return Cause.TRUNCATION if raw.truncated[row] else Cause.TOKENIZATION
    if raw.mask_counts[row] != predict.mask_counts[row]:
        return Cause.MASK
    return None


def _circumstances(raw: Observations, predict: Observations) -> Cause | None:
    """Check what ran: mode, weights, precision, device. The answer is the same for all rows."""
    if raw.facts.training or predict.facts.training or raw.control_differs:
        return Cause.MODE
    if raw.facts.model != predict.facts.model:
        return Cause.MODEL
    if raw.facts.dtype != predict.facts.dtype:
        return Cause.PRECISION
    if raw.facts.device != predict.facts.device:
        return Cause.DEVICE
    return None


def _numbers(row: int, comparison: Comparison, raw: Observations, predict: Observations) -> Cause | None:
    """Check what came out: post-processing or label map where one of them closes the gap, or else batch numerics."""
    if (raw.facts.function, raw.facts.labels) != (predict.facts.function, predict.facts.labels):
        return _other_answer(row, comparison, raw, predict)
    delta = float(comparison.logits_delta[row])
    if delta <= SAME_LOGITS:
        # Saturated scores are equal, and argmax takes the first of them, whatever the logits say.
        scores = np.sort(apply_function(predict.facts.function, predict.logits[row : row + 1])[0])
        return Cause.POST_PROCESSING if scores.size > 1 and scores[-1] == scores[-2] else None
    if not _shapes_differ(row, raw, predict):
        return None
    if comparison.verdicts[row] is Verdict.LABEL:
        # Two logits change places only if they were within twice of what each of them moved.
        return Cause.BATCH_NUMERICS if float(comparison.margin[row]) <= 2 * delta else None
    return Cause.BATCH_NUMERICS if float(comparison.score_delta[row]) <= 2 * comparison.tolerance else None


def _other_answer(row: int, comparison: Comparison, raw: Observations, predict: Observations) -> Cause | None:
    """Apply the predict path's function and labels to the raw logits: does that give its answer?"""
    if raw.logits.shape[1] != predict.logits.shape[1]:
        return Cause.LABEL_MAP
    scores = apply_function(predict.facts.function, raw.logits[row : row + 1])[0]
    top = int(scores.argmax())
    same_label = predict.facts.labels[top] == predict.label(row)
    same_score = abs(float(scores[top]) - float(predict.top_scores()[row])) <= comparison.tolerance
    if not (same_label and same_score):
        return None
    return Cause.POST_PROCESSING if raw.facts.function != predict.facts.function else Cause.LABEL_MAP


def _shapes_differ(row: int, raw: Observations, predict: Observations) -> bool:
    mine, other = raw.batches[int(raw.batch_of[row])], predict.batches[int(predict.batch_of[row])]
    return (mine.size, mine.padded_tokens) != (other.size, other.padded_tokens)
