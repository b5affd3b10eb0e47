"""The backlog hands out every item once and in order, and forgets what it must."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.observed import DISPATCH, item
from twinlens.window.backlog import Abandoned, Backlog
from twinlens.window.item import Item, Partition
from twinlens.window.window import Window

DEADLINE_S = 20.0
P0, P1, P2 = PARTITIONS = [("tweets", number) for number in range(3)]


def everything(candidates: list[Item]) -> int:
    return len(candidates)


def run(
    count: int, first: int = 0, partition: Partition = P0, timestamp_ms: int = 0, size_bytes: int = 1
) -> list[Item]:
    """Items of consecutive offsets."""
    return [
        item(first + n, partition=partition[1], timestamp_ms=timestamp_ms + n, size_bytes=size_bytes)
        for n in range(count)
    ]


def backlog(max_items: int = 1_000, max_bytes: int = 1_000_000) -> Backlog:
    return Backlog(max_items, max_bytes)


def draw(waiting: Backlog, take: Callable[[list[Item]], int] = everything, max_items: int = 1_000) -> Window:
    """Decide as compute does: look, choose, draw."""
    candidates = waiting.candidates(max_items, DEADLINE_S).items
    window = waiting.draw(candidates[: take(candidates)], DISPATCH)
    assert window is not None
    return window


def offsets(window: Window) -> list[tuple[int, int]]:
    return [(drawn.partition, drawn.offset) for drawn in window.items]


def first_offsets(abandoned: dict[Partition, Abandoned]) -> dict[Partition, int]:
    return {partition: each.first_offset for partition, each in abandoned.items()}


class TestDraw:
    def test_the_partition_with_the_oldest_record_comes_first(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(2, partition=P0, timestamp_ms=50))
        waiting.fill(P1, 0, run(2, partition=P1, timestamp_ms=10))
        waiting.fill(P2, 0, run(2, partition=P2, timestamp_ms=30))
        assert offsets(draw(waiting, max_items=5)) == [(1, 0), (1, 1), (2, 0), (2, 1), (0, 0)]
        assert offsets(draw(waiting)) == [(0, 1)]

    def test_a_partition_that_waits_longest_is_served_next(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(4, partition=P0, timestamp_ms=0))
        waiting.fill(P1, 0, run(4, partition=P1, timestamp_ms=2))
        drawn = [offsets(draw(waiting, take=lambda _: 1))[0] for _ in range(8)]
        assert {partition for partition, _ in drawn[:4]} == {0, 1}

    def test_no_more_candidates_than_the_maximum(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(10))
        assert len(waiting.candidates(7, DEADLINE_S).items) == 7
        assert waiting.candidates(7, DEADLINE_S).waiting == 10

    def test_candidates_stay_until_they_are_drawn(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(3))
        assert waiting.candidates(10, DEADLINE_S) == waiting.candidates(10, DEADLINE_S)
        assert waiting.items == 3

    def test_the_decision_travels_with_the_window(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(1))
        assert draw(waiting).dispatch is DISPATCH

    def test_what_was_invalidated_while_compute_decided_is_not_drawn(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(2, partition=P0))
        waiting.fill(P1, 0, run(2, partition=P1, timestamp_ms=5))
        candidates = waiting.candidates(10, DEADLINE_S).items
        waiting.invalidate([P0])
        waiting.fill(P0, 1, run(2, partition=P0))  # the same offsets, read again
        window = waiting.draw(candidates, DISPATCH)
        assert window is not None
        assert offsets(window) == [(1, 0), (1, 1)]
        assert waiting.items == 2
        assert waiting.draw(candidates, DISPATCH) is None
        assert offsets(draw(waiting)) == [(0, 0), (0, 1)]

    def test_nothing_waits(self) -> None:
        assert backlog().candidates(10, timeout_s=0.0) == ([], 0)
        assert backlog().draw([], DISPATCH) is None

    def test_a_closed_backlog_hands_out_what_it_has_and_then_returns_at_once(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(2))
        waiting.close()
        assert len(draw(waiting).items) == 2
        start = time.monotonic()
        assert waiting.candidates(10, DEADLINE_S) == ([], 0)
        assert time.monotonic() - start < DEADLINE_S / 2

    def test_what_to_commit(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(3, first=40, partition=P0))
        waiting.fill(P1, 0, [*run(1, first=7, partition=P1), *run(1, first=90, partition=P1)])  # compacted: a gap
        assert draw(waiting).next_offsets == {P0: 43, P1: 91}


class TestBounds:
    def test_items(self) -> None:
        waiting = backlog(max_items=3)
        steps: list[Callable[[], None]] = [
            lambda: waiting.fill(P0, 0, run(2)),
            lambda: waiting.fill(P0, 0, run(1, first=2)),
            lambda: waiting.finish(draw(waiting, take=lambda _: 1)),
        ]
        full = []
        for step in steps:
            step()
            full.append(waiting.full)
        assert full == [False, True, False]

    def test_bytes(self) -> None:
        waiting = backlog(max_bytes=100)
        steps: list[Callable[[], None]] = [
            lambda: waiting.fill(P0, 0, run(9, size_bytes=11)),
            lambda: waiting.fill(P1, 0, run(1, partition=P1, size_bytes=1)),
            lambda: waiting.invalidate([P1]),
        ]
        full = []
        for step in steps:
            step()
            full.append(waiting.full)
        assert full == [False, True, False]

    def test_bytes_of_windows_under_way_count_until_they_are_finished(self) -> None:
        waiting = backlog(max_bytes=100)
        waiting.fill(P0, 0, run(4, size_bytes=25))
        window = draw(waiting, take=lambda _: 1)
        assert (waiting.full, waiting.size_bytes) == (True, 100)
        waiting.abandon(window)  # what waited is dropped; the window is still in memory
        assert (waiting.full, waiting.size_bytes) == (False, 25)
        waiting.finish(window)
        assert waiting.size_bytes == 0

    def test_items_of_windows_under_way_do_not_count(self) -> None:
        waiting = backlog(max_items=3)
        waiting.fill(P0, 0, run(3))
        draw(waiting)
        assert not waiting.full  # a window as large as the backlog must not stop the intake

    @pytest.mark.parametrize(
        ("sizes", "drawn"),
        [
            ([10, 10, 10], [2, 1]),  # a fourth of the bytes is a window's share
            ([25, 1], [1, 1]),
            ([26, 1], [1, 1]),  # larger than the share
            ([1, 26, 1], [1, 1, 1]),
            ([1_000], [1]),  # larger than everything
            ([0] * 5, [5]),
        ],
    )
    def test_a_window_has_a_share_of_the_bytes(self, sizes: list[int], drawn: list[int]) -> None:
        waiting = backlog(max_bytes=100)
        waiting.fill(P0, 0, [item(offset, size_bytes=size) for offset, size in enumerate(sizes)])
        assert [len(draw(waiting).items) for _ in drawn] == drawn
        assert waiting.items == 0

    def test_records_without_bytes_count_as_items(self) -> None:
        waiting = backlog(max_items=2)
        waiting.fill(P0, 0, run(2, size_bytes=0))
        assert waiting.full


class TestEpochs:
    def test_items_of_a_passed_epoch_are_dropped(self) -> None:
        waiting = backlog()
        waiting.invalidate([P0])
        waiting.fill(P0, 0, run(3))
        assert waiting.items == 0
        waiting.fill(P0, 1, run(3))
        assert waiting.items == 3

    def test_invalidation_forgets_what_waits_and_only_of_that_partition(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(3, partition=P0))
        waiting.fill(P1, 0, run(2, partition=P1))
        waiting.invalidate([P0])
        assert offsets(draw(waiting)) == [(1, 0), (1, 1)]

    def test_a_window_is_current_until_any_of_its_partitions_is_invalidated(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(1, partition=P0))
        waiting.fill(P1, 0, run(1, partition=P1))
        window = draw(waiting)
        waiting.invalidate([P2])
        assert waiting.current(window)
        waiting.invalidate([P1])
        assert not waiting.current(window)


class TestAbandon:
    def test_says_where_to_read_again_and_forgets_what_was_read_since(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(4, first=40, partition=P0))
        waiting.fill(P1, 0, run(2, first=7, partition=P1))
        window = draw(waiting, max_items=5)
        assert first_offsets(waiting.abandon(window)) == {P0: 40, P1: 7}
        assert waiting.items == 0
        assert not waiting.current(window)
        assert [waiting.epoch(p) for p in PARTITIONS] == [1, 1, 0]

    def test_leaves_alone_what_is_read_again_already(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(4, partition=P0))
        waiting.fill(P1, 0, run(4, partition=P1, timestamp_ms=100))
        first, second = draw(waiting, max_items=2), draw(waiting, max_items=3)
        assert first_offsets(waiting.abandon(first)) == {P0: 0}
        waiting.fill(P0, 1, run(4, partition=P0))
        good = draw(waiting, take=lambda _: 1)
        assert offsets(good) == [(0, 0)]
        assert first_offsets(waiting.abandon(second)) == {
            P1: 0
        }  # of partition 0 it held offsets that are being read again
        assert waiting.current(good)
        assert waiting.items == 3
        assert waiting.abandon(second) == {}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.001)  # lets the other thread run; decides nothing


class Background:
    """A call in a thread, and its result."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.result = self._call()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> object:
        self._thread.join(DEADLINE_S)
        assert not self.running, "did not end in time"
        return self.result


