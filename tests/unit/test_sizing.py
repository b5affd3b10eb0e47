"""Why a window has its size, and what is learned from the ones before."""

from __future__ import annotations

import numpy as np
import pytest

from twinlens.replica.batching import Forward, Limits
from twinlens.replica.cost import CostModel
from twinlens.replica.sizing import Sizing
from twinlens.window.window import Dispatch, Reason

#: 10 ms a pass and 1 ms a text of 10 tokens, in each of two paths.
FORWARDS = [Forward(CostModel(np.array([10e-3, 1e-4, 0.0])), Limits(64, 10_000))] * 2
TEXTS = [10] * 100


def decide(
    sizing: Sizing, *, waiting: int = 1_000, age_s: float = 0.0, objective_s: float = 1.0
) -> tuple[int, Dispatch]:
    return sizing.decide(TEXTS, FORWARDS, waiting=waiting, age_s=age_s, objective_s=objective_s)


@pytest.fixture
def sizing() -> Sizing:
    """For which publishing costs nothing, so that the numbers stay plain."""
    return Sizing(publishing=CostModel(np.zeros(3)))


def test_what_decides(sizing: Sizing) -> None:
    whole_s = 2 * (2 * 10e-3 + 100 * 1e-3)
    size, dispatch = decide(sizing, objective_s=whole_s + 1e-9)
    assert (size, dispatch.reason) == (100, Reason.FULL)
    assert dispatch.predicted_s == pytest.approx(whole_s)
    size, dispatch = decide(sizing, objective_s=0.15)
    assert (size, dispatch.reason) == (64, Reason.DEADLINE)  # 65 texts need two passes more
    assert dispatch.predicted_s == pytest.approx(2 * (10e-3 + 64e-3))
    size, dispatch = decide(sizing, objective_s=0.05)
    assert (size, dispatch.reason) == (100, Reason.BEHIND)  # 15 texts would end in time; 40 % of it the passes' price


@pytest.mark.parametrize("objective_s", [10.0, 0.01])
def test_all_that_waits_is_drained_whatever_the_objective(sizing: Sizing, objective_s: float) -> None:
    size, dispatch = decide(sizing, waiting=100, objective_s=objective_s)
    assert (size, dispatch.reason) == (100, Reason.DRAINED)


def test_the_age_of_the_oldest_counts(sizing: Sizing) -> None:
    young, old = (decide(sizing, age_s=age_s, objective_s=0.2)[0] for age_s in (0.0, 0.05))
    assert 64 <= old < young < 100
    assert decide(sizing, age_s=0.05, objective_s=0.2)[1].queue_delay_s == 0.05


def test_publishing_is_set_aside_by_the_record() -> None:
    sizing = Sizing()
    for records in (10, 100, 300, 10, 200, 50) * 10:
        sizing.published(records, 20e-3 + records * 0.5e-3)
    size, dispatch = decide(sizing, objective_s=0.2)
    assert dispatch.reason is Reason.DEADLINE
    assert dispatch.publish_reserve_s == pytest.approx(20e-3 + size * 0.5e-3, rel=0.05)
    assert dispatch.predicted_s + dispatch.publish_reserve_s <= 0.2


def test_one_commit_that_took_long_does_not_eat_the_objective() -> None:
    sizing = Sizing()
    for _ in range(50):
        sizing.published(100, 20e-3)
    before = decide(sizing)[1].publish_reserve_s
    sizing.published(100, 5.0)
    assert decide(sizing)[1].publish_reserve_s < 3 * before


def test_what_surrounds_the_passes_is_learned_as_a_factor(sizing: Sizing) -> None:
    bare_s = decide(sizing, objective_s=10.0)[1].predicted_s
    for _ in range(40):
        sizing.computed(TEXTS, FORWARDS, 0.6 * bare_s)
    assert sizing.overhead == pytest.approx(0.6, rel=0.01)
    _, dispatch = decide(sizing, objective_s=10.0)
    assert dispatch.predicted_s == pytest.approx(0.6 * bare_s, rel=0.01)
    assert dispatch.overhead == sizing.overhead
    assert dispatch.relative_error == sizing.relative_error < 0.15
    sizing.computed(TEXTS, FORWARDS, 100 * bare_s)
    assert sizing.overhead < 1.0, "one disturbance is cut"
    assert sizing.relative_error > dispatch.relative_error


def test_a_window_without_tweets_teaches_nothing(sizing: Sizing) -> None:
    sizing.computed([], FORWARDS, 1.0)
    assert (sizing.overhead, sizing.relative_error) == (1.0, 0.0)
