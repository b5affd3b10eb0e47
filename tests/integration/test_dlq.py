"""`twinlens dlq` against a broker: what lies on the topics afterwards."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata
from kafka.structs import OffsetAndMetadata
from typer.testing import CliRunner

from tests.support.replicas import produce, run_through
from twinlens.audit import audit
from twinlens.broker import replay as replaying
from twinlens.broker.client import new_admin, new_consumer, new_producer
from twinlens.broker.dlq import read_letters
from twinlens.broker.reading import read_topics
from twinlens.broker.replay import Replay
from twinlens.cli import dlq
from twinlens.cli.main import app
from twinlens.deadletter import letter_of
from twinlens.errors import AskUser, RefusalReason, RefuseRecord
from twinlens.records import decode_logits
from twinlens.replica.outputs import OutputWriter
from twinlens.settings import Settings
from twinlens.window.item import Item

NewSettings = Callable[..., Settings]
NOT_JSON, NOT_UTF8 = RefusalReason.NOT_JSON, RefusalReason.NOT_UTF8


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    """`replay` changes what SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def bury(settings: Settings, letters: Iterable[tuple[int, RefusalReason, bytes | None]], **changes: Any) -> None:
    """Write dead letters, (source partition, reason, value) each, in one transaction, as a replica does."""
    producer = new_producer(settings.kafka, transactional_id=uuid.uuid4().hex)
    writer = OutputWriter(settings.model_copy(update=changes), "r")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for number, (partition, reason, value) in enumerate(letters):
            refusal = RefuseRecord(reason, f"number {number}")
            own = [("h", b"v"), ("traceparent", b"00-1-1-01")]
            item = Item("old", partition, number, 7, b"k%d" % number, own, 0, value=value, refusal=refusal)
            sent = writer.dead_letter(item, 1_767_225_600_000 + number)
            producer.send(sent.topic, sent.value, sent.key, sent.headers, sent.partition % 2)
        producer.commit_transaction()
    finally:
        producer.close(timeout=5)


def read(settings: Settings) -> list[Any]:
    """What read_committed readers find on the input topic."""
    return [record for _, record in read_topics(settings, [settings.topics.input])]


def values(settings: Settings) -> list[bytes]:
    return sorted(record.value for record in read(settings))


def run(settings: Settings, *arguments: str, **options: Any) -> Any:
    """`twinlens dlq ...` in this process."""
    env = {
        "TWINLENS_APPLICATION": settings.application,
        "TWINLENS_TOPICS__INPUT": settings.topics.input,
        "COLUMNS": "200",
    }
    arguments = ("dlq", *arguments, "-b", settings.kafka.bootstrap_servers)
    result = CliRunner().invoke(app, arguments, env=env, **options)
    if isinstance(result.exception, Exception) and not isinstance(result.exception, AskUser):
        raise result.exception
    return result


def test_list_counts_all_letters_and_shows_the_newest_without_values(new_settings: NewSettings) -> None:
    settings = new_settings()
    bury(settings, [(n % 2, NOT_JSON if n < 4 else NOT_UTF8, b"secret") for n in range(5)])
    bury(settings, [(0, NOT_JSON, b"secret")], application="another")
    shown = run(settings, "list", "--reason", "not_json", "--limit", "3")
    assert shown.exit_code == 0
    assert "secret" not in shown.output
    assert [line.split("number ")[1][0] for line in shown.stdout.splitlines() if "number " in line] == ["1", "2", "3"]
    summary = f"5 dead letters of {settings.application} on {settings.topics.dlq}: not_json 4, not_utf8 1; 3 shown; "
    assert shown.stdout.splitlines()[-1] == f"{summary}1 other records"
    lines = run(settings, "list", "--json").stdout.splitlines()
    letters = [json.loads(line) for line in lines]
    assert [letter["detail"] for letter in letters] == [f"number {n}" for n in range(5)]
    assert letters[0] == {
        "partition": 0, "offset": 0, "refused_at_ms": 1_767_225_600_000, "reason": "not_json", "detail": "number 0",
        "source": {"topic": "old", "partition": 0, "offset": 0}, "source_timestamp_ms": 7, "key": "k0", "bytes": 6,
        "cut_from_bytes": None, "replayed_from": None,
    }  # fmt: skip


def test_list_of_an_empty_topic_says_that_there_is_none(new_settings: NewSettings) -> None:
    assert run(settings := new_settings(), "list").stdout.startswith(f"0 dead letters of {settings.application}")


