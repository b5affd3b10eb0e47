"""Why a tweet diverges: a ladder of rungs; the first one that fails names the cause. Pure.

Later rungs are not assessable once one has failed: different tokens explain any difference in the logits. The answer
is never forced: when every rung holds and the paths still differ, the cause is `unexplained`.
The certainty is `consistent`: the evidence fits. `confirmed` is kept for a replay that closed the gap.
"""

from __future__ import annotations

import numpy as np

from twinlens.paths.observations import Observations, apply_function
from twinlens.records import Cause, Verdict
from twinlens.verdict.compare import Comparison

#: Logits this close are the same logits: a float32 softmax turns them into scores that differ by less than 1e-5.
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
    """What went in: truncation, token ids, mask."""
    if verdict is Verdict.ONE_SIDED:
        # Where one path cut the text and the other broke on it, the missing cut is the reason.
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
    """What ran: mode, weights, precision, device. The same for all rows of a window."""
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
    """What came out: post-processing and label map where one of them closes the gap, else batch numerics."""
    if (raw.facts.function, raw.facts.labels) != (predict.facts.function, predict.facts.labels):
        return _other_answer(row, comparison, raw, predict)
    delta = float(comparison.logits_delta[row])
    if delta <= SAME_LOGITS:
        # Saturated scores tie, and argmax over scores then takes the first of them, whatever the logits say.
        scores = np.sort(apply_function(predict.facts.function, predict.logits[row : row + 1])[0])
        return Cause.POST_PROCESSING if scores.size > 1 and scores[-1] == scores[-2] else None
    if not _shapes_differ(row, raw, predict):
        return None
    if comparison.verdicts[row] is Verdict.LABEL:
        # Two logits can change places only if each moved by up to `delta` and they were that close.
        return Cause.BATCH_NUMERICS if float(comparison.margin[row]) <= 2 * delta else None
    return Cause.BATCH_NUMERICS if float(comparison.score_delta[row]) <= 2 * comparison.tolerance else None


def _other_answer(row: int, comparison: Comparison, raw: Observations, predict: Observations) -> Cause | None:
    """The raw logits under the predict path's function and labels: do they give its answer?"""
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
