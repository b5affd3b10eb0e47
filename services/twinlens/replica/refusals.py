"""The limit on refusals: a wrong format setting must not drain a topic into the dead-letter topic.

Refused records are counted per partition, in the order of offsets. The count is the metadata of the committed offset,
so it moves with the commit: a window that is redone is counted once, and a replica that takes a partition over
continues the count instead of starting at 0.
"""

from __future__ import annotations

import msgspec

from twinlens.errors import AskUser
from twinlens.settings import IntakeSettings
from twinlens.window.item import Partition
from twinlens.window.window import Window

MEMORY_RECORDS = 1_000  #: `share` is an exponentially weighted mean over about this many records


class Refusals(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of one partition was refused, up to an offset."""

    in_a_row: int = 0  #: refused since the last tweet
    share: float = 0.0  #: share of the records; the last thousand weigh most

    def after(self, *, refused: bool) -> Refusals:
        """The counts after one more record."""
        share = self.share + (float(refused) - self.share) / MEMORY_RECORDS
        return Refusals(self.in_a_row + 1 if refused else 0, share)


class RefusalLimit:
    """Counts refusals by partition. The intake thread calls `resume`, the publish thread everything else."""

    def __init__(self, settings: IntakeSettings) -> None:
        self._settings = settings
        self._committed: dict[Partition, Refusals] = {}

    def resume(self, partition: Partition, metadata: str) -> None:
        """Begin a partition with the metadata of its committed offset. Metadata of another program is ignored."""
        try:
            self._committed[partition] = msgspec.json.decode(metadata, type=Refusals)
        except msgspec.MsgspecError:
            self._committed[partition] = Refusals()

    def after(self, window: Window) -> dict[Partition, Refusals]:
        """The counts to commit with `window`. Raises AskUser when they pass the limit."""
        counts: dict[Partition, Refusals] = {}
        for item in window.items:
            before = counts.get(item.source) or self._committed.get(item.source) or Refusals()
            now = counts[item.source] = before.after(refused=item.refusal is not None)
            if item.refusal is not None and (reason := self._passed(now)):
                raise AskUser(
                    f"{reason} of partition {item.partition} of {item.topic} cannot be read as tweets, at offset "
                    f"{item.offset} for the reason {item.refusal}. Correct `intake` (format, text_field) or, if these "
                    "records are to become dead letters, raise intake.max_consecutive_refusals and "
                    "intake.max_refused_share."
                )
        return counts

    def committed(self, counts: dict[Partition, Refusals]) -> None:
        """Take over the counts that a window was committed with."""
        self._committed.update(counts)

    def _passed(self, now: Refusals) -> str | None:
        in_a_row, share = self._settings.max_consecutive_refusals, self._settings.max_refused_share
        if in_a_row is not None and now.in_a_row > in_a_row:
            return f"{now.in_a_row} records in a row"
        if share is not None and now.share > share:
            return f"{now.share:.0%} of the last records"
        return None


def as_metadata(refusals: Refusals) -> str:
    """The counts as metadata of an offset."""
    return msgspec.json.encode(refusals).decode()
