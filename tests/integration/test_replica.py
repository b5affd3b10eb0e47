"""One replica in this process against the embedded broker: what is published is what the two paths say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.support.replicas import (
    DEADLINE_S,
    committed,
    is_unwell,
    lines,
    produce,
    published,
    run_through,
    running_replica,
    wait_until,
)
from twinlens import records
from twinlens.audit import audit
from twinlens.monitor.state import State
from twinlens.monitor.statistics import RateDetector
from twinlens.paths.predict import PredictPath
from twinlens.replica.report import WindowReport
from twinlens.settings import DEMO_MODEL, IntakeSettings, PredictSettings, Settings
from twinlens.window.backlog import Candidates
from twinlens.window.item import Item
from twinlens.window.window import Reason

NewSettings = Callable[..., Settings]


class Streamed(NamedTuple):
    """Tweets that went through a replica, and what it published of them."""

    settings: Settings
    tweets: list[dict[str, Any]]
    found: dict[str, list[Any]]


TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


@pytest.fixture(scope="module", params=[500, pytest.param(2_000, marks=pytest.mark.slow)])
def streamed(request: pytest.FixtureRequest, broker: str) -> Streamed:
    """So many real tweets through one replica with the shipped model; shared by the tests below, which only read."""
    from twinlens.broker import topics

    name = f"streamed-{request.param}"
    kafka = {"bootstrap_servers": broker, "session_timeout_ms": 2000}
    settings = Settings.load({"application": name, "kafka": kafka, "topics": {"input": name}})
    topics.create(settings, 2, 1)
    stream = lines(request.param)
    produce(settings, [(str(i).encode(), line, [TRACE, ("n", b"1")]) for i, line in enumerate(stream)])
    return Streamed(settings, [json.loads(line) for line in stream], run_through(settings, len(stream)))


def by_id(found: list[Any], decode: Callable[[bytes], Any]) -> dict[str, Any]:
    decoded = {record.id: record for record in (decode(raw.value) for raw in found)}
    assert len(decoded) == len(found)
    return decoded


def test_published_logits_are_those_of_plain_transformers(streamed: Streamed) -> None:
    found = streamed.found
    logits = by_id(found["logits"], records.decode_logits)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    for tweet in streamed.tweets:
        with torch.inference_mode():
            alone = model(**tokenizer(tweet["text"], truncation=True, return_tensors="pt")).logits[0].numpy()
        record = logits[tweet["id"]]
        np.testing.assert_allclose(record.logits, alone, atol=1e-5, rtol=0)
        assert record.labels == ["negative", "neutral", "positive"]
        assert record.token_count == len(tokenizer(tweet["text"], truncation=True)["input_ids"])


def test_published_predictions_are_those_of_the_stock_pipeline(streamed: Streamed) -> None:
    found = streamed.found
    predictions = by_id(found["predictions"], records.decode_prediction)
    model = AutoModelForSequenceClassification.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(DEMO_MODEL))
    for tweet in streamed.tweets:
        answer = classify(tweet["text"], truncation=True)[0]
        record = predictions[tweet["id"]]
        assert record.label == answer["label"]
        assert record.score == pytest.approx(answer["score"], abs=1e-5)


def test_keys_headers_and_partitions_pass_through(streamed: Streamed) -> None:
    found = streamed.found
    for name, decode in (("logits", records.decode_logits), ("predictions", records.decode_prediction)):
        assert len(found[name]) == len(streamed.tweets)
        last: dict[int, int] = {}
        for raw in found[name]:
            record = decode(raw.value)
            assert (raw.key.decode(), raw.partition) == (record.id, record.source.partition)
            assert list(raw.headers) == [TRACE, ("n", b"1")]
            assert record.source.offset > last.get(raw.partition, -1), "not in the order of the input"
            last[raw.partition] = record.source.offset


def test_audit_finds_nothing_missing_and_agrees_with_the_fold(streamed: Streamed) -> None:
    settings, tweets, found = streamed
    report = audit(settings)
    assert report.clean
    assert (report.consumed, report.published, report.dead_lettered) == (len(tweets), len(tweets), 0)
    state = State(application=settings.application, detector=RateDetector(baseline_rate=0.02, run_length_tweets=10**6))
    for raw in found["comparisons"]:
        state.fold(records.decode_comparison(raw.value))
    assert state.repeated == 0
    tally = state.total.tally
    assert (tally.tweets, tally.label, tally.score) == (len(tweets), report.label_divergences, report.score_divergences)


def test_divergences_are_published_with_their_cause_and_equal_the_audits(new_settings: NewSettings) -> None:
    settings = new_settings(predict={"max_length": 16})
    count = produce(settings, [(None, line, []) for line in lines(300)])
    found = run_through(settings, count)
    diverging = [records.decode_divergence(raw.value) for raw in found["divergences"]]
    report = audit(settings)
    assert report.diverging == len(diverging) > 50
    assert report.monitor_diverging == report.diverging
    assert {record.cause for record in diverging} == {records.Cause.TRUNCATION}
    assert all(record.predict.token_count == 16 and record.predict.truncated for record in diverging)
    assert all(record.raw.ids_digest != record.predict.ids_digest for record in diverging)


ODD: list[tuple[bytes | None, str]] = [
    (b"\xff\xfe", "not_utf8"),
    (b"not json", "not_json"),
    (b"[1, 2]", "not_an_object"),
    (b'{"id": "1"}', "no_text_field"),
    (b'{"text": 7}', "text_not_a_string"),
    (b"", "empty_value"),
    (None, "tombstone"),
    (b'{"text": "\\ud800"}', "lone_surrogate"),
    (json.dumps({"text": "x" * 1_000_000}).encode(), "text_too_long"),
    (b'{"text": ""}', "result"),
    (b'{"text": "a [SEP] b [CLS]"}', "result"),
    (json.dumps({"text": "long text " * 1_000}).encode(), "result"),
    (b'{"text": "a \x00 b"}', "not_json"),  # JSON wants control characters escaped
    (json.dumps({"text": "\U0001f600 \u0000 \u202e"}).encode(), "result"),
]


def test_every_kind_of_bad_input_has_its_answer_and_the_stream_goes_on(new_settings: NewSettings) -> None:
    settings = new_settings(partitions=1)
    good = lines(20)
    stream = [(b"k%d" % i, value, [("h", b"v")]) for i, (value, _) in enumerate(ODD)]
    count = produce(settings, [*stream, *((None, line, []) for line in good)])
    found = run_through(settings, count)
    answers = dict.fromkeys(range(len(ODD)), "nothing")
    for raw in found["dlq"]:
        headers = dict(raw.headers)
        offset = int(headers["twinlens.source.offset"])
        answers[offset] = headers["twinlens.reason"].decode()
        value = ODD[offset][0]
        assert (raw.key, raw.value, headers["h"]) == (b"k%d" % offset, value, b"v"), "the original is untouched"
    for raw in found["logits"]:
        record = records.decode_logits(raw.value)
        if record.source.offset in answers:
            assert record.error is None
            answers[record.source.offset] = "result"
    assert list(answers.values()) == [answer for _, answer in ODD]
    assert len(found["logits"]) == len(found["predictions"]) == count - len(found["dlq"])
    report = audit(settings)
    assert report.clean
    assert report.dead_lettered == len(found["dlq"])


def test_a_tombstone_without_a_key_is_a_dead_letter_too(new_settings: NewSettings) -> None:
    # Kafka's producers refuse a record with neither key nor value, other clients' records can have neither.
    from twinlens.errors import RefusalReason, RefuseRecord
    from twinlens.replica.outputs import OutputWriter

    settings = new_settings()
    refusal = RefuseRecord(RefusalReason.TOMBSTONE, "null")
    item = Item(settings.topics.input, 0, 5, 0, None, [], 0, refusal=refusal)
    record = OutputWriter(settings, "r").dead_letter(item, now_ms=1)
    assert (record.key, record.value) == (None, b"")


def test_a_text_that_breaks_a_path_leaves_its_neighbours_alone(new_settings: NewSettings) -> None:
    settings = new_settings(partitions=1, raw={"model": DEMO_MODEL}, predict={"truncation": False})
    too_long = json.dumps({"id": "long", "text": "word " * 500}).encode()
    stream = [*lines(30), too_long, *lines(30)]
    found = run_through(settings, produce(settings, [(None, value, []) for value in stream]))
    predictions = [records.decode_prediction(raw.value) for raw in found["predictions"]]
    assert [record.id for record in predictions if record.error is not None] == ["long"]
    divergences = [records.decode_divergence(raw.value) for raw in found["divergences"]]
    assert [(d.id, d.verdict, d.cause) for d in divergences] == [("long", "one_sided", "truncation")]
    assert len(found["logits"]) == len(stream)
    assert audit(settings).one_sided == 1


def test_at_least_once_publishes_and_commits(new_settings: NewSettings) -> None:
    settings = new_settings(output={"delivery": "at_least_once"})
    count = produce(settings, [(None, line, []) for line in lines(200)])
    found = run_through(settings, count)
    assert len(found["logits"]) == len(found["predictions"]) == count


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_input_may_be_compressed(new_settings: NewSettings, compression: str) -> None:
    from kafka.codec import has_gzip, has_lz4, has_snappy, has_zstd

    from twinlens.broker.client import new_producer

    assert {"gzip": has_gzip, "snappy": has_snappy, "lz4": has_lz4, "zstd": has_zstd}[compression]()
    settings = new_settings(partitions=1)
    producer = new_producer(settings.kafka, compression_type=compression, linger_ms=50)
    for line in lines(50):
        producer.send(settings.topics.input, line)
    producer.close(timeout=10)
    assert len(run_through(settings, 50)["logits"]) == 50


def test_the_audit_counts_records_that_are_none_of_twinlens(new_settings: NewSettings) -> None:
    settings = new_settings(partitions=1)
    found = run_through(settings, produce(settings, [(None, line, []) for line in lines(5)]))
    assert len(found["logits"]) == 5
    elsewhere = settings.model_copy(
        update={"topics": settings.topics.model_copy(update={"input": settings.topics.logits})}
    )
    produce(elsewhere, [(b"k", b"not json", []), (b"k", b"{}", []), (b"k", None, [])])
    report = audit(settings)
    assert report.clean
    assert (report.published, report.unreadable) == (5, 3)


def test_cls_vector_and_all_scores_are_published_on_request(new_settings: NewSettings) -> None:
    settings = new_settings(raw={"model": DEMO_MODEL, "publish_cls": True}, predict={"top_k": 3})
    count = produce(settings, [(None, line, []) for line in lines(10)])
    found = run_through(settings, count)
    for raw in found["logits"]:
        assert len(records.decode_logits(raw.value).cls or []) == 384
    for raw in found["predictions"]:
        record = records.decode_prediction(raw.value)
        assert record.scores is not None
        assert [entry.score for entry in record.scores] == sorted((e.score for e in record.scores), reverse=True)
        assert (record.scores[0].label, record.scores[0].score) == (record.label, record.score)


def test_limits_change_while_it_runs_and_no_record_is_dropped(new_settings: NewSettings) -> None:
    settings = new_settings(partitions=1)
    reports: list[WindowReport] = []
    with running_replica(settings, observe=reports.append) as replica:
        first = produce(settings, [(None, line, []) for line in lines(200)])
        wait_until(lambda: committed(settings, replica) >= first, "the first half")
        wait_until(lambda: sum(report.tweets for report in reports) == first, "all of it observed")
        batching = settings.batching.model_copy(update={"max_window_items": 20, "latency_objective_ms": 1e9})
        raw, predict = (path.model_copy(update={"max_batch_items": 5}) for path in (settings.raw, settings.predict))
        replica.reconfigure(batching, raw, predict)
        before = len(reports)
        both = first + produce(settings, [(None, line, []) for line in lines(200)])
        wait_until(lambda: committed(settings, replica) >= both, "the second half")
        for changed in ({"max_length": 8}, {"model": "another"}):
            with pytest.raises(ValueError, match="only max_batch_items and max_batch_tokens"):
                replica.reconfigure(batching, settings.raw.model_copy(update=changed), predict)
        too_many = batching.model_copy(update={"max_window_items": settings.intake.max_buffered_items + 1})
        with pytest.raises(ValueError, match="max_buffered_items"):
            replica.reconfigure(too_many, raw, predict)
    assert audit(settings).clean
    after = reports[before:]
    assert sum(report.tweets for report in after) == 200
    assert max(report.tweets for report in after) == 20
    assert Reason.FULL in {report.dispatch.reason for report in after}
    for name, decode in (("logits", records.decode_logits), ("predictions", records.decode_prediction)):
        batches = [decode(raw.value).batch for raw in published(settings, name)[name]]
        assert all(batch is not None for batch in batches)
        assert max(batch.size for batch in batches[:first]) > 5
        assert max(batch.size for batch in batches[first:]) == 5


def test_reconfigure_changes_the_pipeline_from_the_next_window_on(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change comes while compute waits for that window."""
    settings = new_settings()
    changes: list[PredictSettings] = []
    with running_replica(settings) as replica:
        waiting = replica.parts.backlog
        candidates = waiting.candidates

        def look_and_change(max_items: int, timeout_s: float) -> Candidates:
            found = candidates(max_items, timeout_s)
            if changes and found.items:
                replica.reconfigure(settings.batching, settings.raw, changes.pop())
            return found

        monkeypatch.setattr(waiting, "candidates", look_and_change)
        first = produce(settings, [(None, line, []) for line in lines(100)])
        wait_until(lambda: committed(settings, replica) >= first, "the first half")
        changes.append(settings.predict.model_copy(update={"max_length": 8}))
        both = first + produce(settings, [(None, line, []) for line in lines(100)])
        wait_until(lambda: committed(settings, replica) >= both, "the second half")
        with pytest.raises(ValueError, match="deploy anew"):
            replica.reconfigure(
                settings.batching, settings.raw, settings.predict.model_copy(update={"dtype": "bfloat16"})
            )
    report = audit(settings)
    assert report.clean
    assert report.published == both
    assert report.diverging > 20
    found = [records.decode_prediction(raw.value) for raw in published(settings, "predictions")["predictions"]]
    assert sum(each.batch.padded_tokens > 8 for each in found if each.batch) <= first, "a later window was not changed"


