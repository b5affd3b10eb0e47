"""The noise floor: how far scores move when only the shape of the batch changes. It is measured, not guessed.

On a share of the windows, one batch of the raw path runs three times more: twice in the same shape and once in another
shape, mostly with more padding. The first two are the control. They must give identical bits; if not, something random
is at work, such as dropout. The floor is the largest score difference that the other shape made in the last `KEPT`
measurements.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import numpy as np

from twinlens.paths.observations import Observations, apply_function
from twinlens.paths.raw import RawPath
from twinlens.text import Text

KEPT = 64
_MAX_TEXTS = 32
_EXTRA_PADDING = 8


class NoiseFloor:
    """Measures on a `share` of the windows; `random` decides on which."""

    def __init__(self, share: float, random: random.Random) -> None:
        self._share = share
        self._random = random
        self._largest: deque[float] = deque(maxlen=KEPT)

    @property
    def floor(self) -> float:
        """Largest score difference seen; 0 before the first measurement."""
        return max(self._largest, default=0.0)

    def maybe_measure(self, path: RawPath, texts: Sequence[Text], seen: Observations) -> None:
        """With probability `share`, run one batch of `seen` again. Sets `seen.control_differs`."""
        if not seen.batches or self._random.random() >= self._share:
            return
        batch = self._random.randrange(len(seen.batches))
        rows = np.flatnonzero((seen.batch_of == batch) & ~seen.failed)
        if not rows.size or rows.size != seen.batches[batch].size:
            return  # a batch with rows that failed cannot run again in its shape
        ascending = sorted(rows.tolist(), key=lambda row: texts[row].token_count)
        chosen = [texts[row] for row in ascending[-_MAX_TEXTS:]]
        first = path.forward(chosen)
        seen.control_differs = not np.array_equal(first.logits, path.forward(chosen).logits)
        room = path.max_tokens - first.padded_tokens
        other = (
            path.forward(chosen, extra_padding=min(_EXTRA_PADDING, room))
            if room > 0
            else path.forward(chosen[1:] or chosen)
        )
        scores = [apply_function(seen.facts.function, logits) for logits in (first.logits, other.logits)]
        count = min(len(scores[0]), len(scores[1]))
        largest = float(np.abs(scores[0][-count:] - scores[1][-count:]).max())
        if np.isfinite(largest):
            self._largest.append(largest)
