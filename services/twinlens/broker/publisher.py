"""Publishing a window's outputs and its source offsets in one Kafka transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import structlog
from kafka import KafkaProducer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import OffsetAndMetadata

from twinlens.broker.client import close_producer, naming_denials, new_producer
from twinlens.broker.repairs.recordbatch import BatchFuture, send
from twinlens.errors import AskUser, RedoWindow, ReplaceReplica
from twinlens.settings import Settings
from twinlens.window.item import OutgoingRecord, Partition

log = structlog.get_logger(__name__)

BATCH_BYTES = 256 * 1024  #: of a record batch; halved where a topic takes none so large
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  #: before another try; a rebalance takes a heartbeat or two


class SourceOffset(NamedTuple):
    """What a window commits of one source partition."""

    next_offset: int  #: the one after its last record
    metadata: str = ""  #: text that comes back with it to whoever reads on from there


Offsets = Mapping[Partition, SourceOffset]
Claim = Callable[[], Any | None]  #: the group metadata, or None when the window is no longer ours


class Publisher(Protocol):
    """Publishes windows. Called by one thread; `busy_s` may be read by any."""

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None: ...

    @property
    def busy_s(self) -> float: ...

    def close(self) -> None: ...


class _Producing:
    """What both publishers share: one producer, and a watch on calls that may never return."""

    def __init__(self) -> None:
        self._busy_since: float | None = None
        self._batch_bytes = BATCH_BYTES

    @property
    def busy_s(self) -> float:
        """Seconds the running call to Kafka has taken so far; 0 between calls."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _learn(self, futures: Sequence[BatchFuture]) -> None:
        """After a failure: the client halves a batch that the topic does not take, but its `flush` fails (repairs)."""
        if any(future.was_split for future in futures):
            self._batch_bytes //= 2
            log.warning("record batches were too large for their topic", batch_bytes=self._batch_bytes)


