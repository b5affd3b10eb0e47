"""Puts dead letters back on the input topic, each of them once.

The cursor says how far replays have come. It is kept as the committed offsets of a separate consumer group,
`<group_id>.dlq-replay`. The steps of a replay:

1. `init_transactions` under the fixed transactional id `<group_id>:dlq-replay`. The broker finishes or aborts the
   transaction that an earlier replay left open, and fences that replay (KIP-98). If two replays run at the same time,
   only the later one can commit.
2. Read the cursor. No other replay can move it any more. The consumer is `read_committed`, so the broker makes it wait
   for offsets whose transaction is being ended (KIP-447).
3. For each poll: begin, send the chosen letters, send the offsets after all records of the poll that were looked at,
   wait until every record is acknowledged, commit. If anything fails or is interrupted, letters and offsets are both
   committed or neither is.

The end is fixed before the start: letters that the replay itself causes are not replayed in the same run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import AuthorizationError, InvalidProducerEpochError, MessageSizeTooLargeError, ProducerFencedError
from kafka.structs import OffsetAndMetadata

from twinlens.broker.client import KafkaError, asking_user, close_producer, new_consumer, new_producer
from twinlens.broker.reading import polls_until
from twinlens.deadletter import REPLAYED_FROM, DeadLetter, letter_of
from twinlens.errors import AskUser
from twinlens.settings import Settings

MAX_POLL_RECORDS = 500  #: records of the dead-letter topic per transaction
ACKNOWLEDGED_S = 60.0
ABORT_S = 5.0

_FENCED = (ProducerFencedError, InvalidProducerEpochError)
Cursor = dict[TopicPartition, int]  #: per partition, the offset to go on from


class Outcome(msgspec.Struct, kw_only=True):
    """Counts of the records that were looked at."""

    replayed: Counter[str] = msgspec.field(default_factory=Counter)  #: by reason
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)  #: by reason: letters with a reason not chosen
    cut: int = 0  #: letters not replayed because the end of their value is lost
    foreign: int = 0  #: records that are not letters of this application

    def add(self, other: Outcome) -> None:
        self.replayed += other.replayed
        self.passed_over += other.passed_over
        self.cut += other.cut
        self.foreign += other.foreign


class Batch(NamedTuple):
    """The letters of one transaction, the counts of all records looked at, and the offsets after these records."""

    letters: list[DeadLetter]
    outcome: Outcome
    cursor: Cursor


def batch_of(
    records: Iterable[Any], *, application: str, reasons: Collection[str] = (), room: int | None = None
) -> Batch:
    """Choose letters of `application` whose reason is in `reasons` (empty: any) from ConsumerRecords. Pure.

    Stops after `room` chosen letters. Later records are not counted, and the cursor does not pass them.
    """
    batch = Batch([], Outcome(), {})
    for record in records:
        if room is not None and len(batch.letters) >= room:
            break
        batch.cursor[TopicPartition(record.topic, record.partition)] = record.offset + 1
        letter = letter_of(record)
        if letter is None or letter.application != application:
            batch.outcome.foreign += 1
        elif reasons and letter.reason not in reasons:
            batch.outcome.passed_over[letter.reason] += 1
        elif letter.cut_from_bytes is not None:
            batch.outcome.cut += 1
        else:
            batch.outcome.replayed[letter.reason] += 1
            batch.letters.append(letter)
    return batch


class Replay:
    """Replays letters from the cursor (or the beginning) to the end that the topic had when this object was made.

    `outcome` has the counts of the transactions committed so far.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        reasons: Collection[str] = (),
        limit: int | None = None,
        from_beginning: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self._settings = settings
        self._reasons = reasons
        self._limit = limit
        self._from_beginning = from_beginning
        self._group = f"{settings.group_id}.dlq-replay"
        self._transactional_id = f"{settings.group_id}:dlq-replay"
        topic = settings.topics.dlq
        with asking_user(settings.kafka, "Read", group=self._group), closing(self._new_consumer()) as consumer:
            self._ends: Cursor = consumer.end_offsets(
                [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
            )

    def plan(self) -> Outcome:
        """Count what `run` would do now. Changes nothing."""
        outcome = Outcome()
        with asking_user(self._settings.kafka, "Read", group=self._group), closing(self._new_consumer()) as consumer:
            self._start(consumer)
            for records in self._polls(consumer):
                outcome.add(self._batch(records, outcome).outcome)
                if outcome.replayed.total() == self._limit:
                    break
        return outcome

    def run(self, progress: Callable[[int], None]) -> None:
        """Replay. After every transaction, calls `progress` with the number of letters replayed so far.

        Raises AskUser if another replay has taken over or Kafka refuses a letter. An interruption aborts the open
        transaction. Committed transactions stay, and the next replay goes on after them.
        """
        with (
            asking_user(self._settings.kafka, "Write", group=self._group, transactional_id=self._transactional_id),
            self._sole_producer() as producer,
            closing(self._new_consumer()) as consumer,
        ):
            cursor = self._start(consumer)
            for records in self._polls(consumer):
                batch = self._batch(records, self.outcome)
                cursor |= batch.cursor
                self._publish(producer, batch.letters, cursor)
                self.outcome.add(batch.outcome)
                progress(self.outcome.replayed.total())
                if self.outcome.replayed.total() == self._limit:
                    break

    def _new_consumer(self) -> KafkaConsumer:
        return new_consumer(
            self._settings.kafka,
            group_id=self._group,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            max_poll_records=MAX_POLL_RECORDS,
        )

    def _start(self, consumer: KafkaConsumer) -> Cursor:
        """Set the start position of every partition and return all of them.

        They are all committed with the first transaction. So if a replay from the beginning is interrupted, the next
        replay starts at the beginning of the partitions that this one did not reach.
        """
        consumer.assign(list(self._ends))
        if self._from_beginning:
            consumer.seek_to_beginning()
        start = {partition: consumer.position(partition) for partition in self._ends}
        # Ask for the ends again: another replay may have reached later letters since `__init__`.
        for partition, end in consumer.end_offsets(list(self._ends)).items():
            if start[partition] > end:
                raise AskUser(
                    f"The last replay ended at offset {start[partition]} of partition {partition.partition}, but "
                    f"{partition.topic} ends at {end} there: was it deleted and created again? Give --from-beginning."
                )
        return start

    def _polls(self, consumer: KafkaConsumer) -> Iterator[list[Any]]:
        for polled in polls_until(consumer, self._ends):
            records = [r for r in polled if r.offset < self._ends[TopicPartition(r.topic, r.partition)]]
            if records:
                yield records

    def _batch(self, records: list[Any], so_far: Outcome) -> Batch:
        room = None if self._limit is None else self._limit - so_far.replayed.total()
        return batch_of(records, application=self._settings.application, reasons=self._reasons, room=room)

    @contextmanager
    def _sole_producer(self) -> Iterator[KafkaProducer]:
        kafka = self._settings.kafka
        producer = new_producer(
            kafka,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=kafka.transaction_timeout_ms,
            linger_ms=5,
            max_block_ms=kafka.request_timeout_ms,
        )
        try:
            producer.init_transactions()
            yield producer
        finally:
            close_producer(producer, timeout_s=5)

    def _publish(self, producer: KafkaProducer, letters: list[DeadLetter], cursor: Cursor) -> None:
        """Publish the letters and the cursor in one transaction."""
        try:
            producer.begin_transaction()
            partitions = producer.partitions_for(self._settings.topics.input)
            futures = [self._send(producer, letter, partitions) for letter in letters]
            producer.send_offsets_to_transaction(
                {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in cursor.items()}, self._group
            )
            producer.flush(timeout=ACKNOWLEDGED_S)
            for future in futures:  # otherwise kafka-python would commit without a record that timed out
                future.get(timeout=ACKNOWLEDGED_S)
            producer.commit_transaction()
        except BaseException as error:  # also an interruption
            _abort(producer)
            if isinstance(error, KafkaError) and not isinstance(error, AuthorizationError):
                raise self._explained(error) from error
            raise

    def _send(self, producer: KafkaProducer, letter: DeadLetter, partitions: Collection[int]) -> Any:
        topic, number = self._settings.topics.input, letter.source.partition
        partition = number if number in partitions else None  # None: chosen by the key
        value = b"" if letter.value is None and letter.key is None else letter.value  # a record needs a key or a value
        origin = (REPLAYED_FROM, f"{letter.topic}/{letter.at}".encode())
        try:
            return producer.send(topic, value, letter.key, [*letter.headers, origin], partition)
        except MessageSizeTooLargeError:
            raise AskUser(
                f"The dead letter {letter.at} has {len(value or b''):,} bytes; raise kafka.max_request_bytes."
            ) from None

    def _explained(self, error: KafkaError) -> AskUser:
        stays = "What was replayed before stays, and nothing is replayed twice; the next replay goes on from there."
        if isinstance(error, _FENCED) or ProducerFencedError.__name__ in str(error):
            return AskUser(
                f"Another replay of the group {self._settings.group_id} has taken over from this one, or a transaction "
                f"took longer than kafka.transaction_timeout_ms. {stays}"
            )
        return AskUser(f"Kafka did not take the letters ({error!r}). {stays}")


def _abort(producer: KafkaProducer) -> None:
    """Abort the open transaction, because it blocks readers of the input topic. Waits `ABORT_S` at most.

    Without a limit kafka-python would wait forever if no broker answers. A transaction that stays open is ended by the
    next replay or by the broker's timeout.
    """

    def abort() -> None:
        with suppress(KafkaError):  # fenced, or the end was already requested: the broker decides
            producer.abort_transaction()

    aborting = threading.Thread(target=abort, name="twinlens-abort", daemon=True)
    aborting.start()
    aborting.join(ABORT_S)
    close_producer(producer, timeout_s=0)
