"""Checks before the start that this user has the rights the application needs. docs/security.md lists them."""

from __future__ import annotations

from contextlib import closing, suppress

from kafka import TopicPartition
from kafka.errors import RetriableError

from twinlens.broker import topics
from twinlens.broker.client import asking_user, new_admin
from twinlens.settings import Settings


def check_application(settings: Settings) -> int:
    """Check what replicas and the monitor need: topics, and rights to them and to the group.

    Returns the number of partitions. Raises AskUser if a topic or an ACL is missing. The right to a transactional id is
    not checked here: the first `init_transactions` shows whether it is missing.
    """
    names = settings.topics
    partitions = topics.check(
        settings,
        read=(names.input, names.comparisons, names.divergences, names.snapshots),
        write=(*names.outputs, names.snapshots),
    )
    with (
        asking_user(settings.kafka, "Read", group=settings.group_id),
        closing(new_admin(settings.kafka)) as admin,
        suppress(RetriableError),  # on a new cluster, the first request about groups creates their topic
    ):
        admin.list_group_offsets({settings.group_id: [TopicPartition(names.input, 0)]})
    return partitions