class TransactionalPublisher(_Producing):
    """Exactly-once delivery (KIP-98, KIP-447). The steps of a commit:

    1. `begin_transaction`: local.
    2. Send every output record, co-partitioned with its source, under this producer's epoch.
    3. `claim()`: the group metadata of the member as of now, and only then the question whether the window's
       partitions are still its own. In this order a partition that is lost later needs a newer generation to be
       read by somebody else, and the broker refuses step 4 under the older one.
    4. `send_offsets_to_transaction`: the offsets after the window's last records, with that metadata.
    5. Wait until every record of step 2 is acknowledged. The client would commit without those that it has given up.
    6. `commit_transaction`: writes the commit markers; `read_committed` readers see the window.

    What fails before step 6 aborts the transaction: the outputs stay invisible, the offsets stay where they were, and
    the same window is tried again after a pause, as long as the claim holds. That is how a window outlives a rebalance
    that began after step 3. What fails in step 6 may have been committed or not: RedoWindow, and the committed offsets
    say where to read on. ReplaceReplica says that no other try would help, AskUser that an ACL is missing.

    To abort is to put a new producer in the place of the old one, under the same transactional id, which is unique to
    this process: its `init_transactions` ends what is open, within a time limit, also after a fencing.
    (The client would send offsets that the group refused along with the next transaction's, whose outputs are not
    theirs: see `broker.repairs`.) What a process leaves when it dies, a successor aborts in the same way
    (`broker.recovery`), or the broker after `transaction_timeout_ms`. The calls of steps 4 to 6 wait without a limit of
    their own: `busy_s` lets the health check bound them.
    """

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        super().__init__()
        self._settings = settings
        self.transactional_id = transactional_id
        self.producer = self._new_producer()

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None:
        """Publish one window. Raises RedoWindow when nothing was published."""
        self._busy_since = time.monotonic()
        try:
            with self._naming_denials():
                for pause_s in (*PAUSES_S, None):
                    failed = self._prepare(records, offsets, claim)
                    if failed is None:
                        break
                    if pause_s is None:
                        raise RedoWindow(f"the transaction was aborted: {failed!r}") from failed
                    time.sleep(pause_s)
                self._commit()
        finally:
            self._busy_since = None

    def _prepare(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> KafkaError | None:
        """Steps 1 to 5. Returns the error after which the transaction was aborted."""
        futures: list[BatchFuture] = []
        try:
            self.producer.begin_transaction()
            futures = send(self.producer, records, self._batch_bytes)
            metadata = claim()
            if metadata is None:
                raise RedoWindow("its partitions were revoked")
            self.producer.send_offsets_to_transaction(
                {TopicPartition(*p): OffsetAndMetadata(o.next_offset, o.metadata, -1) for p, o in offsets.items()},
                metadata,
            )
            self.producer.flush()
            for future in futures:
                future.check()
        except (RedoWindow, ReplaceReplica, AuthorizationError) as error:
            self._abort(error)
            raise
        except KafkaError as error:
            self._abort(error)
            self._learn(futures)
            return error
        return None

    def _commit(self) -> None:
        """Step 6."""
        try:
            self.producer.commit_transaction()
        except AuthorizationError as error:
            self._abort(error)
            raise
        except KafkaError as error:
            self._abort(error)
            raise RedoWindow(f"the commit did not come through: {error!r}") from error

    def close(self) -> None:
        close_producer(self.producer, timeout_s=5)

    def _abort(self, reason: Exception) -> None:
        log.warning("transaction aborted", reason=repr(reason))
        close_producer(self.producer, timeout_s=0)
        try:
            self.producer = self._new_producer()
        except (AskUser, KafkaError) as fatal:
            raise ReplaceReplica(f"no new producer could be made: {fatal}") from fatal

    def _new_producer(self) -> KafkaProducer:
        producer = new_producer(
            self._settings.kafka,
            transactional_id=self.transactional_id,
            transaction_timeout_ms=self._settings.kafka.transaction_timeout_ms,
            **_throughput(self._settings),
        )
        try:
            with self._naming_denials():
                producer.init_transactions()
        except BaseException:
            close_producer(producer, timeout_s=0)
            raise
        return producer

    def _naming_denials(self) -> AbstractContextManager[None]:
        settings = self._settings
        return naming_denials(settings.kafka, "Write", group=settings.group_id, transactional_id=self.transactional_id)


class AtLeastOncePublisher(_Producing):
    """Outputs first, offsets afterwards: a crash in between publishes a window twice.

    The offsets are committed by the intake thread (`Intake.commit`) once `publish` has returned.
    """

    def __init__(self, settings: Settings, client_id: str) -> None:
        super().__init__()
        self._kafka = settings.kafka
        self.producer = new_producer(settings.kafka, client_id=client_id, **_throughput(settings))

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None:
        """Publish one window and wait until every record is acknowledged. Raises RedoWindow when one was not."""
        self._busy_since = time.monotonic()
        futures: list[BatchFuture] = []
        try:
            if claim() is None:
                raise RedoWindow("its partitions were revoked")
            with naming_denials(self._kafka, "Write"):
                futures = send(self.producer, records, self._batch_bytes)
                self.producer.flush(timeout=60)
                for future in futures:
                    future.check()
        except KafkaError as error:
            self._learn(futures)
            raise RedoWindow(f"not every record was acknowledged: {error!r}") from error
        finally:
            self._busy_since = None

    def close(self) -> None:
        close_producer(self.producer, timeout_s=5)


def _throughput(settings: Settings) -> dict[str, Any]:
    """Large batches: a window is sent at once, and the commit flushes it, so lingering costs nothing.

    A broker puts a transaction off while it still writes the markers of the one before, for a few milliseconds. The
    client sleeps its whole backoff each time, twice in a transaction (see `broker.repairs`).
    """
    compression = settings.output.compression
    return {
        "linger_ms": 5,
        "retry_backoff_ms": 10,
        "batch_size": BATCH_BYTES,
        "compression_type": None if compression == "none" else compression,
        "max_block_ms": 30_000,
    }
