"""Ending the transactions that dead members of the consumer group left open.

A replica that dies in the middle of a transaction holds its successors back: the committed offset stays unstable, and
`read_committed` readers of the outputs wait, until the broker aborts the transaction after its timeout. Initialising
a producer under the dead one's transactional id aborts it at once (KIP-98, "fencing").
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TypeVar

import structlog
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, UnsupportedVersionError

from twinlens.broker.client import close_producer, naming_denials, new_admin, new_producer
from twinlens.errors import AskUser
from twinlens.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

RETRY_S = 0.5
LATER_S = 3.0  #: beyond the session timeout

T = TypeVar("T")


def transactional_id(group: str, member: str, process: str) -> str:
    """`<group>:<member>:<process>`; `member` is the static member's instance id or the replica's name, and `process`,
    8 hexadecimal digits, tells apart processes that follow each other as the same member.
    """
    return f"{group}:{member}:{process}"


def member_of(transactional: str, group: str) -> str | None:
    """The member that works under a transactional id; None where it is not one of `group`'s."""
    found = re.fullmatch(re.escape(group) + r":([^:]+):[0-9a-f]{8}", transactional)
    return found.group(1) if found else None


def left_open(open_ids: Iterable[str], living: Collection[str], *, group: str, own_id: str) -> list[str]:
    """Those of the `open_ids` whose process is no member of `group` any more.

    `living` are the members, by instance id or client id, as they were after `open_ids` were. A living member is always
    among them: it joined before it began a transaction. Where this member itself is not, nothing can be said, and
    nobody is dead. A process that went by this member's name under another id than `own_id` was its predecessor.
    """
    own = member_of(own_id, group)
    if own not in living:
        return []
    dead = []
    for each in open_ids:
        member = member_of(each, group)
        if member is not None and each != own_id and (member == own or member not in living):
            dead.append(each)
    return dead


class Recovery:
    """Fences dead members when asked to. `run` is a thread's body; `ask` may be called from any thread.

    It is asked for whenever partitions were assigned: whoever had them before has given them up or left the group.
    """

    def __init__(self, kafka: KafkaSettings, group: str, own_id: str) -> None:
        self._kafka = kafka
        self._group = group
        self._own_id = own_id
        self._asked = threading.Event()
        self._stopping = threading.Event()

    def ask(self) -> None:
        """Look for open transactions of dead members soon."""
        self._asked.set()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopping.set()
        self._asked.set()

    def run(self) -> None:
        """Until `stop`: wait to be asked, then fence; once more after a pause where Kafka would not answer.

        And once more after a session timeout: who gave partitions up with a transaction open may have died since, and
        then nobody is assigned anything. Raises AskUser when an ACL is missing.
        """
        later_s: float | None = None
        while True:
            asked = self._asked.wait(later_s)
            if self._stopping.is_set():
                return
            later_s = self._kafka.session_timeout_ms / 1000 + LATER_S if asked else None
            self._asked.clear()
            try:
                self.abort_left_open()
            except UnsupportedVersionError:
                # Brokers before 3.0, and the embedded one: the broker's transaction timeout ends them instead.
                log.info("the broker lists no transactions; those of dead replicas end by their timeout")
                return
            except KafkaError as error:
                log.warning("open transactions not looked through yet", error=repr(error))
                self._asked.set()
                self._stopping.wait(RETRY_S)

    def abort_left_open(self) -> list[str]:
        """Abort the open transactions of members that have left; returns their transactional ids.

        First the transactions are listed, only then the members, so that nobody who lives is fenced. A member
        that was evicted and joins again within the milliseconds after that loses a window, which it reads again.
        """
        admin = _reach(lambda: new_admin(self._kafka))
        try:
            with naming_denials(self._kafka, "Describe", group=self._group):
                dead = left_open(self._open(admin), self._living(admin), group=self._group, own_id=self._own_id)
        finally:
            admin.close()
        for each in dead:
            producer = _reach(partial(self._new_producer, each))
            try:
                with naming_denials(self._kafka, "Write", transactional_id=each):
                    producer.init_transactions()  # returns when the abort is written
            finally:
                close_producer(producer, timeout_s=1)
            log.warning("transaction of a dead replica aborted", transactional_id=each)
        return dead

    def _new_producer(self, dead_id: str) -> KafkaProducer:
        timeout_ms = self._kafka.transaction_timeout_ms
        return new_producer(self._kafka, transactional_id=dead_id, transaction_timeout_ms=timeout_ms)

    def _open(self, admin: KafkaAdminClient) -> list[str]:
        listed = admin.list_transactions(state_filters=["Ongoing"])
        return [transaction.transactional_id for found in listed.values() for transaction in found]

    def _living(self, admin: KafkaAdminClient) -> set[str]:
        group = admin.describe_groups([self._group])[self._group]
        if group["error"] is not None:
            raise KafkaError(f"the group is not known: {group['error']}")
        return {member["group_instance_id"] or member["client_id"] for member in group["members"]}


def _reach(make: Callable[[], T]) -> T:
    """What a replica that runs already cannot reach for the moment, it tries again; at its start it was reached."""
    try:
        return make()
    except AskUser as error:
        raise KafkaError(str(error)) from error
