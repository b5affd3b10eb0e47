"""Sampled mode: the sample is a fair one, and derived predictions are not mixed up with compared ones."""

from __future__ import annotations

import hashlib
import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.observed import BROKEN, DISPATCH, item, items_of, observed
from twinlens.monitor.statistics import confidence_sequence
from twinlens.paths.derive import derive
from twinlens.paths.observations import Batch
from twinlens.records import (
    Cause,
    PredictionMode,
    PredictionRecord,
    Tally,
    Verdict,
    decode_comparison,
    decode_divergence,
    decode_prediction,
)
from twinlens.replica.counting import ComparedWindow
from twinlens.replica.outputs import OutputWriter
from twinlens.replica.sampling import sampled
from twinlens.settings import Settings
from twinlens.verdict.compare import compare
from twinlens.window.window import Window

TWEETS = items_of([""] * 5_000)
APPLICATIONS = [f"application-{number}" for number in range(20)]


def binomial_bounds(trials: int, share: float, alpha: float = 1e-4) -> tuple[int, int]:
    """Counts (low, high) that Binomial(trials, share) leaves with probability <= alpha, by its exact distribution."""
    at_most, counts = 0.0, []
    for count in range(trials + 1):
        at_most += comb(trials, count) * share**count * (1 - share) ** (trials - count)
        if alpha / 2 < at_most:
            counts.append(count)
        if at_most >= 1 - alpha / 2:
            break
    return counts[0], counts[-1]


class TestSampling:
    @pytest.mark.parametrize("share", [0.05, 0.2])
    @pytest.mark.parametrize("application", APPLICATIONS)
    def test_the_share_is_that_of_independent_draws(self, application: str, share: float) -> None:
        chosen = sampled(TWEETS[:1_000], application, share)
        low, high = binomial_bounds(1_000, share)
        assert low <= int(chosen.sum()) <= high
        # Neighbours are no more often chosen together than chance has it.
        low, high = binomial_bounds(500, share**2)
        assert low <= int((chosen[0::2] & chosen[1::2]).sum()) <= high

    @given(st.lists(st.integers(0, 400), max_size=8), st.integers(0, 19))
    def test_it_does_not_depend_on_how_windows_are_cut(self, cuts: list[int], number: int) -> None:
        tweets = [item(offset, partition=offset % 3) for offset in range(400)]
        ends = [0, *sorted(cuts), 400]
        windows = [tweets[start:end] for start, end in itertools.pairwise(ends)]
        parts = [sampled(window, APPLICATIONS[number], 0.1) for window in windows]
        assert np.concatenate(parts).tolist() == sampled(tweets, APPLICATIONS[number], 0.1).tolist()

    def test_it_is_what_is_documented_and_stays_so(self) -> None:
        """A window may be redone by a replica of a later version."""
        chosen = np.flatnonzero(sampled(TWEETS[:120], "twinlens", 0.05)).tolist()
        by_hand = [
            offset
            for offset in range(120)
            if int(hashlib.blake2b(f"twinlens/tweets/0/{offset}".encode(), digest_size=8).hexdigest(), 16) / 2**64
            < 0.05
        ]
        assert chosen == by_hand == [50, 60, 93, 114, 117]

    def test_a_larger_share_takes_the_same_tweets_and_more(self) -> None:
        small, large = (sampled(TWEETS, "twinlens", share) for share in (0.05, 0.06))
        assert (large & small).tolist() == small.tolist()
        assert large.sum() > small.sum()

    def test_everything_counts_application_topic_and_partition(self) -> None:
        one = sampled(TWEETS[:500], "a", 0.5)
        others = [sampled(TWEETS[:500], "b", 0.5), sampled([item(n, partition=1) for n in range(500)], "a", 0.5)]
        for other in others:
            low, high = binomial_bounds(500, 0.5)
            assert low <= int((one != other).sum()) <= high

    def test_a_share_of_one_is_every_tweet_and_none_of_none(self) -> None:
        assert sampled(TWEETS, "a", 1.0).all()
        assert sampled([], "a", 0.5).shape == (0,)

    def test_the_rate_of_a_sample_is_unbiased_and_its_interval_covers(self) -> None:
        """300 applications sample the same 1,000 tweets, of which the first 60 diverge."""
        tweets, truth = TWEETS[:1_000], 0.06
        rates, covered = [], 0
        for number in range(300):
            chosen = sampled(tweets, f"seed-{number}", 0.2)
            diverging, compared = int(chosen[:60].sum()), int(chosen.sum())
            low, high = confidence_sequence(diverging, compared)
            rates.append(diverging / compared)
            covered += low <= truth <= high
        deviation_of_the_mean = float(np.std(rates)) / np.sqrt(len(rates))
        assert abs(np.mean(rates) - truth) < 4 * deviation_of_the_mean
        assert covered >= 0.95 * len(rates)


