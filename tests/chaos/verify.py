"""What must hold in the end, checked against what the stream has sent: every record once, where it belongs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from tests.chaos.stream import Coordinates
from twinlens.audit import read_topics
from twinlens.errors import RefusalReason
from twinlens.records import decode_logits, decode_prediction
from twinlens.settings import Settings

SHOWN = 20


class Copy(NamedTuple):
    """One published record: on which output, from which window (it begins with the replica), or for which reason."""

    topic: str
    by: str


def problems(settings: Settings, sent: Mapping[Coordinates, RefusalReason | None]) -> list[str]:
    """One line per record that is not where it belongs exactly once; at most `SHOWN` of each kind."""
    read = {(record.partition, record.offset) for _, record in read_topics(settings, [settings.topics.input])}
    found = [f"{len(read - sent.keys())} records on the input were not acknowledged"] * bool(read - sent.keys())
    found += [f"{len(sent.keys() - read)} acknowledged records are not on the input"] * bool(sent.keys() - read)
    published = copies(settings)
    wrong = [
        f"partition {at[0]} offset {at[1]}, due {due}, is {there}"
        for at, due, there in ((at, _due(settings, sent[at]), sorted(published.get(at, []))) for at in sorted(sent))
        if there and [_kind(copy) for copy in there] != due
    ]
    missing = [f"partition {at[0]} offset {at[1]} is nowhere" for at in sorted(sent.keys() - published.keys())]
    unknown = [f"{at} is there and was never sent: {published[at]}" for at in sorted(published.keys() - sent.keys())]
    for kind, lines in (("wrong", wrong), ("missing", missing), ("unknown", unknown)):
        found += [f"{len(lines)} {kind}", *lines[:SHOWN]] if lines else []
    return found


def copies(settings: Settings) -> dict[Coordinates, list[Copy]]:
    """Every committed record of logits, predictions and dead letters by the coordinates of its source."""
    topics = settings.topics
    found: dict[Coordinates, list[Copy]] = defaultdict(list)
    for topic, record in read_topics(settings, [topics.logits, topics.predictions, topics.dlq]):
        if topic == topics.dlq:
            headers = {name: value.decode() for name, value in record.headers if name.startswith("twinlens.")}
            at = int(headers["twinlens.source.partition"]), int(headers["twinlens.source.offset"])
            found[at].append(Copy(topic, headers["twinlens.reason"]))
        else:
            output = (decode_logits if topic == topics.logits else decode_prediction)(record.value)
            at = output.source.partition, output.source.offset
            found[at].append(Copy(topic, "" if output.batch is None else output.batch.window))
    return found


def _due(settings: Settings, reason: RefusalReason | None) -> list[tuple[str, str]]:
    if reason is not None:
        return [(settings.topics.dlq, reason.value)]
    return [(settings.topics.logits, "a window"), (settings.topics.predictions, "a window")]


def _kind(copy: Copy) -> tuple[str, str]:
    return (copy.topic, copy.by if copy.topic.endswith(".dlq") else "a window")