def test_show_has_the_facts_and_raw_has_the_bytes_alone(new_settings: NewSettings) -> None:
    settings = new_settings()
    bury(settings, [(1, NOT_UTF8, b"\xff\x00\n"), (1, NOT_JSON, "{ölf".encode())])
    shown = run(settings, "show", f"{settings.topics.dlq}/1/1").stdout
    for fact in ("not_json", "number 1", "old 1/1", "k1", "traceparent: 00-1-1-01", "5 bytes", "\n{ölf\n"):
        assert fact in shown
    assert "ff 00 0a" in run(settings, "show", "1/0").stdout
    assert run(settings, "show", "1/0", "--raw").stdout_bytes == b"\xff\x00\n"


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        ("0/7", "has the offsets 0 to"),
        ("1/0", "is empty"),
        ("2/0", "has no partition 2"),
        ("7", "not PARTITION/OFFSET"),
        ("0/-1", "not PARTITION/OFFSET"),
        ("another.dlq/0/0", "not PARTITION/OFFSET"),
    ],
)
def test_show_says_what_is_wrong_with_coordinates(new_settings: NewSettings, coordinates: str, said: str) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"{")])
    assert said in str(run(settings, "show", coordinates).exception)


def test_show_says_when_a_record_is_no_letter(new_settings: NewSettings) -> None:
    settings = new_settings()
    producer = new_producer(settings.kafka)
    producer.send(settings.topics.dlq, b"stray", partition=0).get(10)
    producer.close()
    assert "headers that twinlens writes" in str(run(settings, "show", "0/0").exception)


def test_replay_puts_the_record_back_as_it_was(new_settings: NewSettings) -> None:
    settings = new_settings()
    bury(settings, [(1, NOT_JSON, b"a"), (0, NOT_JSON, b"b"), (0, NOT_JSON, None), (7, NOT_JSON, b"no such partition")])
    done = run(settings, "replay", "--yes")
    assert done.exit_code == 0
    assert done.stdout == f"4 letters replayed to {settings.topics.input}: not_json 4\n"
    found = {record.key: record for record in read(settings)}
    assert [found[key].value for key in (b"k0", b"k1", b"k2", b"k3")] == [b"a", b"b", None, b"no such partition"]
    assert [found[key].partition for key in (b"k0", b"k1", b"k2")] == [1, 0, 0]
    origin = [("twinlens.replayed_from", f"{settings.topics.dlq}/1/0".encode())]
    assert list(found[b"k0"].headers) == [("h", b"v"), ("traceparent", b"00-1-1-01"), *origin]
    assert "0 letters replayed" in run(settings, "replay", "--yes").stdout
    bury(settings, [(1, NOT_JSON, b"new")])
    assert "1 letters replayed" in run(settings, "replay", "--yes").stdout
    assert "5 letters would be replayed" in run(settings, "replay", "--dry-run", "--from-beginning").stdout
    assert len(read(settings)) == 5


def test_replay_chooses_and_says_what_it_passed_over(new_settings: NewSettings) -> None:
    settings = new_settings()
    small = settings.kafka.model_copy(update={"max_request_bytes": 10_000})
    bury(settings, [(0, NOT_JSON, b"other"), (0, NOT_UTF8, b"\xff1"), (0, NOT_UTF8, b"\xff2"), (0, NOT_UTF8, b"\xff3")])
    bury(settings, [(0, NOT_UTF8, b"\xff" * 20_000)], kafka=small)
    bury(settings, [(0, NOT_UTF8, b"\xff4")], application="another")
    first = run(settings, "replay", "--yes", "--reason", "not_utf8", "--limit", "2", "--json")
    outcome = {"replayed": {"not_utf8": 2}, "passed_over": {"not_json": 1}, "cut": 0, "foreign": 0}
    assert json.loads(first.stdout.splitlines()[-1]) == outcome
    assert values(settings) == [b"\xff1", b"\xff2"]
    rest = run(settings, "replay", "--yes", "--reason", "not_utf8")
    assert "1 letters replayed" in rest.stdout
    assert "1 other records ignored" in rest.stdout
    assert "warning: 1 letters cannot be replayed" in rest.stderr
    run(settings, "replay", "--yes", "--from-beginning", "--reason", "not_json")
    assert values(settings) == [b"other", b"\xff1", b"\xff2", b"\xff3"]