UP, DOWN = [-1.0, 0.0, 2.0], [2.0, 0.0, -1.0]


def sampled_window(top_k: int | None = None) -> ComparedWindow:
    """Six tweets of two partitions. The pipeline ran on rows 0 to 2, of which 1 diverges; the raw path raised on 5."""
    tweets = [item(offset, partition=partition) for partition in (0, 1) for offset in range(3)]
    raw = observed([UP] * 6, failed=(5,), batches=[Batch(6, 16, 0.1)])
    predict = observed([UP, DOWN, UP, UP, UP, UP], batches=[Batch(3, 8, 0.1)], function="sigmoid", top_k=top_k)
    for columns in (predict.scores, predict.logits):
        columns[3:] = np.nan
    predict.top[3:] = predict.batch_of[3:] = -1
    derive(raw, predict, np.array([3, 4, 5]))
    window = Window(1, tweets, {("tweets", 0): 0, ("tweets", 1): 0}, DISPATCH)
    comparison = compare(raw, predict, 1.0)
    return ComparedWindow(window, raw, predict, comparison, {1: Cause.POST_PROCESSING}, 0.1, {})


def predictions(done: ComparedWindow) -> list[PredictionRecord]:
    outgoing = OutputWriter(Settings.load({}), "r").records(done, now_ms=1)
    return [decode_prediction(record.value or b"") for record in outgoing if record.topic == "tweets.predictions"]


def test_derived_tweets_have_no_verdict_and_no_delta() -> None:
    done = sampled_window()
    agree = Verdict.AGREE
    assert done.comparison.verdicts == [agree, Verdict.LABEL, agree, None, None, None]
    assert done.comparison.diverging == [1]
    assert np.isnan(done.comparison.score_delta).tolist() == [False] * 3 + [True] * 3
    assert np.isnan(done.comparison.logits_delta).tolist() == [False] * 3 + [True] * 3


def test_only_compared_tweets_are_in_the_rates_and_all_are_published() -> None:
    done = sampled_window()
    outgoing = OutputWriter(Settings.load({}), "r").records(done, now_ms=1)
    first, second = (decode_comparison(r.value or b"") for r in outgoing if r.topic == "tweets.comparisons")
    assert (first.tally, first.derived, first.published) == (Tally(tweets=3, label=1), 0, 3)
    assert (second.tally, second.derived, second.published) == (Tally(), 3, 3)
    assert sum(first.score_delta.values()) == 3
    assert sum(map(len, (second.score_delta, second.labels, second.by_length, second.causes))) == 0
    assert sum(first.latency_s.values()) == sum(second.latency_s.values()) == 3
    assert [decode_divergence(r.value or b"").source.offset for r in outgoing if r.topic == "tweets.divergences"] == [1]
    assert sum(r.topic == "tweets.logits" for r in outgoing) == 6


def test_a_prediction_says_how_it_was_made() -> None:
    done = sampled_window()
    found = predictions(done)
    assert [each.mode for each in found] == [PredictionMode.PIPELINE] * 3 + [PredictionMode.DERIVED] * 3
    sizes = [(each.batch.size, each.batch.padded_tokens) if each.batch else None for each in found]
    assert sizes == [(3, 8)] * 3 + [(6, 16)] * 2 + [None], "a derived one has the raw path's batch"
    scores = 1 / (1 + np.exp(-np.float32(2)))  # the predict path's function, not the raw path's
    assert [(each.label, each.score) for each in found[3:]] == [("positive", pytest.approx(scores))] * 2 + [
        (None, None)
    ]
    assert [each.error for each in found] == [None] * 5 + [BROKEN], "the raw path's error"


def test_all_scores_of_derived_predictions_on_request() -> None:
    found = predictions(sampled_window(top_k=2))[3:]
    answers = [[entry.label for entry in each.scores or []] for each in found]
    assert answers == [["positive", "neutral"]] * 2 + [[]]
