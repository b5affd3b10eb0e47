"""The join: what was consumed against what was published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.audit import Published, Side, join, predict_side, raw_side, verdict_of
from twinlens.records import LogitsRecord, ModelId, PathError, PredictionRecord, SourceCoordinates, Verdict

YES, NO = Side("yes", 0.9), Side("no", 0.8)
FAILED = Side(None, None)
MODEL = ModelId("m", "1")
AT = SourceCoordinates("t", 0, 1)


@pytest.mark.parametrize(
    ("raw", "predict", "verdict"),
    [
        (YES, YES, Verdict.AGREE),
        (YES, NO, Verdict.LABEL),
        (YES, Side("yes", 0.8), Verdict.SCORE),
        (YES, Side("yes", 0.901), Verdict.AGREE),
        (YES, FAILED, Verdict.ONE_SIDED),
        (FAILED, YES, Verdict.ONE_SIDED),
        (FAILED, FAILED, Verdict.BOTH_FAILED),
    ],
)
def test_verdicts(raw: Side, predict: Side, verdict: Verdict) -> None:
    assert verdict_of(raw, predict, tolerance=0.005) is verdict


def test_missing_dead_and_twice_are_told_apart() -> None:
    published = Published(
        raw={(0, 0): YES, (0, 1): YES, (0, 3): YES},
        predict={(0, 0): YES, (0, 3): YES},
        dead={(0, 2), (0, 3)},
        duplicate=2,
    )
    report = join([(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)], published, 0.005)
    assert (report.consumed, report.published, report.dead_lettered, report.missing) == (5, 1, 2, 2)
    assert report.duplicate == 2 + 2, "a dead letter that was published as well is there twice on each topic"
    assert not report.clean
    assert [example["what"] for example in report.examples] == ["missing", "missing"]


def test_the_tolerance_of_the_window_is_used() -> None:
    published = Published(
        raw={(0, 0): YES}, predict={(0, 0): Side("yes", 0.88)}, windows={(0, 0): "w"}, tolerances={"w": 0.1}
    )
    assert join([(0, 0)], published, 0.005).diverging == 0
    published.tolerances.clear()
    assert join([(0, 0)], published, 0.005).score_divergences == 1


def test_derived_predictions_are_published_and_not_compared() -> None:
    at = [(0, number) for number in range(4)]
    published = Published(raw=dict.fromkeys(at, YES), predict=dict.fromkeys(at, NO), derived=set(at[1:]))
    report = join(at, published, 0.005)
    assert (report.published, report.derived, report.diverging, report.missing) == (4, 3, 1, 0)
    assert [example["offset"] for example in report.examples] == [0]
    del published.raw[at[3]]
    assert (join(at, published, 0.005).derived, join(at, published, 0.005).missing) == (2, 1)


@given(
    st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30))
)
def test_every_consumed_record_is_counted_once(
    consumed: set[int], raw: set[int], predict: set[int], dead: set[int]
) -> None:
    def at(numbers: set[int]) -> list[tuple[int, int]]:
        return [(0, number) for number in sorted(numbers)]

    published = Published(raw=dict.fromkeys(at(raw), YES), predict=dict.fromkeys(at(predict), NO), dead=set(at(dead)))
    report = join(at(consumed), published, 0.005)
    assert report.consumed == len(consumed) == report.published + report.dead_lettered + report.missing
    assert report.label_divergences == report.diverging == report.published


@pytest.mark.parametrize(
    ("function", "logits", "label", "score"),
    [("softmax", [0.0, 1.0], "b", 0.731058), ("sigmoid", [2.0, 1.0], "a", 0.880797), ("none", [3.0, 4.0], "b", 4.0)],
)
def test_scores_are_computed_from_published_logits(
    function: str, logits: list[float], label: str, score: float
) -> None:
    record = LogitsRecord(
        id="1", source=AT, application="x", model=MODEL, labels=["a", "b"], logits=logits, function=function
    )
    side = raw_side(record)
    assert side.label == label
    assert side.score == pytest.approx(score, abs=1e-6)


def test_an_error_has_neither_label_nor_score() -> None:
    error = PathError(type="RuntimeError", message="")
    logits = LogitsRecord(
        id="1", source=AT, application="x", model=MODEL, labels=["a"], logits=[], function="none", error=error
    )
    prediction = PredictionRecord(id="1", source=AT, application="x", model=MODEL, error=error)
    assert raw_side(logits) == predict_side(prediction) == FAILED