class TestRelease:
    def test_waits_for_the_windows_under_way(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(4))
        first, second = draw(waiting, take=lambda _: 1), draw(waiting, take=lambda _: 1)
        release = Background(lambda: waiting.release([P0], DEADLINE_S))
        wait_until(lambda: waiting.items == 0)  # release has dropped what waited, and waits now
        assert waiting.current(first)  # so they may still be committed
        waiting.finish(first)
        assert release.running
        assert waiting.current(second)
        waiting.finish(second)
        assert release.join() is True
        assert not waiting.current(second)

    def test_gives_up_when_the_budget_is_spent(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(1))
        window = draw(waiting)
        assert waiting.release([P0], 0.01) is False
        assert not waiting.current(window)
        waiting.finish(window)

    def test_does_not_wait_for_windows_of_other_partitions(self) -> None:
        waiting = backlog()
        waiting.fill(P1, 0, run(1, partition=P1))
        window = draw(waiting)
        assert waiting.release([P0], 0.0) is True
        assert waiting.current(window)

    def test_does_not_wait_when_nothing_is_under_way(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(2))
        waiting.finish(draw(waiting, take=lambda _: 1))
        assert waiting.release([P0], 0.0) is True
        assert waiting.items == 0
        waiting.fill(P0, 0, run(1, first=2))
        assert waiting.items == 0  # the old epoch


