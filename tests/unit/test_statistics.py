"""The interval that holds at every look, and the alarm with a stated run length. Simulations have fixed seeds."""

from __future__ import annotations

import math
from functools import cache

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.monitor.statistics import ODDS_RATIOS, RateDetector, confidence_sequence

ALPHA = 0.05
RUNS, TRIALS = 400, 2_000
LOOKS = np.unique(np.concatenate([np.arange(1, 50), np.arange(50, TRIALS + 1, 10)]))


@st.composite
def counts(draw: st.DrawFn, most: int = 10**7) -> tuple[int, int]:
    """(successes, trials)"""
    trials = draw(st.integers(1, most))
    return draw(st.integers(0, trials)), trials


class TestConfidenceSequence:
    def test_knows_nothing_without_trials(self) -> None:
        assert confidence_sequence(0, 0) == (0.0, 1.0)

    @given(counts())
    def test_contains_the_observed_rate_strictly_inside(self, observed: tuple[int, int]) -> None:
        successes, trials = observed
        low, high = confidence_sequence(successes, trials)
        assert 0.0 <= low <= successes / trials <= high <= 1.0
        assert (low == 0.0) == (successes == 0)
        assert (high == 1.0) == (successes == trials)
        assert low < high

    @given(counts())
    def test_successes_and_failures_are_alike(self, observed: tuple[int, int]) -> None:
        successes, trials = observed
        low, high = confidence_sequence(successes, trials)
        assert confidence_sequence(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)

    @given(counts(most=10**5), st.integers(2, 20))
    def test_narrows_with_more_of_the_same(self, observed: tuple[int, int], times: int) -> None:
        successes, trials = observed
        low, high = confidence_sequence(successes, trials)
        more_low, more_high = confidence_sequence(successes * times, trials * times)
        assert more_low >= low
        assert more_high <= high
        assert more_high - more_low < high - low

    @given(counts(most=10**5))
    def test_widens_with_more_confidence(self, observed: tuple[int, int]) -> None:
        wide, narrow = confidence_sequence(*observed, alpha=0.01), confidence_sequence(*observed, alpha=0.2)
        assert wide[0] <= narrow[0] < narrow[1] <= wide[1]

    @pytest.mark.parametrize(("successes", "trials"), [(0, 40), (3, 7), (40, 40), (20, 1_000)])
    def test_ends_are_where_the_mixture_martingale_is_one_over_alpha(self, successes: int, trials: int) -> None:
        # The martingale by numerical integration of the Beta(1/2, 1/2) mixture (p = sin^2 u has density 2/pi in u).
        u = (np.arange(200_000) + 0.5) * (math.pi / 2 / 200_000)
        marginal = np.mean(np.sin(u) ** (2 * successes) * np.cos(u) ** (2 * (trials - successes)))
        for end in set(confidence_sequence(successes, trials)) - {0.0, 1.0}:
            likelihood = end**successes * (1 - end) ** (trials - successes)
            assert marginal / likelihood == pytest.approx(1 / ALPHA, rel=1e-6)

    def test_is_right_for_a_trillion_trials(self) -> None:
        low, high = confidence_sequence(10**10, 10**12)
        assert 0.01 - 1e-6 < low < 0.01 < high < 0.01 + 1e-6

    @pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1)])
    def test_refuses_impossible_counts(self, successes: int, trials: int) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            confidence_sequence(successes, trials)

    @pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
    def test_refuses_an_impossible_alpha(self, alpha: float) -> None:
        with pytest.raises(ValueError, match="alpha"):
            confidence_sequence(1, 2, alpha=alpha)

    @pytest.mark.parametrize("rate", [0.005, 0.02, 0.3])
    def test_holds_at_all_looks_at_once_where_a_wilson_interval_does_not(self, rate: float) -> None:
        rng = np.random.default_rng(20_240)
        successes = np.cumsum(rng.random((RUNS, TRIALS)) < rate, axis=1, dtype=np.int64)[:, LOOKS - 1]

        @cache
        def misses(count: int, trials: int) -> bool:
            low, high = confidence_sequence(count, trials, alpha=ALPHA)
            return not low <= rate <= high

        missed = [any(map(misses, run.tolist(), LOOKS.tolist())) for run in successes]
        assert np.mean(missed) <= ALPHA
        assert np.mean(wilson_misses(successes, rate).any(axis=1)) > 4 * ALPHA


def wilson_misses(successes: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.bool_]:
    """Where the Wilson interval of level 1 - ALPHA lacks `rate`: |S - tp| > z sqrt(t p (1-p))."""
    missed: npt.NDArray[np.bool_] = np.abs(successes - LOOKS * rate) > 1.959964 * np.sqrt(LOOKS * rate * (1 - rate))
    return missed


def detector(baseline: float = 0.02, run_length: int = 1_000_000) -> RateDetector:
    return RateDetector(baseline_rate=baseline, run_length_tweets=run_length)


