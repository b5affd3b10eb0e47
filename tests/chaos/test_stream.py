"""What the chaos suite makes of the committed offsets that it has sampled."""

from __future__ import annotations

import random

from tests.chaos.faults import FAULTS
from tests.chaos.run import chosen
from tests.chaos.stream import standstill_s

TIMES = [0.0, 1.0, 2.0, 3.0, 8.0, 9.0]
SAMPLES = [{0: 1}, {0: 2, 1: 5}, {0: 3, 1: 6}, {0: 3, 1: 7}, {0: 4, 1: 8}, {0: 5, 1: 8}]


def test_a_standstill_begins_with_a_partitions_last_commit_or_the_fault() -> None:
    assert standstill_s(TIMES, SAMPLES, since_s=1.5, until_s=2.5) == 6  # partition 0, from 2 to 8
    assert standstill_s(TIMES, SAMPLES, since_s=4.0, until_s=5.0) == 4  # the fault struck in the middle
    assert standstill_s(TIMES, SAMPLES, since_s=0.0, until_s=0.5) == 1  # what began later is the next fault's
    assert standstill_s(TIMES, SAMPLES, since_s=8.5, until_s=20.0) == 0.5
    assert standstill_s([], [], since_s=0.0, until_s=1.0) == 0


def test_every_kind_of_fault_occurs_before_any_occurs_again() -> None:
    kinds = chosen(random.Random(1), list(FAULTS))
    for _ in range(3):
        assert sorted(next(kinds) for _ in FAULTS) == sorted(FAULTS)
