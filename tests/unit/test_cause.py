"""Each rung of the ladder, the order of the rungs, and `unexplained` where nothing fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.observed import observed
from twinlens.paths.observations import Batch, Observations, apply_function
from twinlens.records import Cause, ModelId, Verdict
from twinlens.verdict.cause import cause_of
from twinlens.verdict.compare import compare

TOLERANCE = 0.005
UP, DOWN, MORE = [-1.0, 0.0, 2.0], [2.0, 0.0, -1.0], [-1.0, 0.0, 3.0]
NARROW, WIDE = Batch(1, 8, 0.001), Batch(16, 24, 0.004)
PERMUTED = ("positive", "neutral", "negative")


def cause(raw: Observations, predict: Observations, tolerance: float = TOLERANCE) -> Cause:
    return cause_of(0, compare(raw, predict, tolerance), raw, predict)


def two(raw: list[float] = UP, predict: list[float] = DOWN, **changes: Any) -> tuple[Observations, Observations]:
    """A pair of observations; `changes` concern the predict path."""
    return observed([raw]), observed([predict], **changes)


def cut(seen: Observations, ids: list[int] | None = None) -> None:
    seen.truncated[0] = True
    if ids is not None:
        seen.input_ids[0] = ids


class TestInputs:
    def test_one_path_raised(self) -> None:
        raw, predict = observed([UP]), observed([UP], failed=(0,))
        assert cause(raw, predict) is Cause.ERROR
        assert cause(predict, raw) is Cause.ERROR

    def test_one_path_cut_the_text_and_the_other_broke_on_it(self) -> None:
        raw, predict = observed([UP]), observed([UP], failed=(0,))
        cut(raw)
        assert cause(raw, predict) is Cause.TRUNCATION
        assert cause(predict, raw) is Cause.TRUNCATION

    def test_both_cut_and_one_broke(self) -> None:
        raw, predict = observed([UP]), observed([UP], failed=(0,))
        cut(raw)
        cut(predict)
        assert cause(raw, predict) is Cause.ERROR

    @pytest.mark.parametrize("side", [0, 1])
    def test_one_path_cut(self, side: int) -> None:
        pair = two()
        cut(pair[side], [2, 3])
        assert cause(*pair) is Cause.TRUNCATION

    def test_both_cut_at_different_lengths(self) -> None:
        raw, predict = two()
        cut(raw, [2, 10, 11, 3])
        cut(predict, [2, 10, 3])
        assert cause(raw, predict) is Cause.TRUNCATION

    def test_other_tokens(self) -> None:
        raw, predict = two()
        predict.input_ids[0] = [2, 99, 3]
        assert cause(raw, predict) is Cause.TOKENIZATION

    def test_other_mask(self) -> None:
        raw, predict = two()
        predict.mask_counts[0] = 2
        assert cause(raw, predict) is Cause.MASK


class TestCircumstances:
    def test_train_mode(self) -> None:
        assert cause(*two(training=True)) is Cause.MODE
        predict, raw = two(training=True)
        assert cause(raw, predict) is Cause.MODE

    def test_the_control_gave_other_bits(self) -> None:
        raw, predict = two()
        raw.control_differs = True
        assert cause(raw, predict) is Cause.MODE

    @pytest.mark.parametrize("other", [ModelId("demo", "2"), ModelId("other", "1")])
    def test_other_weights(self, other: ModelId) -> None:
        assert cause(*two(model=other)) is Cause.MODEL

    def test_precision(self) -> None:
        assert cause(*two(dtype="bfloat16")) is Cause.PRECISION

    def test_device(self) -> None:
        assert cause(*two(device="cuda:0")) is Cause.DEVICE


class TestNumbers:
    def test_a_near_tie_changed_places_in_another_shape(self) -> None:
        raw, predict = two([0.0, 1.0, 1.0001], [0.0, 1.0001, 1.0], batches=[WIDE])
        assert cause(raw, predict) is Cause.BATCH_NUMERICS

    def test_a_flip_in_the_same_shape_is_no_batch_numerics(self) -> None:
        assert cause(*two([0.0, 1.0, 1.0001], [0.0, 1.0001, 1.0])) is Cause.UNEXPLAINED

    def test_a_flip_that_the_deltas_cannot_make_is_no_batch_numerics(self) -> None:
        raw, predict = two([0.0, 1.0, 2.0], [0.0, 1.0, 1.9], batches=[WIDE])
        predict.top[0] = 1
        assert compare(raw, predict, TOLERANCE).verdicts == [Verdict.LABEL]
        assert cause(raw, predict) is Cause.UNEXPLAINED

    @pytest.mark.parametrize("shape", [Batch(2, 8, 0.001), Batch(1, 9, 0.001)])
    def test_a_score_just_beyond_the_tolerance_in_another_shape(self, shape: Batch) -> None:
        raw, predict = two(UP, [-1.0, 0.0, 2.06], batches=[shape])
        delta = float(compare(raw, predict, 0.0).score_delta[0])
        assert cause(raw, predict, delta * 0.9) is Cause.BATCH_NUMERICS
        assert cause(raw, predict, delta * 0.4) is Cause.UNEXPLAINED  # farther than padding moves a score

    def test_a_score_in_the_same_shape(self) -> None:
        raw, predict = two(UP, [-1.0, 0.0, 2.06])
        delta = float(compare(raw, predict, 0.0).score_delta[0])
        assert cause(raw, predict, delta * 0.9) is Cause.UNEXPLAINED

    def test_another_function(self) -> None:
        raw, predict = two(UP, UP, function="sigmoid")
        assert compare(raw, predict, TOLERANCE).verdicts == [Verdict.SCORE]
        assert cause(raw, predict) is Cause.POST_PROCESSING

    def test_saturated_scores_tie_and_the_first_wins(self) -> None:
        raw, predict = observed([[20.0, 40.0]], labels="ab"), observed([[20.0, 40.0]], labels="ab", function="sigmoid")
        predict.top[0] = 0  # sigmoid(20) is 1.0 in float32, as is sigmoid(40)
        raw.facts = predict.facts
        assert cause(raw, predict) is Cause.POST_PROCESSING

    def test_a_permuted_label_map(self) -> None:
        raw, predict = two(UP, UP, labels=PERMUTED)
        assert compare(raw, predict, TOLERANCE).verdicts == [Verdict.LABEL]
        assert cause(raw, predict) is Cause.LABEL_MAP

    def test_a_permuted_label_map_and_another_function(self) -> None:
        assert cause(*two(UP, UP, labels=PERMUTED, function="sigmoid")) is Cause.POST_PROCESSING

    def test_label_sets_of_other_sizes(self) -> None:
        raw, predict = observed([UP]), observed([[2.0, 0.0]], labels=("negative", "positive"))
        assert cause(raw, predict) is Cause.LABEL_MAP

    def test_last_bits_of_the_logits_are_no_other_logits(self) -> None:
        raw, predict = two(UP, [-1.0, 0.0, float(np.nextafter(np.float32(2), 3))], labels=PERMUTED)
        assert cause(raw, predict) is Cause.LABEL_MAP


class TestUnexplained:
    def test_other_logits_from_the_same_inputs(self) -> None:
        assert cause(*two()) is Cause.UNEXPLAINED
        assert cause(*two(UP, MORE)) is Cause.UNEXPLAINED

    def test_far_apart_logits_in_another_shape(self) -> None:
        assert cause(*two(UP, MORE, batches=[WIDE])) is Cause.UNEXPLAINED

    def test_same_logits_and_another_label(self) -> None:
        raw, predict = two(UP, UP)
        predict.top[0] = 1
        assert compare(raw, predict, TOLERANCE).verdicts == [Verdict.LABEL]
        assert cause(raw, predict) is Cause.UNEXPLAINED

    @pytest.mark.parametrize("changes", [{"function": "sigmoid"}, {"labels": PERMUTED}])
    def test_another_function_or_map_that_does_not_give_the_answer(self, changes: dict[str, Any]) -> None:
        assert cause(*two(UP, MORE, **changes)) is Cause.UNEXPLAINED

    def test_another_map_and_another_label_than_it_gives(self) -> None:
        raw, predict = two(UP, UP, labels=PERMUTED)
        predict.top[0], predict.scores[0, 1] = 1, predict.scores[0, 2]
        assert cause(raw, predict) is Cause.UNEXPLAINED


LADDER: list[tuple[Cause, Callable[[Observations, Observations], object]]] = [
    (Cause.TRUNCATION, lambda raw, predict: cut(predict)),
    (Cause.TOKENIZATION, lambda raw, predict: predict.input_ids.__setitem__(0, [2, 99, 3])),
    (Cause.MASK, lambda raw, predict: predict.mask_counts.__setitem__(0, 1)),
    (Cause.MODE, lambda raw, predict: setattr(raw, "control_differs", True)),
    (Cause.MODEL, lambda raw, predict: change(predict, model=ModelId("demo", "2"))),
    (Cause.PRECISION, lambda raw, predict: change(predict, dtype="float16")),
    (Cause.DEVICE, lambda raw, predict: change(predict, device="cuda:0")),
    (Cause.POST_PROCESSING, lambda raw, predict: change(predict, function="sigmoid")),
    (Cause.LABEL_MAP, lambda raw, predict: change(predict, labels=list(PERMUTED))),
]


def change(seen: Observations, **facts: Any) -> None:
    """Other facts, and the answer that follows from them."""
    seen.facts = replace(seen.facts, **facts)
    if "function" in facts or "labels" in facts:
        seen.scores = apply_function(seen.facts.function, seen.logits)
        seen.top = seen.scores.argmax(axis=1)


@pytest.mark.parametrize("first", range(len(LADDER)), ids=[rung.value for rung, _ in LADDER])
def test_the_first_rung_that_fails_names_the_cause(first: int) -> None:
    raw, predict = two(UP, UP)
    predict.scores[0, 2] -= 0.5  # diverges, by whatever cause
    for _, fail in LADDER[first:]:
        fail(raw, predict)
    assert cause(raw, predict) is LADDER[first][0]


@pytest.mark.parametrize("failed", [(), (0,)], ids=["agree", "both failed"])
def test_a_row_that_does_not_diverge_has_no_cause(failed: tuple[int, ...]) -> None:
    raw, predict = observed([UP], failed=failed), observed([UP], failed=failed)
    with pytest.raises(ValueError, match="row 0 does not diverge"):
        cause(raw, predict)


def test_the_right_row_is_looked_at() -> None:
    raw, predict = observed([UP, UP, UP, UP]), observed([UP, DOWN, DOWN, UP])
    predict.input_ids[1] = [2, 99, 3]
    cut(raw, raw.input_ids[0])
    raw.truncated[:] = [False, False, True, False]
    comparison = compare(raw, predict, TOLERANCE)
    assert comparison.diverging == [1, 2]
    assert cause_of(1, comparison, raw, predict) is Cause.TOKENIZATION
    assert cause_of(2, comparison, raw, predict) is Cause.TRUNCATION
