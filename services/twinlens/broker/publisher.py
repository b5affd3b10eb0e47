"""Publishes a window's outputs and its source offsets, in one Kafka transaction for exactly-once delivery.

Some of its parts repair kafka-python: the table in `broker.repairs` names them, their defects and tests.
"""

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

BATCH_BYTES = 256 * 1024  #: size of a record batch; halved if a topic refuses batches this large
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)  #: the pauses before the next tries; a rebalance takes one or two heartbeats


class SourceOffset(NamedTuple):
    """What a window commits for one source partition."""

    next_offset: int  #: the offset after its last record
    metadata: str = ""  #: text for the replica that reads on from this offset


Offsets = Mapping[Partition, SourceOffset]
Claim = Callable[[], Any | None]  #: returns the group metadata, or None if the window is no longer ours


class Publisher(Protocol):
    """Publishes windows. Only one thread may call it, but any thread may read `busy_s`."""

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None: ...

    @property
    def busy_s(self) -> float: ...

    def close(self) -> None: ...


class _Producing:
    """What both publishers share: one producer, and the time taken by calls that may never return."""

    def __init__(self) -> None:
        self._busy_since: float | None = None
        self._batch_bytes = BATCH_BYTES

    @property
    def busy_s(self) -> float:
        """Seconds that the current `publish` has taken so far; 0 between calls."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _learn(self, futures: Sequence[BatchFuture]) -> None:
        """Make batches smaller after a batch was too large. kafka-python 3.0.12 splits it, but its `flush` fails."""
        if any(future.was_split for future in futures):
            self._batch_bytes //= 2
            log.warning("record batches were too large for their topic", batch_bytes=self._batch_bytes)


class TransactionalPublisher(_Producing):
    """Exactly-once delivery (KIP-98, KIP-447). The steps of a commit:

    1. `begin_transaction`: local, no request to the broker.
    2. Send every output record, co-partitioned with its source, under this producer's epoch.
    3. `claim()`: first read the member's current group metadata, then check that it still owns the window's
       partitions. The order matters: if a partition is lost after the check, another member can read it only in a
       newer generation, and the broker refuses step 4 with the older one.
    4. `send_offsets_to_transaction`: the offsets after the window's last records, with that metadata.
    5. Wait until every record of step 2 is acknowledged. Otherwise the client would commit without records that it
       has given up on.
    6. `commit_transaction`: writes the commit markers. Now `read_committed` readers see the window.

    A failure before step 6 aborts the transaction: the outputs stay invisible and the offsets do not move. The same
    window is tried again after a pause, as long as the claim holds. So a window survives a rebalance that began after
    step 3. After a failure in step 6 it is not known whether the window was committed: this raises RedoWindow, and the
    committed offsets say where to read on. ReplaceReplica means that another try would not help. AskUser means that an
    ACL is missing.

    To abort, a new producer replaces the old one under the same transactional id, which is unique to this process. Its
    `init_transactions` ends the open transaction within a time limit, even after fencing. The old producer cannot be
    used again: if the group has refused offsets, kafka-python 3.0.12 would send them again with the next transaction,
    to whose outputs they do not belong. If a process dies, its successor aborts the open transaction in the same way
    (`broker.recovery`), or the broker does so after `transaction_timeout_ms`. The calls of steps 4 to 6 have no time
    limit: the health check reads `busy_s` to limit them.
    """

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        super().__init__()
        self._settings = settings
        self.transactional_id = transactional_id
        self.producer = self._new_producer()

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None:
        """Publish one window. Raises RedoWindow if the transaction was aborted, or may not have been committed."""
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
        """Steps 1 to 5. Returns the error if the transaction was aborted and may be tried again, else None."""
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
    """Publishes outputs first, then offsets. After a crash in between, a window is published twice.

    The intake thread (`Intake.commit`) commits the offsets after `publish` has returned.
    """

    def __init__(self, settings: Settings, client_id: str) -> None:
        super().__init__()
        self._kafka = settings.kafka
        self.producer = new_producer(settings.kafka, client_id=client_id, **_throughput(settings))

    def publish(self, records: Sequence[OutgoingRecord], offsets: Offsets, claim: Claim) -> None:
        """Publish one window and wait until every record is acknowledged. Raises RedoWindow if one is not."""
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
    """Arguments for large batches. Lingering costs nothing: a window is sent at once and the commit flushes it.

    The retry backoff is short. A broker delays a transaction for a few milliseconds while it writes the markers of the
    one before. The client then sleeps for its whole backoff (kafka-python 3.0.12, producer/sender.py), twice in a
    transaction.
    """
    compression = settings.output.compression
    return {
        "linger_ms": 5,
        "retry_backoff_ms": 10,
        "batch_size": BATCH_BYTES,
        "compression_type": None if compression == "none" else compression,
        "max_block_ms": 30_000,
    }
