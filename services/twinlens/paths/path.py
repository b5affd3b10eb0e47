"""What a path is: texts in, one observation per text out. There are two: the raw path and the predict path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twinlens.paths.observations import Observations, PathFacts
from twinlens.text import Text


class Path(Protocol):
    """One of the two lenses. `run` may be called by several threads at the same time, each with a lane of its own."""

    facts: PathFacts  #: what is the same for every text
    can_batch: bool  #: whether texts of different lengths may share a pass; else each one goes alone
    max_tokens: int  #: the most tokens of a text that this path's model takes

    def begin(self, texts: Sequence[Text]) -> Observations:
        """One row per text, with what is known before any pass."""
        ...

    def run(self, seen: Observations, texts: Sequence[Text], batch: Sequence[int], lane: int = 0) -> None:
        """Run one batch, a list of indices into `texts`, and fill its rows of `seen`.

        A text that makes the path raise becomes an error of its row. Raises ReplaceReplica when the device failed.
        """
        ...

    def observe(self, texts: Sequence[Text], batches: Sequence[Sequence[int]]) -> Observations:
        """One row per text, computed in the given batches. Rows that are in no batch stay empty."""
        seen = self.begin(texts)
        for batch in batches:
            self.run(seen, texts, batch)
        return seen