class TestThreads:
    def test_draw_wakes_up_for_a_record(self) -> None:
        waiting = backlog()
        drawing = Background(lambda: draw(waiting))
        waiting.fill(P0, 0, run(1))
        window = drawing.join()
        assert isinstance(window, Window)
        assert offsets(window) == [(0, 0)]

    def test_what_awaits_a_draw_goes_on_when_nothing_waits_any_more(self) -> None:
        waiting = backlog()
        waiting.fill(P0, 0, run(2))
        awaiting = Background(lambda: waiting.await_draw(10 * DEADLINE_S))
        draw(waiting, take=lambda _: 1)
        assert awaiting.running  # one still waits
        draw(waiting)
        awaiting.join()

    def test_what_awaits_a_draw_goes_on_in_time_or_when_closed(self) -> None:
        waiting = backlog()
        Background(lambda: waiting.await_draw(10 * DEADLINE_S)).join()  # nothing waits
        waiting.fill(P0, 0, run(1))
        Background(lambda: waiting.await_draw(0.001)).join()
        awaiting = Background(lambda: waiting.await_draw(10 * DEADLINE_S))
        assert awaiting.running
        waiting.close()
        awaiting.join()

    def test_compute_wakes_up_when_closed(self) -> None:
        waiting = backlog()
        drawing = Background(lambda: waiting.candidates(10, DEADLINE_S))
        waiting.close()
        assert drawing.join() == ([], 0)

    @pytest.fixture
    def _eager_switches(self) -> Iterator[None]:
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield
        sys.setswitchinterval(before)

    @pytest.mark.usefixtures("_eager_switches")
    def test_every_item_once_and_in_order_with_three_fillers_and_a_drawer(self) -> None:
        waiting = backlog()

        def fill(partition: Partition) -> None:
            for first in range(0, 300, 5):
                waiting.fill(partition, 0, run(5, first, partition, timestamp_ms=first))

        fillers = [Background(partial(fill, partition)) for partition in PARTITIONS]
        drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
        while sum(map(len, drawn.values())) < 900:
            window = draw(waiting, max_items=17)
            for partition, offset in offsets(window):
                drawn[partition].append(offset)
            waiting.finish(window)
        for filler in fillers:
            filler.join()
        assert drawn == {0: list(range(300)), 1: list(range(300)), 2: list(range(300))}
        assert waiting.items == 0
        assert waiting.release(PARTITIONS, 0.0) is True


partitions = st.sampled_from(PARTITIONS)


