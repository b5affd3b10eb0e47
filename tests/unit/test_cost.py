"""The cost model: what it learns of a machine, and what it survives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.replica.cost import CostModel, non_negative

GRID = [(1, 5), (8, 20), (32, 40), (64, 128)]
MACHINES = {
    "one core": [2e-3, 2e-5, 2e-8],
    "slow core": [5e-3, 4e-4, 4e-7],
    "small model": [3e-4, 2e-6, 1e-9],
    "accelerator": [5e-3, 1e-7, 1e-10],
    "large model": [0.2, 3e-2, 3e-5],
}


def seconds(coefficients: Sequence[float], texts: int, tokens: int) -> float:
    return float(np.array(coefficients) @ np.array([1.0, texts * tokens, texts * tokens**2]))


def ratios(cost: CostModel, coefficients: Sequence[float]) -> list[float]:
    """Predicted over true seconds on a grid of shapes."""
    return [float(cost.predict(*shape)) / seconds(coefficients, *shape) for shape in GRID]


def any_shape(random: np.random.Generator) -> tuple[int, int]:
    return int(random.integers(1, 65)), int(random.integers(3, 129))


class TestCostModel:
    @pytest.mark.parametrize("machine", MACHINES)
    @pytest.mark.parametrize("noise", [0.0, 0.05])
    def test_recovers_known_coefficients(self, machine: str, noise: float) -> None:
        cost, random = CostModel(), np.random.default_rng(7)
        for _ in range(1_000):
            shape = any_shape(random)
            cost.learn(*shape, seconds(MACHINES[machine], *shape) * float(np.exp(noise * random.standard_normal())))
        assert ratios(cost, MACHINES[machine]) == pytest.approx([1.0] * 4, rel=0.2)
        if not noise:
            assert cost.coefficients[:2] == pytest.approx(MACHINES[machine][:2], rel=0.05)

    @pytest.mark.parametrize("machine", MACHINES)
    def test_outliers_do_not_bend_it(self, machine: str) -> None:
        """What the split needs are the proportions; they hold although one pass in twenty is disturbed."""
        cost, random = CostModel(), np.random.default_rng(7)
        for _ in range(3_000):
            shape = any_shape(random)
            factor = float(random.choice([10.0, 100.0, 1_000.0])) if random.random() < 0.05 else 1.0
            cost.learn(*shape, seconds(MACHINES[machine], *shape) * factor)
        found = ratios(cost, MACHINES[machine])
        assert max(found) / min(found) < 2.0
        assert max(found) < 2.0

    def test_noisy_timings_give_their_mean(self) -> None:
        """Not the mode, or what committing a window takes would be set aside too sparingly."""
        cost, random, machine = CostModel(), np.random.default_rng(7), MACHINES["slow core"]
        found = []
        for _ in range(2_000):
            shape = any_shape(random)
            noise = float(random.lognormal(-0.5 * 0.4**2, 0.4))  # of mean 1
            cost.learn(*shape, seconds(machine, *shape) * noise)
            found.append(ratios(cost, machine)[2])
        assert np.mean(found[500:]) == pytest.approx(1.0, abs=0.05)

    def test_one_slow_first_pass_is_soon_forgotten(self) -> None:
        cost, random = CostModel(), np.random.default_rng(7)
        cost.learn(8, 20, 10.0)
        for _ in range(200):
            shape = any_shape(random)
            cost.learn(*shape, seconds(MACHINES["one core"], *shape))
        assert ratios(cost, MACHINES["one core"]) == pytest.approx([1.0] * 4, rel=0.2)

    @pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
    def test_recovers_after_it_has_seen_small_passes_only(self, share: float) -> None:
        """After a quiet start large passes look like outliers, and must be learned all the same."""
        cost, random, machine = CostModel(), np.random.default_rng(7), MACHINES["slow core"]
        for _ in range(50):
            cost.learn(1, 5, seconds(machine, 1, 5))
        for _ in range(3_000):
            shape = (64, 128) if random.random() < share else (1, 5)
            cost.learn(*shape, seconds(machine, *shape))
        assert float(cost.predict(64, 128)) == pytest.approx(seconds(machine, 64, 128), rel=0.2)

    @pytest.mark.parametrize("seed", range(8))
    def test_passes_whose_cost_does_not_depend_on_length(self, seed: int) -> None:
        """The terms are wrong then, and their sum must hold all the same. With seeds 1 and 5 an estimator that put
        negative coefficients to 0 after each step took hundreds of passes to come back from a wrong one.
        """
        cost, random = CostModel(), np.random.default_rng(seed)
        errors = []
        for _ in range(200):
            texts = int(random.integers(1, 30))
            tokens = int(random.normal(25, 9, texts).clip(5, 60).max())
            took_s = 4e-3 + 3.4e-3 * texts
            errors.append(abs(float(cost.predict(texts, tokens)) / took_s - 1))
            cost.learn(texts, tokens, took_s)
        assert np.mean(errors[50:]) < 0.2

    def test_follows_a_machine_that_becomes_slower(self) -> None:
        cost, random = CostModel(), np.random.default_rng(7)
        for machine in ("one core", "slow core"):
            for _ in range(1_500):
                shape = any_shape(random)
                cost.learn(*shape, seconds(MACHINES[machine], *shape))
            assert ratios(cost, MACHINES[machine]) == pytest.approx([1.0] * 4, rel=0.25)

    def test_the_same_pass_many_times_and_then_others(self) -> None:
        cost, random, machine = CostModel(), np.random.default_rng(7), MACHINES["slow core"]
        for _ in range(10_000):
            cost.learn(8, 20, seconds(machine, 8, 20) * float(np.exp(0.05 * random.standard_normal())))
            assert np.isfinite(cost.coefficients).all()
        assert float(cost.predict(8, 20)) == pytest.approx(seconds(machine, 8, 20), rel=0.1)
        for _ in range(300):
            shape = any_shape(random)
            cost.learn(*shape, seconds(machine, *shape))
        assert ratios(cost, machine) == pytest.approx([1.0] * 4, rel=0.25)

    @settings(max_examples=30, deadline=None)
    @given(
        passes=st.lists(
            st.tuples(st.integers(1, 512), st.integers(1, 8_192), st.floats(1e-9, 1e4)), min_size=1, max_size=20
        )
    )
    def test_any_timings_leave_it_finite_and_positive(self, passes: list[tuple[int, int, float]]) -> None:
        cost = CostModel()
        for _ in range(10_000 // (30 * len(passes)) + 1):
            for texts, tokens, took_s in passes:
                cost.learn(texts, tokens, took_s)
                predicted = cost.predict(*np.array([(1, 1), (64, 128), (512, 8_192)]).T)
                assert np.isfinite(predicted).all()
                assert (predicted > 0).all()
        assert np.isfinite(cost.relative_error)

    def test_random_timings_many_times(self) -> None:
        cost, random = CostModel(), np.random.default_rng(7)
        for _ in range(10_000):
            cost.learn(*any_shape(random), float(10.0 ** random.uniform(-6, 3)))
            predicted = cost.predict([1, 64], [3, 128])
            assert np.isfinite(predicted).all()
            assert (predicted > 0).all()

    @pytest.mark.parametrize("took_s", [0.0, -1.0])
    def test_a_clock_that_stood_still_teaches_nothing(self, took_s: float) -> None:
        cost = CostModel()
        before = cost.coefficients.copy()
        cost.learn(4, 10, took_s)
        assert (cost.coefficients == before).all()
        assert cost.observations == 0

    def test_relative_error_tells_how_far_off_it_is(self) -> None:
        cost, random = CostModel(), np.random.default_rng(7)
        machine = MACHINES["slow core"]
        errors = []
        for _ in range(1_000):
            shape = any_shape(random)
            cost.learn(*shape, seconds(machine, *shape))
            errors.append(cost.relative_error)
        first = seconds(machine, *any_shape(np.random.default_rng(7)))
        said = float(CostModel().predict(*any_shape(np.random.default_rng(7))))
        assert errors[0] == pytest.approx(0.05 * (first - said) / first)  # a twentieth of how far off the first one was
        assert errors[0] > 0.04
        assert errors[-1] < 0.01
        assert cost.observations == 1_000

    def test_a_timing_that_comes_while_coefficients_are_found_is_not_lost(self) -> None:
        """The publish thread learns what a commit costs while compute decides on a window."""

        class Interrupted(CostModel):
            coming = 1.0

            def _fitted(self, *timings: Any) -> Any:
                found = super()._fitted(*timings)
                if self.coming:
                    self.coming = 0.0
                    self.learn(4, 20, 1.0)
                return found

        cost = Interrupted()
        cost.learn(4, 20, 1e-2)
        assert float(cost.predict(4, 20)) == pytest.approx(1e-2, rel=0.01)
        apart = CostModel()
        apart.learn([4, 4], [20, 20], [1e-2, 1.0])
        assert cost.coefficients == pytest.approx(apart.coefficients)

    def test_two_models_do_not_share_their_state(self) -> None:
        one, other = CostModel(), CostModel()
        one.learn(64, 128, 100.0)
        assert other.coefficients.tolist() == CostModel().coefficients.tolist()


class TestNonNegative:
    @given(
        rows=st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=1, max_size=8),
        wanted=st.lists(st.floats(-10, 10), min_size=8, max_size=8),
    )
    def test_it_is_the_best_that_is_not_negative(self, rows: list[tuple[float, ...]], wanted: list[float]) -> None:
        """By the conditions of Karush, Kuhn and Tucker, which are sufficient here: the value would fall nowhere but
        into the negative.
        """
        matrix, target = np.array(rows), np.array(wanted[: len(rows)])
        squares, sums = matrix.T @ matrix + 1e-3 * np.eye(3), matrix.T @ target
        found = non_negative(squares, sums)
        slope = squares @ found - sums
        assert (found >= 0).all()
        assert (slope >= -1e-6).all()
        assert np.abs(slope[found > 0]).max(initial=0.0) < 1e-6
