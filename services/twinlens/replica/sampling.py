"""Which tweets the pipeline runs on in sampled mode. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twinlens.window.item import Item

_HASHES = 2**64


def sampled(items: Sequence[Item], application: str, share: float) -> npt.NDArray[np.bool_]:
    """[n] whether the pipeline runs on each of `items`: independently, with probability `share`.

    It depends only on the application and the source coordinates. So a window that is redone or cut in another place
    has the same sample, and anybody can compute it: a tweet is in the sample if BLAKE2b-64 of
    `application/topic/partition/offset`, as a big-endian integer, is below share * 2^64. A larger share contains the
    tweets of a smaller one.
    """
    return np.array([_draw(item, application) < share * _HASHES for item in items], np.bool_)


def _draw(item: Item, application: str) -> int:
    name = f"{application}/{item.topic}/{item.partition}/{item.offset}"  # no two tweets have the same
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
