"""Whether this user may do what the application does, before it begins. The table is in docs/security.md."""

from __future__ import annotations

from contextlib import closing, suppress

from kafka import TopicPartition
from kafka.errors import RetriableError

from twinlens.broker import topics
from twinlens.broker.client import asking_user, new_admin
from twinlens.settings import Settings


def check_application(settings: Settings) -> int:
    """What replicas and the monitor need of the topics and the group; returns the number of partitions.

    AskUser where a topic or an ACL is missing. The right to a transactional id shows when the first one is initialised.
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
        suppress(RetriableError),  # the first question about groups makes a new cluster create their topic
    ):
        admin.list_group_offsets({settings.group_id: [TopicPartition(names.input, 0)]})
    return partitions