def test_a_replay_that_was_planned_before_another_one_repeats_nothing(new_settings: NewSettings) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"a")])
    planned = Replay(settings)
    bury(settings, [(0, NOT_JSON, b"b")])
    Replay(settings).run(lambda _: None)
    planned.run(lambda _: None)
    assert planned.outcome.replayed.total() == 0
    assert values(settings) == [b"a", b"b"]


def test_the_cursor_is_read_when_nobody_else_can_move_it(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"a")])
    other = Replay(settings)

    def new_producer_after_the_other_replay(*arguments: Any, **options: Any) -> KafkaProducer:
        monkeypatch.setattr(replaying, "new_producer", new_producer)
        other.run(lambda _: None)
        return new_producer(*arguments, **options)

    monkeypatch.setattr(replaying, "new_producer", new_producer_after_the_other_replay)
    Replay(settings).run(lambda _: None)
    assert values(settings) == [b"a"]


def test_a_letter_that_was_not_acknowledged_is_not_behind_the_cursor(
    new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"a")])
    with monkeypatch.context() as patch:
        # What becomes of a batch that reaches `delivery_timeout_ms`: kafka-python commits the transaction without it.
        batch = FutureProduceResult(TopicPartition("t", 0))
        expired = FutureRecordMetadata(batch, 0, 0, None, 0, 0, 0)
        batch.failure(KafkaTimeoutError("expired"))
        patch.setattr(KafkaProducer, "send", lambda *_: expired)
        assert "expired" in str(run(settings, "replay", "--yes").exception)
    assert "1 letters replayed" in run(settings, "replay", "--yes").stdout


def test_a_topic_that_was_created_again_is_not_replayed_unasked(new_settings: NewSettings) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"a")])
    consumer = new_consumer(settings.kafka, group_id=f"{settings.group_id}.dlq-replay")
    consumer.commit({TopicPartition(settings.topics.dlq, 0): OffsetAndMetadata(99, "", -1)})
    consumer.close()
    assert "Give --from-beginning" in str(run(settings, "replay", "--yes").exception)
    assert "1 letters replayed" in run(settings, "replay", "--yes", "--from-beginning").stdout