class TestRateDetector:
    def test_starts_without_evidence(self) -> None:
        assert detector().log_evidence == -math.inf
        assert not detector().alarmed

    @pytest.mark.parametrize("batch", [1, 3, 20])
    def test_false_alarms_are_no_more_frequent_than_stated(self, batch: int) -> None:
        rng = np.random.default_rng(7)
        run_length = 300
        lengths = [tweets_to_alarm(rng, detector(0.05, run_length), 0.05, batch, 20_000) for _ in range(200)]
        assert np.mean(lengths) >= run_length
        if batch == 1:  # and the bound is not kept by never raising an alarm
            assert np.mean(lengths) < 3 * run_length

    def test_a_lower_rate_alarms_less(self) -> None:
        rng = np.random.default_rng(8)
        at = [tweets_to_alarm(rng, detector(0.05, 300), 0.05, 1, 5_000) for _ in range(50)]
        below = [tweets_to_alarm(rng, detector(0.05, 300), 0.01, 1, 5_000) for _ in range(50)]
        assert np.mean(below) > 2 * np.mean(at)

    def test_finds_a_tenfold_rate_soon_even_after_a_long_calm(self) -> None:
        rng = np.random.default_rng(9)
        delays = []
        for _ in range(100):
            calm = detector(0.01)
            for _ in range(100):
                calm = calm.update(100, int(rng.binomial(100, 0.01)))
            assert not calm.alarmed
            delays.append(tweets_to_alarm(rng, calm, 0.1, 20, 10_000))
        assert np.mean(delays) < 250
        assert max(delays) < 600

    def test_the_e_value_has_mean_one_at_the_baseline_and_less_below(self) -> None:
        # Exactly, over all outcomes of a batch: the first update from zero evidence is the size times the e-value.
        assert mean_e_value(baseline=0.05, rate=0.05, size=5) == pytest.approx(1.0)
        assert mean_e_value(baseline=0.05, rate=0.02, size=5) < 0.9
        assert mean_e_value(baseline=0.05, rate=0.06, size=5) > 1.1

    def test_it_is_the_shiryaev_roberts_recursion(self) -> None:
        baseline, batches = 0.1, [(5, 1), (3, 3), (0, 0), (8, 0), (2, 1)]
        odds = [ratio * baseline / (1 - baseline) for ratio in ODDS_RATIOS]
        alternatives = [each / (1 + each) for each in odds]
        evidence, watched = [0.0] * len(alternatives), detector(baseline)
        for tweets, diverging in batches:
            watched = watched.update(tweets, diverging)
            if tweets:
                evidence = [
                    (before + tweets) * (q / baseline) ** diverging * ((1 - q) / (1 - baseline)) ** (tweets - diverging)
                    for before, q in zip(evidence, alternatives, strict=True)
                ]
            assert math.exp(watched.log_evidence) == pytest.approx(np.mean(evidence))

    @given(
        st.floats(1e-6, 0.999),
        st.integers(1, 10**12),
        st.lists(counts(most=10**9), max_size=20),
    )
    def test_never_overflows(self, baseline: float, run_length: int, batches: list[tuple[int, int]]) -> None:
        watched = detector(baseline, run_length)
        for diverging, tweets in batches:
            watched = watched.update(tweets, diverging)
            assert all(0.0 <= value < math.inf for value in watched.evidence)
            assert watched.log_evidence <= math.log(run_length) + math.log(1e6) + 1e-6
        assert msgspec.json.decode(msgspec.json.encode(watched), type=RateDetector) == watched

    def test_recovers_in_bounded_time_however_long_it_was_bad(self) -> None:
        watched = detector().update(10**9, 10**9)
        seen = [watched.alarmed]
        for _ in range(20):
            watched = watched.update(100, 0)
            seen.append(watched.alarmed)
        assert (seen[0], seen[-1]) == (True, False)

    def test_update_leaves_the_detector_as_it_was(self) -> None:
        before = detector()
        after = before.update(10, 10)
        assert before == detector()
        assert after != before

    def test_an_empty_batch_changes_nothing(self) -> None:
        watched = detector().update(10, 1)
        assert watched.update(0, 0) == watched

    @pytest.mark.parametrize(("tweets", "diverging"), [(1, 2), (1, -1), (-1, 0)])
    def test_refuses_impossible_counts(self, tweets: int, diverging: int) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            detector().update(tweets, diverging)

    @pytest.mark.parametrize(("baseline", "run_length"), [(0.0, 10), (1.0, 10), (0.5, 0)])
    def test_refuses_impossible_settings(self, baseline: float, run_length: int) -> None:
        with pytest.raises(ValueError, match=r"lies between|at least"):
            detector(baseline, run_length)


def mean_e_value(baseline: float, rate: float, size: int) -> float:
    """The mean of a batch's e-value where each of its `size` tweets diverges with `rate`; small sizes meet no cap."""
    outcomes = range(size + 1)
    pmf = [math.comb(size, k) * rate**k * (1 - rate) ** (size - k) for k in outcomes]
    return sum(pmf[k] * math.exp(detector(baseline).update(size, k).log_evidence) / size for k in outcomes)


def tweets_to_alarm(rng: np.random.Generator, watched: RateDetector, rate: float, batch: int, most: int) -> int:
    """Tweets until the alarm, at most `most` (which makes the mean smaller, so a lower bound stays one)."""
    tweets = 0
    while tweets < most and not watched.alarmed:
        watched = watched.update(batch, int(rng.binomial(batch, rate)))
        tweets += batch
    return tweets