class Life(RuleBasedStateMachine):
    """Intake, compute and publish of a replica, one step at a time, against a plain model.

    The replica must commit each partition's offsets without a gap and without a repetition, whatever is revoked,
    aborted or read again in between.
    """

    @initialize(max_items=st.integers(1, 20), max_bytes=st.integers(1, 60))
    def start(self, max_items: int, max_bytes: int) -> None:
        self.backlog = Backlog(max_items, max_bytes)
        self.bounds = (max_items, max_bytes)
        self.waiting: dict[Partition, deque[Item]] = {p: deque() for p in PARTITIONS}
        self.position = dict.fromkeys(PARTITIONS, 0)  # next offset to read
        self.epochs = dict.fromkeys(PARTITIONS, 0)  # epoch under which the position was set
        self.committed: dict[Partition, int] = dict.fromkeys(PARTITIONS, 0)
        self.under_way: deque[tuple[Window, bool]] = deque()  # and whether it must still be current
        self.handed_out: dict[Partition, list[int]] = {p: [] for p in PARTITIONS}  # since it was last read again
        self.clock = 0
        self.candidates: list[Item] = []

    @rule(partition=partitions, count=st.integers(1, 6), age=st.integers(0, 30), size=st.integers(0, 9))
    def poll(self, partition: Partition, count: int, age: int, size: int) -> None:
        self.clock += 10
        read = run(count, self.position[partition], partition, max(0, self.clock - age), size)
        self.backlog.fill(partition, self.epochs[partition], read)
        if self.epochs[partition] == self.backlog.epoch(partition):
            self.position[partition] += count
            self.waiting[partition].extend(read)

    @rule(take=st.integers(1, 15), max_items=st.integers(1, 12))
    def draw(self, take: int, max_items: int) -> None:
        available = sum(map(len, self.waiting.values()))
        heads = {p: queue[0].timestamp_ms for p, queue in self.waiting.items() if queue}
        window = self.backlog.draw(self.backlog.candidates(max_items, 0.0).items[:take], DISPATCH)
        if not available:
            assert window is None
            return
        assert window is not None
        runs = [source for source, _ in groupby(window.items, key=lambda drawn: drawn.source)]
        assert len(runs) == len(set(runs))  # a partition's items stand together
        assert [heads[p] for p in runs] == sorted(heads.values())[: len(runs)]  # the oldest partitions, in order
        for drawn in window.items:
            assert drawn is self.waiting[drawn.source].popleft()
            self.handed_out[drawn.source].append(drawn.offset)
        for partition in runs[:-1]:
            assert not self.waiting[partition]  # the next partition starts when this one is empty
        share = self.bounds[1] // 4
        assert len(window.items) == 1 or window.size_bytes <= share
        if len(window.items) < min(take, max_items, available):
            heads_left = [queue[0] for queue in self.waiting.values() if queue]
            oldest = min(head.timestamp_ms for head in heads_left)
            following = list(self.waiting[runs[-1]])[:1] or [h for h in heads_left if h.timestamp_ms == oldest]
            assert any(window.size_bytes + each.size_bytes > share for each in following)  # it did not fit
        self.under_way.append((window, True))

    @rule(max_items=st.integers(1, 12))
    def look(self, max_items: int) -> None:
        """Compute looks; what happens before it draws is for the other rules to say."""
        self.candidates = self.backlog.candidates(max_items, 0.0).items

    @rule(take=st.integers(1, 15))
    def draw_what_was_seen(self, take: int) -> None:
        chosen, self.candidates = self.candidates[:take], []
        expected = []
        for seen in chosen:
            queue = self.waiting[seen.source]
            if queue and queue[0] is seen:
                expected.append(queue.popleft())
                self.handed_out[seen.source].append(seen.offset)
        window = self.backlog.draw(chosen, DISPATCH)
        assert (window.items if window else []) == expected
        if window is not None:
            self.under_way.append((window, True))

    @rule(fail=st.booleans())
    def publish(self, fail: bool) -> None:
        """The oldest window: commit it, or abort it and read its partitions again."""
        if not self.under_way:
            return
        window, current = self.under_way.popleft()
        assert self.backlog.current(window) is current
        if current and not fail:
            for partition, offset in window.next_offsets.items():
                held = [drawn.offset for drawn in window.items if drawn.source == partition]
                assert held == list(range(self.committed[partition], offset))  # no gap, no repetition
                self.committed[partition] = offset
        else:
            still = [p for p, epoch in window.epochs.items() if self.backlog.epoch(p) == epoch]
            again: dict[Partition, int] = {}
            self.forget(still, lambda _: again.update(first_offsets(self.backlog.abandon(window))))
            assert again == {p: self.committed[p] for p in still}  # what was revoked is read by its next owner
            for partition in still:
                self.read_again(partition)
        self.backlog.finish(window)

    @rule(lost=st.lists(partitions, unique=True, min_size=1))
    def lose(self, lost: list[Partition]) -> None:
        self.forget(lost, self.backlog.invalidate)

    @rule(revoked=st.lists(partitions, unique=True, min_size=1))
    def revoke(self, revoked: list[Partition]) -> None:
        busy = any(p in window.epochs for window, _ in self.under_way for p in revoked)
        finished: list[bool] = []
        self.forget(revoked, lambda gone: finished.append(self.backlog.release(gone, 0.0)))
        assert finished == [not busy]

    @rule(partition=partitions)
    def assign(self, partition: Partition) -> None:
        """Only where the position was lost: Kafka assigns no partition twice."""
        if self.epochs[partition] != self.backlog.epoch(partition):
            self.read_again(partition)

    def forget(self, gone: list[Partition], how: Callable[[list[Partition]], object]) -> None:
        how(gone)
        for partition in gone:
            self.waiting[partition].clear()
        self.under_way = deque((w, ok and not set(gone) & set(w.epochs)) for w, ok in self.under_way)

    def read_again(self, partition: Partition) -> None:
        self.epochs[partition] = self.backlog.epoch(partition)
        self.position[partition] = self.committed[partition]
        self.handed_out[partition] = []

    @invariant()
    def counts_are_right(self) -> None:
        held = [waiting for queue in self.waiting.values() for waiting in queue]
        assert self.backlog.items == len(held)
        size = sum(drawn.size_bytes for drawn in held)
        size += sum(drawn.size_bytes for window, _ in self.under_way for drawn in window.items)
        assert self.backlog.size_bytes == size
        assert self.backlog.unfinished == len(held) + sum(len(window.items) for window, _ in self.under_way)
        assert self.backlog.full == (len(held) >= self.bounds[0] or size >= self.bounds[1])

    @invariant()
    def nothing_is_handed_out_twice(self) -> None:
        for partition in PARTITIONS:
            handed_out = self.handed_out[partition]
            assert handed_out == list(range(handed_out[0], handed_out[0] + len(handed_out))) if handed_out else True

    def teardown(self) -> None:
        """What is still waiting comes out, once and in order."""
        while any(self.waiting.values()):
            self.draw(take=5, max_items=12)
            self.nothing_is_handed_out_twice()
        assert self.backlog.candidates(1, 0.0) == ([], 0)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60),
    max_bytes=st.integers(1, 200),
    max_items=st.integers(1, 20),
    max_poll_items=st.integers(1, 10),
    max_under_way=st.integers(1, 6),  # more than two where offsets are committed outside of transactions
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_whatever_the_sizes_memory_is_bounded_and_everything_comes_out(
    sizes: list[int],
    max_bytes: int,
    max_items: int,
    max_poll_items: int,
    max_under_way: int,
    order: random.Random,
) -> None:
    """The three threads of a replica, one step at a time, in any order: each step that is possible may come next."""
    waiting = Backlog(max_items, max_bytes)
    polled, committed, largest_poll_bytes = 0, 0, 0
    under_way: deque[Window] = deque()
    while committed < len(sizes):
        possible = []
        if polled < len(sizes) and not waiting.full:
            possible.append("poll")
        if waiting.items and len(under_way) < max_under_way:
            possible.append("draw")
        if under_way:
            possible.append("finish")
        assert possible, "nothing can go on"
        step = order.choice(possible)
        if step == "poll":
            poll = sizes[polled : polled + max_poll_items]
            waiting.fill(P0, 0, [item(polled + n, size_bytes=size) for n, size in enumerate(poll)])
            polled += len(poll)
            largest_poll_bytes = max(largest_poll_bytes, sum(poll))
        elif step == "draw":
            under_way.append(draw(waiting, take=lambda found: order.randint(1, len(found))))
        else:
            waiting.finish(window := under_way.popleft())
            assert offsets(window)[0] == (0, committed)
            committed += len(window.items)
        assert waiting.size_bytes <= max_bytes + largest_poll_bytes
    assert (waiting.items, waiting.size_bytes) == (0, 0)
