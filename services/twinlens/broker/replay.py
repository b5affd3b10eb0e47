"""Putting dead letters back on the input topic, each of them once.

The cursor is the committed offsets of a consumer group of its own, `<group_id>.dlq-replay`. The steps of a replay:

1. `init_transactions` under the fixed transactional id `<group_id>:dlq-replay`: the broker finishes or aborts what an
   earlier replay left, and fences it (KIP-98). Of two replays at a time, only the one that came last can commit.
2. Read the cursor, which nobody else can move any more. The consumer is `read_committed`, so the broker makes it wait
   for offsets whose transaction is being ended (KIP-447).
3. For each poll: begin, send the chosen letters, send the offsets after all of them, wait until every record is
   acknowledged, commit. Whatever fails or is interrupted in between, both happen or neither.

Where to stop is fixed before the start: letters that the replay itself brings about are not replayed in the same run.
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
Cursor = dict[TopicPartition, int]  #: the offset to go on from


class Outcome(msgspec.Struct, kw_only=True):
    """What became of the letters that were looked at."""

    replayed: Counter[str] = msgspec.field(default_factory=Counter)  #: by reason
    passed_over: Counter[str] = msgspec.field(default_factory=Counter)  #: by reason: not among the chosen ones
    cut: int = 0  #: chosen, but the end of the value is lost
    foreign: int = 0  #: records that are not letters of this application

    def add(self, other: Outcome) -> None:
        self.replayed += other.replayed
        self.passed_over += other.passed_over
        self.cut += other.cut
        self.foreign += other.foreign


class Batch(NamedTuple):
    """Letters of one transaction, what became of their neighbours, and the offsets after all of them."""

    letters: list[DeadLetter]
    outcome: Outcome
    cursor: Cursor


def batch_of(
    records: Iterable[Any], *, application: str, reasons: Collection[str] = (), room: int | None = None
) -> Batch:
    """Choose among ConsumerRecords: letters of `application` whose reason is in `reasons` (none: any). Ends after
    `room` chosen ones; later records are then neither counted nor before the cursor. Pure.
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
    """The letters from the cursor (or from the first one) to where the dead-letter topic ended when this was made.

    `outcome` tells of the committed transactions, at any time.
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
        """What `run` would do now. Changes nothing."""
        outcome = Outcome()
        with asking_user(self._settings.kafka, "Read", group=self._group), closing(self._new_consumer()) as consumer:
            self._start(consumer)
            for records in self._polls(consumer):
                outcome.add(self._batch(records, outcome).outcome)
                if outcome.replayed.total() == self._limit:
                    break
        return outcome

    def run(self, progress: Callable[[int], None]) -> None:
        """Replay. `progress` is told how many letters are replayed so far, after every transaction.

        Raises AskUser where another replay has taken over, and where Kafka refuses a letter; an interruption aborts the
        open transaction. What was committed stays, and the next replay goes on from there.
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
        """Set the consumer to where to begin, in all partitions: so that a replay from the beginning which is
        interrupted goes on from there in those it has not come to.
        """
        consumer.assign(list(self._ends))
        if self._from_beginning:
            consumer.seek_to_beginning()
        start = {partition: consumer.position(partition) for partition in self._ends}
        # Not the ends of before: another replay may have gone on to later letters since then.
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
        """One transaction: the letters, and the cursor behind them."""
        try:
            producer.begin_transaction()
            partitions = producer.partitions_for(self._settings.topics.input)
            futures = [self._send(producer, letter, partitions) for letter in letters]
            producer.send_offsets_to_transaction(
                {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in cursor.items()}, self._group
            )
            producer.flush(timeout=ACKNOWLEDGED_S)
            for future in futures:  # kafka-python would commit without a record whose delivery has timed out
                future.get(timeout=ACKNOWLEDGED_S)
            producer.commit_transaction()
        except BaseException as error:  # an interruption, too
            _abort(producer)
            if isinstance(error, KafkaError) and not isinstance(error, AuthorizationError):
                raise self._explained(error) from error
            raise

    def _send(self, producer: KafkaProducer, letter: DeadLetter, partitions: Collection[int]) -> Any:
        topic, number = self._settings.topics.input, letter.source.partition
        partition = number if number in partitions else None  # None: by the key
        value = b"" if letter.value is None and letter.key is None else letter.value  # Kafka takes no record of nothing
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
    """Abort the open transaction, which holds readers of the input topic back. kafka-python would wait without end
    where no broker answers; what stays open then, the next replay or the broker's timeout ends.
    """

    def abort() -> None:
        with suppress(KafkaError):  # fenced, or the end is already asked for: it is the broker's to decide
            producer.abort_transaction()

    aborting = threading.Thread(target=abort, name="twinlens-abort", daemon=True)
    aborting.start()
    aborting.join(ABORT_S)
    close_producer(producer, timeout_s=0)
