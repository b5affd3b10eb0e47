"""The verdict on every pair of observations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.observed import BROKEN, observed
from twinlens.paths.observations import Observations
from twinlens.records import Verdict
from twinlens.verdict.compare import Comparison, compare

TOLERANCE = 0.005
UP, DOWN, MIDDLE = [-1.0, 0.0, 2.0], [2.0, 0.0, -1.0], [0.0, 2.0, -1.0]


def verdict(raw: Observations, predict: Observations, tolerance: float = TOLERANCE) -> Verdict:
    (only,) = compare(raw, predict, tolerance).verdicts
    return only


class TestVerdicts:
    @pytest.mark.parametrize(
        ("raw", "predict", "expected"),
        [
            pytest.param(UP, UP, Verdict.AGREE, id="same"),
            pytest.param(UP, [-1.0, 0.0, 2.001], Verdict.AGREE, id="within the tolerance"),
            pytest.param(UP, [-1.0, 0.0, 2.2], Verdict.SCORE, id="beyond the tolerance"),
            pytest.param(UP, [-1.0, 0.0, 1.8], Verdict.SCORE, id="beyond the tolerance, downwards"),
            pytest.param(UP, DOWN, Verdict.LABEL, id="other label"),
            pytest.param([0.0, 1.0, 1.0001], [0.0, 1.0001, 1.0], Verdict.LABEL, id="other label, same score"),
            pytest.param([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], Verdict.AGREE, id="tie"),
            pytest.param([1.0, 1.0, 0.0], [1.0, np.nextafter(np.float32(1), 2), 0.0], Verdict.LABEL, id="broken tie"),
            pytest.param([200.0, 0.0, 0.0], [300.0, 0.0, 0.0], Verdict.AGREE, id="saturated"),
        ],
    )
    def test_both_answered(self, raw: list[float], predict: list[float], expected: Verdict) -> None:
        assert verdict(observed([raw]), observed([predict])) is expected

    @pytest.mark.parametrize(
        ("raw_failed", "predict_failed", "expected"),
        [
            ((), (0,), Verdict.ONE_SIDED),
            ((0,), (), Verdict.ONE_SIDED),
            ((0,), (0,), Verdict.BOTH_FAILED),
        ],
    )
    def test_a_path_raised(self, raw_failed: tuple[int], predict_failed: tuple[int], expected: Verdict) -> None:
        raw, predict = observed([UP], failed=raw_failed), observed([UP], failed=predict_failed)
        assert verdict(raw, predict) is expected

    def test_each_row_has_its_own(self) -> None:
        raw = observed([UP, UP, UP, UP, UP, UP], failed=(3, 5))
        predict = observed([UP, DOWN, [-1.0, 0.0, 3.0], UP, UP, UP], failed=(4, 5))
        comparison = compare(raw, predict, TOLERANCE)
        assert comparison.verdicts == [
            Verdict.AGREE,
            Verdict.LABEL,
            Verdict.SCORE,
            Verdict.ONE_SIDED,
            Verdict.ONE_SIDED,
            Verdict.BOTH_FAILED,
        ]
        assert comparison.diverging == [1, 2, 3, 4]

    def test_the_tolerance_itself_is_no_divergence(self) -> None:
        raw, predict = (
            observed([[0.75]], labels=["a"], function="none"),
            observed([[0.5]], labels=["a"], function="none"),
        )
        assert verdict(raw, predict, 0.25) is Verdict.AGREE
        assert verdict(raw, predict, 0.2499) is Verdict.SCORE

    @pytest.mark.parametrize(("configured", "floor", "used"), [(0.01, 0.5, 0.5), (0.5, 0.01, 0.5), (0.0, 0.0, 0.0)])
    def test_the_larger_tolerance_counts(self, configured: float, floor: float, used: float) -> None:
        comparison = compare(observed([UP]), observed([[-1.0, 0.0, 3.0]]), configured, floor)
        assert comparison.tolerance == used
        assert comparison.verdicts == [Verdict.AGREE if used else Verdict.SCORE]


class TestLabels:
    def test_are_compared_by_name(self) -> None:
        raw, predict = observed([UP]), observed([DOWN], labels=("positive", "neutral", "negative"))
        assert verdict(raw, predict) is Verdict.AGREE

    def test_a_permuted_map_is_a_divergence(self) -> None:
        raw, predict = observed([UP]), observed([UP], labels=("positive", "neutral", "negative"))
        assert verdict(raw, predict) is Verdict.LABEL

    def test_two_indices_of_one_name_agree(self) -> None:
        names = ("other", "other", "spam")
        assert verdict(observed([[1.0, 1.0, 0.0]], labels=names), observed([[1.0, 1.00001, 0.0]], labels=names)) is (
            Verdict.AGREE
        )

    def test_other_label_sets(self) -> None:
        raw, predict = observed([UP, UP]), observed([[0.0, 2.0], [2.0, 0.0]], labels=("negative", "positive"))
        comparison = compare(raw, predict, score_tolerance=1.0)
        assert comparison.verdicts == [Verdict.AGREE, Verdict.LABEL]
        assert np.isnan(comparison.logits_delta).all()

    def test_one_logit_differs_in_its_score_only(self) -> None:
        raw = observed([[3.0], [3.0], [-3.0]], labels=["toxic"], function="sigmoid")
        predict = observed([[3.0], [1.0], [3.0]], labels=["toxic"], function="sigmoid")
        comparison = compare(raw, predict, TOLERANCE)
        assert comparison.verdicts == [Verdict.AGREE, Verdict.SCORE, Verdict.SCORE]
        assert comparison.margin.tolist() == [3.0, 3.0, 3.0]
        assert comparison.score_delta[2] == pytest.approx(1 / (1 + np.exp(-3)) - 1 / (1 + np.exp(3)))


class TestNumbers:
    def test_deltas_and_margin(self) -> None:
        comparison = compare(observed([[1.0, 4.0, 2.0]]), observed([[1.5, 3.0, 2.0]]), TOLERANCE)
        assert comparison.logits_delta.tolist() == [1.0]
        assert comparison.margin.tolist() == [2.0]
        softmax = [np.exp(4) / np.exp([1, 4, 2]).sum(), np.exp(3) / np.exp([1.5, 3, 2]).sum()]
        assert comparison.score_delta[0] == pytest.approx(softmax[0] - softmax[1], rel=1e-5)

    @pytest.mark.parametrize(("raw_failed", "predict_failed"), [((0,), ()), ((), (0,)), ((0,), (0,))])
    def test_are_nan_where_a_path_raised(self, raw_failed: tuple[int, ...], predict_failed: tuple[int, ...]) -> None:
        comparison = compare(
            observed([UP, UP], failed=raw_failed), observed([UP, MIDDLE], failed=predict_failed), TOLERANCE
        )
        assert np.isnan(comparison.score_delta).tolist() == [True, False]
        assert np.isnan(comparison.logits_delta).tolist() == [True, False]
        assert np.isnan(comparison.margin[0]) == bool(raw_failed)  # the margin is the raw path's alone

    @pytest.mark.parametrize("broken", [[np.nan] * 3, [np.inf, np.inf, 0.0], [-np.inf] * 3, [1.0, np.nan, 2.0]])
    def test_a_row_that_is_not_finite_leaves_no_trace(self, broken: list[float]) -> None:
        raw = observed([UP, UP])
        raw.logits[0], raw.errors[0] = broken, BROKEN
        comparison = compare(raw, observed([UP, UP]), TOLERANCE)
        assert comparison.verdicts == [Verdict.ONE_SIDED, Verdict.AGREE]
        assert np.isnan(comparison.margin).tolist() == [True, False]

    def test_no_tweets(self) -> None:
        comparison = compare(observed([]), observed([]), TOLERANCE)
        assert comparison.verdicts == []
        assert comparison.diverging == []
        assert len(comparison.margin) == len(comparison.score_delta) == len(comparison.logits_delta) == 0

    def test_other_tweets(self) -> None:
        with pytest.raises(ValueError, match="2 raw observations against 1 predictions"):
            compare(observed([UP, UP]), observed([UP]), TOLERANCE)


logits = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


@given(st.lists(st.tuples(logits, logits, st.booleans(), st.booleans()), min_size=1, max_size=12), st.floats(0, 1))
def test_a_row_is_judged_without_regard_to_its_neighbours(
    rows: list[tuple[list[float], list[float], bool, bool]], tolerance: float
) -> None:
    def one_window(chosen: list[int]) -> Comparison:
        return compare(
            observed([rows[i][0] for i in chosen], failed=[n for n, i in enumerate(chosen) if rows[i][2]]),
            observed([rows[i][1] for i in chosen], failed=[n for n, i in enumerate(chosen) if rows[i][3]]),
            tolerance,
        )

    together = one_window(list(range(len(rows))))
    for row in range(len(rows)):
        alone = one_window([row])
        assert alone.verdicts == [together.verdicts[row]]
        for name in ("score_delta", "logits_delta", "margin"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row])
