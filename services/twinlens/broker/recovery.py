"""Aborts the transactions that members of the consumer group left open when they died.

A replica that dies in the middle of a transaction blocks its successors: the committed offset stays unstable, and
`read_committed` readers of the outputs wait until the broker aborts the transaction after its timeout. A new producer
that is initialised under the same transactional id aborts it at once (KIP-98, "fencing").
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
LATER_S = 3.0  #: added to the session timeout

T = TypeVar("T")


def transactional_id(group: str, member: str, process: str) -> str:
    """`<group>:<member>:<process>`. `member` is the static member's instance id or the replica's name.

    `process` is 8 hexadecimal digits. It differs between processes that are the same member one after the other.
    """
    return f"{group}:{member}:{process}"


def member_of(transactional: str, group: str) -> str | None:
    """The member in a transactional id; None if the id does not belong to `group`."""
    found = re.fullmatch(re.escape(group) + r":([^:]+):[0-9a-f]{8}", transactional)
    return found.group(1) if found else None


def left_open(open_ids: Iterable[str], living: Collection[str], *, group: str, own_id: str) -> list[str]:
    """The `open_ids` whose process is no longer a member of `group`.

    `living` has the members' instance ids or client ids. It must be listed after `open_ids`: a member joins before it
    begins a transaction, so `living` then has every live member with an open transaction. If this member itself is not
    in `living`, nothing can be known, and the result is empty. An id with this member's name that is not `own_id`
    belongs to an earlier process of this member, which has ended.
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
    """Fences members that have died, when asked to. `run` is a thread's body; any thread may call `ask`.

    `ask` is called whenever partitions were assigned: their last owner has given them up or left the group.
    """

    def __init__(self, kafka: KafkaSettings, group: str, own_id: str) -> None:
        self._kafka = kafka
        self._group = group
        self._own_id = own_id
        self._asked = threading.Event()
        self._stopping = threading.Event()

    def ask(self) -> None:
        """Ask the thread to look soon for open transactions of members that have died."""
        self._asked.set()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopping.set()
        self._asked.set()

    def run(self) -> None:
        """Until `stop`: wait to be asked, then fence. Tries again after a pause if Kafka does not answer.

        Looks once more after a session timeout: a member that gave up its partitions with a transaction open may have
        died in the meantime, and then no partitions are assigned, so nothing asks. Raises AskUser if an ACL is missing.
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
                # Brokers before 3.0 and the embedded broker: there the transaction timeout ends the transactions.
                log.info("the broker lists no transactions; those of dead replicas end by their timeout")
                return
            except KafkaError as error:
                log.warning("open transactions not looked through yet", error=repr(error))
                self._asked.set()
                self._stopping.wait(RETRY_S)

    def abort_left_open(self) -> list[str]:
        """Abort the open transactions of members that have left. Returns their transactional ids.

        Lists the transactions first and the members after that, so that no live member is fenced. A member that was
        evicted and joins again in the milliseconds after the listing loses one window, which it reads again.
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
                    producer.init_transactions()  # returns after the abort is written
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
    """Make a client. AskUser becomes KafkaError, which is tried again: Kafka was reached when the replica started."""
    try:
        return make()
    except AskUser as error:
        raise KafkaError(str(error)) from error