def test_the_intake_goes_on_while_a_change_of_settings_loads(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers and pipelines take a while to load; the backlog must not be locked meanwhile."""
    settings = new_settings(partitions=1)
    loading, go_on, reconfigure = threading.Event(), threading.Event(), PredictPath.reconfigure

    def load_slowly(path: PredictPath, predict: PredictSettings) -> None:
        loading.set()
        assert go_on.wait(DEADLINE_S)
        reconfigure(path, predict)

    with running_replica(settings) as replica:
        sent = produce(settings, [(None, line, []) for line in lines(1)])
        wait_until(lambda: committed(settings, replica) == sent, "the first tweet")
        monkeypatch.setattr(PredictPath, "reconfigure", load_slowly)
        shorter = settings.predict.model_copy(update={"max_length": 8})
        replica.reconfigure(settings.batching, settings.raw, shorter)
        assert loading.wait(DEADLINE_S)
        sent += produce(settings, [(None, line, []) for line in lines(20)])
        try:
            wait_until(lambda: replica.parts.backlog.items == 20, "they wait in the backlog")
        finally:
            go_on.set()
        wait_until(lambda: committed(settings, replica) == sent, "all of them")


def test_a_second_replica_goes_on_where_the_first_one_stopped(new_settings: NewSettings) -> None:
    settings = new_settings(partitions=4)
    half = produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(400))])
    with running_replica(settings, "replica-a") as first:
        wait_until(lambda: committed(settings, first) >= half, "the first half")
    total = half + produce(settings, [(str(i).encode(), line, []) for i, line in enumerate(lines(400))])
    with running_replica(settings, "replica-b") as second:
        wait_until(lambda: committed(settings, second) >= total, "the second half")
    found = [records.decode_comparison(raw.value) for raw in published(settings, "comparisons")["comparisons"]]
    tweets = {name: sum(r.tally.tweets for r in found if r.replica == name) for name in ("replica-a", "replica-b")}
    assert tweets == {"replica-a": half, "replica-b": total - half}
    assert audit(settings).clean


def test_stop_commits_the_window_in_hand(new_settings: NewSettings) -> None:
    settings = new_settings(batching={"max_window_items": 64, "latency_objective_ms": 50})
    produce(settings, [(None, line, []) for line in lines()])
    with running_replica(settings) as replica:
        wait_until(lambda: committed(settings, replica) > 0, "the first commit")
    report = audit(settings)
    assert report.clean, "a window was published without its offsets, or the other way round"
    assert 0 < report.published < len(lines())
    assert len(published(settings, "logits")["logits"]) == report.published


def test_an_aborted_window_is_read_again(new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinlens.broker.publisher import TransactionalPublisher
    from twinlens.errors import RedoWindow

    settings = new_settings(batching={"max_window_items": 50})
    real = TransactionalPublisher.publish
    failures = iter([True, False, True, True])

    def sometimes(self: Any, *arguments: Any) -> None:
        if next(failures, False):
            raise RedoWindow("the broker said no")
        real(self, *arguments)

    monkeypatch.setattr(TransactionalPublisher, "publish", sometimes)
    count = produce(settings, [(None, line, []) for line in lines(300)])
    run_through(settings, count)
    report = audit(settings)
    assert report.clean
    assert report.published == count


def test_a_window_of_refused_records_only_whatever_the_pipeline_does_with_long_texts(new_settings: NewSettings) -> None:
    settings = new_settings(predict={"truncation": False})
    count = produce(settings, [(None, b"not JSON", [])] * 3)
    run_through(settings, count)
    report = audit(settings)
    assert report.clean
    assert report.dead_lettered == count


def test_a_dead_thread_fails_the_health_check(new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinlens.errors import ReplaceReplica
    from twinlens.paths.raw import RawPath

    def broken(*_: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(RawPath, "begin", broken)
    settings = new_settings()
    produce(settings, [(None, line, []) for line in lines(5)])
    with running_replica(settings) as replica:
        wait_until(lambda: is_unwell(replica), "the health check fails")
        with pytest.raises(ReplaceReplica, match=r"compute thread died.*no more"):
            replica.check_health()


def test_a_call_to_kafka_that_does_not_return_fails_the_health_check(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twinlens.errors import ReplaceReplica

    with running_replica(new_settings(output={"commit_deadline_s": 5})) as replica:
        replica.check_health()
        monkeypatch.setattr(type(replica.parts.publisher), "busy_s", property(lambda _: 6.0))
        with pytest.raises(ReplaceReplica, match="6 s"):
            replica.check_health()


def test_windows_that_can_never_be_committed_end_the_replica(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twinlens.broker.publisher import TransactionalPublisher
    from twinlens.errors import RedoWindow
    from twinlens.replica import publishing as module

    def never(*_: Any) -> None:
        raise RedoWindow("not authorized")

    monkeypatch.setattr(TransactionalPublisher, "publish", never)
    monkeypatch.setattr(module, "MAX_REDONE", 3)
    settings = new_settings()
    produce(settings, [(None, line, []) for line in lines(5)])
    with running_replica(settings) as replica:
        wait_until(lambda: is_unwell(replica), "the health check fails")


def test_a_header_without_a_value_passes() -> None:
    from types import SimpleNamespace

    from twinlens.replica.decode import Decoder

    record = SimpleNamespace(
        topic="t", partition=0, offset=0, timestamp=0, key=None, value=b"{}", headers=[("h", None)]
    )
    (item,) = Decoder(IntakeSettings(), lambda _: None)([record])
    assert item.headers == [("h", b"")]


def test_a_dead_letter_that_kafka_would_not_take_is_cut(new_settings: NewSettings) -> None:
    settings = new_settings(kafka={"max_request_bytes": 100_000}, intake={"max_text_chars": 10})
    producer_settings = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"max_request_bytes": 10**6})}
    )
    too_large = json.dumps({"text": "x" * 150_000}).encode()
    found = run_through(settings, produce(producer_settings, [(b"k", too_large, [])]))
    (letter,) = found["dlq"]
    headers = dict(letter.headers)
    assert headers["twinlens.cut_from_bytes"] == str(len(too_large)).encode()
    assert too_large.startswith(letter.value)
    assert len(letter.value) > 90_000


def test_no_tweet_and_no_password_is_in_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    import structlog

    from twinlens.logs import configure_logging
    from twinlens.threads import WatchedThread

    def fail() -> None:
        text, password = "SECRET TWEET", "hunter2"
        raise RuntimeError(f"{len(text)} {len(password)}")

    try:
        configure_logging()
        structlog.configure(cache_logger_on_first_use=False)
        thread = WatchedThread("doomed", fail)
        thread.start()
        assert thread.join(5)
        said = capfd.readouterr().err
    finally:
        structlog.reset_defaults()
    assert "RuntimeError" in said
    assert "SECRET" not in said
    assert "hunter2" not in said
