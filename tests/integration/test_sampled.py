"""Sampled mode, one replica on the embedded broker: all is published, a sample is compared, and it is a fair one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.conftest import ModelFolder
from tests.support.models import POSITIONS
from tests.support.observed import item
from tests.support.replicas import committed, lines, produce, published, running_replica, wait_until
from twinlens import records
from twinlens.audit import Report, audit
from twinlens.broker import topics
from twinlens.monitor.state import State
from twinlens.monitor.statistics import RateDetector, confidence_sequence
from twinlens.records import PredictionMode, PredictionRecord
from twinlens.replica.replica import Replica
from twinlens.replica.sampling import sampled
from twinlens.settings import Settings

FIRST, SAMPLED = 100, 1_000  #: tweets in full mode, then tweets in sampled mode
SHARE = 0.2
CUT = 16  #: tokens that the pipeline sees; the raw path sees all


@dataclass(frozen=True)
class Run:
    """What became of the tweets. Names are fixed, so the sample is the same at each run."""

    settings: Settings
    predictions: list[PredictionRecord]
    divergences: list[records.DivergenceRecord]
    state: State
    report: Report

    @property
    def sampled_mode(self) -> list[PredictionRecord]:
        """Those of the tweets that came in sampled mode."""
        return [each for each in self.predictions if int(each.id) >= FIRST]


@pytest.fixture(scope="module")
def run(broker: str, model_folder: ModelFolder) -> Run:
    """1,100 real tweets, the first 100 in full mode; shared by the tests below, which only read."""
    name = "sampled-tweets"
    kafka = {"bootstrap_servers": broker, "session_timeout_ms": 2000}
    predict = {"max_length": CUT, "top_k": 3}
    settings = Settings.load(
        {
            "application": name,
            "kafka": kafka,
            "topics": {"input": name},
            "predict": predict,
            "raw": {"model": str(model_folder())},
        }
    )
    topics.create(settings, 2, 1)
    stream = [(str(n).encode(), json.dumps({"id": str(n), "text": text(n)}).encode(), []) for n in range(1_100)]
    with running_replica(settings) as replica:
        produce(settings, stream[:FIRST])
        wait_until(lambda: committed(settings, replica) >= FIRST, "those in full mode")
        changed = settings.predict.model_copy(update={"mode": "sampled", "sample_share": SHARE})
        replica.reconfigure(settings.batching, settings.raw, changed)
        produce(settings, stream[FIRST:])
        wait_until(lambda: committed(settings, replica) >= len(stream), "those in sampled mode")
    found = published(settings, "predictions", "divergences", "comparisons")
    state = State(application=name, detector=RateDetector(baseline_rate=0.5, run_length_tweets=10**6))
    for raw in found["comparisons"]:
        state.fold(records.decode_comparison(raw.value))
    return Run(
        settings,
        [records.decode_prediction(raw.value) for raw in found["predictions"]],
        [records.decode_divergence(raw.value) for raw in found["divergences"]],
        state,
        audit(settings),
    )


def text(number: int) -> str:
    return str(json.loads(lines()[number])["text"])


@pytest.fixture(scope="module")
def stock(model_folder: ModelFolder) -> tuple[list[Any], list[Any]]:
    """Answers of the stock pipeline on the 1,000 tweets: on the whole text, and cut."""
    model = AutoModelForSequenceClassification.from_pretrained(model_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    classify = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, top_k=3, truncation=True, max_length=POSITIONS
    )
    texts = [text(number) for number in range(FIRST, FIRST + SAMPLED)]
    return classify(texts, batch_size=8), classify(texts, batch_size=8, max_length=CUT)


def is_sampled(prediction: PredictionRecord, application: str) -> bool:
    source = prediction.source
    tweet = item(source.offset, partition=source.partition)
    tweet.topic = source.topic
    return bool(sampled([tweet], application, SHARE)[0])


def test_every_tweet_is_in_both_topics(run: Run) -> None:
    assert run.report.clean
    assert run.report.consumed == run.report.published == FIRST + SAMPLED
    assert sorted(int(each.id) for each in run.predictions) == list(range(FIRST + SAMPLED))


def test_predictions_are_made_as_the_sampling_says(run: Run) -> None:
    modes = {int(each.id): each.mode for each in run.predictions}
    assert {modes[number] for number in range(FIRST)} == {PredictionMode.PIPELINE}
    for each in run.sampled_mode:
        expected = PredictionMode.PIPELINE if is_sampled(each, run.settings.application) else PredictionMode.DERIVED
        assert each.mode is expected
    derived = sum(each.mode is PredictionMode.DERIVED for each in run.sampled_mode)
    assert 0.7 * SAMPLED < derived < 0.9 * SAMPLED
    assert run.report.derived == run.state.total.derived == derived


def test_answers_are_those_of_the_stock_pipeline(run: Run, stock: tuple[list[Any], list[Any]]) -> None:
    """Derived ones on what the raw path saw, the others on what the pipeline was given."""
    whole, cut = stock
    assert len(run.sampled_mode) == SAMPLED
    for each in run.sampled_mode:
        answer = (whole if each.mode is PredictionMode.DERIVED else cut)[int(each.id) - FIRST]
        assert (each.label, each.score) == (answer[0]["label"], pytest.approx(answer[0]["score"], abs=1e-5))
        assert [entry.label for entry in each.scores or []] == [entry["label"] for entry in answer]
        np.testing.assert_allclose(
            [entry.score for entry in each.scores or []], [entry["score"] for entry in answer], atol=1e-5, rtol=0
        )


def test_counts_are_those_of_the_audit(run: Run) -> None:
    tally, report = run.state.total.tally, run.report
    assert tally.tweets == FIRST + sum(is_sampled(each, run.settings.application) for each in run.sampled_mode)
    assert (tally.label, tally.score, tally.one_sided) == (
        report.label_divergences,
        report.score_divergences,
        report.one_sided,
    )
    assert report.diverging == report.monitor_diverging == len(run.divergences) > 100
    assert report.monitor_tweets == run.state.total.published == FIRST + SAMPLED
    assert run.state.overlapping_tweets == run.state.repeated == 0


def test_the_sampled_rate_is_that_of_full_mode(run: Run, stock: tuple[list[Any], list[Any]]) -> None:
    """Full mode finds the divergences of all tweets, the sample those of its own; its interval covers the full rate."""
    full = {FIRST + index for index, answers in enumerate(zip(*stock, strict=True)) if diverges(*answers)}
    compared = {int(each.id) for each in run.sampled_mode if each.mode is PredictionMode.PIPELINE}
    found = {int(each.id) for each in run.divergences if int(each.id) >= FIRST}
    assert found == full & compared
    low, high = confidence_sequence(len(found), len(compared))
    assert low < len(full) / SAMPLED < high
    assert high - low < 0.25


def diverges(whole: list[dict[str, Any]], cut: list[dict[str, Any]]) -> bool:
    return whole[0]["label"] != cut[0]["label"] or abs(whole[0]["score"] - cut[0]["score"]) > 0.005


def test_two_models_cannot_become_sampled() -> None:
    settings = Settings.load({"predict": {"revision": "other"}})
    replica: Any = SimpleNamespace(_settings=settings)  # it refuses before it needs more
    with pytest.raises(ValueError, match="same model and revision"):
        Replica.reconfigure(
            replica, settings.batching, settings.raw, settings.predict.model_copy(update={"mode": "sampled"})
        )