def test_replay_asks_first(new_settings: NewSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = new_settings()
    bury(settings, [(0, NOT_JSON, b"a")])
    assert "--yes" in str(run(settings, "replay").exception), "standard input is no terminal here"
    monkeypatch.setattr(dlq, "can_ask", lambda: True)
    refused = run(settings, "replay", input="n\n")
    assert refused.exit_code == 1
    assert f"1 letters will be replayed to {settings.topics.input}: not_json 1" in refused.stdout
    assert values(settings) == []
    assert run(settings, "replay", input="y\n").exit_code == 0
    assert values(settings) == [b"a"]


def test_a_missing_topic_is_said(new_settings: NewSettings) -> None:
    settings = new_settings().model_copy(update={"topics": Settings.load({"topics": {"input": "missing"}}).topics})
    for command in (["list"], ["show", "0/0"], ["replay", "--yes"]):
        assert "Missing topics: missing.dlq" in str(run(settings, *command).exception)


def test_a_replayed_letter_is_a_tweet_once_its_cause_is_fixed_and_a_letter_again_where_not(
    new_settings: NewSettings,
) -> None:
    strict = new_settings(partitions=1, intake={"max_text_chars": 20})
    long = json.dumps({"id": "long", "text": "more than twenty characters"}).encode()
    run_through(strict, produce(strict, [(b"k", long, [("h", b"v")]), (b"k", b"not json", [])]))
    Replay(strict).run(lambda _: None)
    fixed = strict.model_copy(update={"intake": Settings.load({}).intake})
    found = run_through(fixed, 4)
    (tweet,) = found["logits"]
    origin = ("twinlens.replayed_from", f"{strict.topics.dlq}/0/0".encode())
    assert (decode_logits(tweet.value).id, list(tweet.headers)) == ("long", [("h", b"v"), origin])
    letters = [letter for letter in map(letter_of, found["dlq"]) if letter is not None]
    second = f"{strict.topics.dlq}/{letters[1].at}"  # at offset 1, or at 2 where it came in a window of its own
    assert [(each.reason, each.replayed_from) for each in letters] == [
        ("text_too_long", None),
        ("not_json", None),
        ("not_json", second),
    ]
    names = [name for name, _ in found["dlq"][-1].headers]
    assert len(names) == len(set(names)), "the headers of the round before are gone"
    report = audit(fixed)
    assert (report.consumed, report.published, report.dead_lettered, report.clean) == (4, 1, 3, True)


@pytest.fixture
def kafka_settings(new_kafka_settings: NewSettings) -> Settings:
    return new_kafka_settings()


LETTERS = [(n % 2, NOT_JSON, b"%d" % n) for n in range(7)]


def open_transactions(settings: Settings) -> set[str]:
    admin = new_admin(settings.kafka)
    try:
        listed = admin.list_transactions(state_filters=["Ongoing"])
    finally:
        admin.close()
    return {each.transactional_id for found in listed.values() for each in found}


@pytest.mark.kafka
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_replay_that_ends_before_its_commit_is_resumed(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bury(kafka_settings, LETTERS)
    monkeypatch.setattr(replaying, "MAX_POLL_RECORDS", 3)
    commit = KafkaProducer.commit_transaction
    commits: list[None] = []

    def end(producer: KafkaProducer) -> None:
        commits.append(None)
        if len(commits) == 2:
            raise SystemExit if how == "killed" else KeyboardInterrupt
        commit(producer)

    with monkeypatch.context() as patch:
        patch.setattr(KafkaProducer, "commit_transaction", end)
        if how == "killed":  # nobody aborts then
            patch.setattr(KafkaProducer, "abort_transaction", lambda _: None)
        ended = run(kafka_settings, "replay", "--yes")
    assert ended.exit_code == (130 if how == "interrupted" else 0)
    assert "3 letters replayed" in ended.stdout
    still_open = open_transactions(kafka_settings)
    assert (f"{kafka_settings.group_id}:dlq-replay" in still_open) == (how == "killed")
    resumed = Replay(kafka_settings)
    resumed.run(lambda _: None)
    assert resumed.outcome.replayed.total() == 4
    assert values(kafka_settings) == [b"%d" % n for n in range(7)]
    assert "0 letters would be replayed" in run(kafka_settings, "replay", "--dry-run").stdout


@pytest.mark.kafka
def test_of_two_replays_at_a_time_one_is_fenced_and_each_letter_is_replayed_once(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(kafka_settings, LETTERS)
    monkeypatch.setattr(replaying, "MAX_POLL_RECORDS", 3)
    first, second = Replay(kafka_settings), Replay(kafka_settings)
    seen: list[int] = []

    def meanwhile(replayed: int) -> None:
        seen.append(replayed)
        if replayed == 3:
            second.run(seen.append)

    with pytest.raises(AskUser, match=r"Another replay of the group .* has taken over"):
        first.run(meanwhile)
    assert (first.outcome.replayed.total(), second.outcome.replayed.total()) == (3, 4)
    assert seen == [3, 3, 4]
    assert values(kafka_settings) == [b"%d" % n for n in range(7)]


@pytest.mark.kafka
def test_a_replay_from_the_beginning_that_is_interrupted_goes_on_in_every_partition(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(kafka_settings, LETTERS)
    Replay(kafka_settings).run(lambda _: None)
    assert Replay(kafka_settings, from_beginning=True).plan().replayed.total() == 7
    Replay(kafka_settings, from_beginning=True, limit=1).run(lambda _: None)
    Replay(kafka_settings).run(lambda _: None)
    assert values(kafka_settings) == sorted([b"%d" % n for n in range(7)] * 2)


@pytest.mark.kafka
def test_show_knows_the_gaps_between_transactions(kafka_settings: Settings) -> None:
    bury(kafka_settings, [(0, NOT_JSON, b"a")])
    assert "mark the end of each transaction" in str(run(kafka_settings, "show", "0/1").exception)
    bury(kafka_settings, [(0, NOT_JSON, b"b")])
    assert "The next record is at 0/2." in str(run(kafka_settings, "show", "0/1").exception)
    assert run(kafka_settings, "show", "0/2", "--raw").stdout_bytes == b"b"
    assert len(list(read_letters(kafka_settings))) == 2


@pytest.mark.kafka
def test_a_letter_that_the_topic_does_not_take_is_not_passed_over(kafka_settings: Settings) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    bury(kafka_settings, [(0, NOT_JSON, os.urandom(50_000))])
    admin = new_admin(kafka_settings.kafka)
    limit = {"max.message.bytes": "10000"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, kafka_settings.topics.input, limit)])
    admin.close()
    refused = run(kafka_settings, "replay", "--yes")
    assert "Kafka did not accept the letters" in str(refused.exception)
    assert "0 letters replayed" in refused.stdout
    assert Replay(kafka_settings).plan().replayed.total() == 1
