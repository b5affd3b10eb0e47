"""Two passes at a time, each with half of torch's threads, and never one that goes on alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch

from twinlens.paths import lanes as module
from twinlens.paths.lanes import Lanes, Pass

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lanes() -> Iterator[Callable[[bool], Lanes]]:
    made: list[Lanes] = []

    def make(two: bool) -> Lanes:
        made.append(Lanes(two))
        return made[-1]

    yield make
    for each in made:
        each.close()


def noting(noted: list[tuple[int, int, threading.Thread]], meet: threading.Barrier | None = None) -> Pass:
    def run(lane: int) -> None:
        if meet is not None:
            meet.wait()  # raises where the other one does not come
        noted.append((lane, torch.get_num_threads(), threading.current_thread()))

    return run


def test_two_at_the_same_time_with_half_of_the_threads_each(lanes: Callable[[bool], Lanes]) -> None:
    both = lanes(True)
    assert both.count == 2
    for _ in range(2):
        noted: list[tuple[int, int, threading.Thread]] = []
        meet = threading.Barrier(2, timeout=DEADLINE_S)
        both.run([noting(noted, meet)] * 4)
        assert [count for _, count, _ in noted] == [2] * 4
        assert sorted(lane for lane, _, _ in noted) == [0, 0, 1, 1]
        assert len({(lane, thread) for lane, _, thread in noted}) == 2  # a lane is a thread


def test_a_lane_that_is_free_takes_the_next_pass(lanes: Callable[[bool], Lanes]) -> None:
    noted: list[tuple[int, int, threading.Thread]] = []
    short, all_short = [noting(noted)] * 5, threading.Event()

    def last(_: int) -> None:
        all_short.set()

    def long(_: int) -> None:
        assert all_short.wait(DEADLINE_S), "they waited for the long one"

    lanes(True).run([long, *short, last])
    assert len({thread for _, _, thread in noted}) == 1


@pytest.mark.parametrize(("two", "threads"), [(True, 1), (False, 4)])
def test_one_lane_takes_them_in_turn_with_all_threads(two: bool, threads: int, lanes: Callable[[bool], Lanes]) -> None:
    torch.set_num_threads(threads)
    one = lanes(two)
    noted: list[tuple[int, int, threading.Thread]] = []
    order: list[str] = []
    one.run([noting(noted), lambda _: order.append("second"), lambda _: order.append("third"), noting(noted)])
    assert one.count == 1
    assert noted == [(0, threads, threading.current_thread())] * 2
    assert order == ["second", "third"]


def test_one_pass_alone_has_all_threads(lanes: Callable[[bool], Lanes]) -> None:
    noted: list[tuple[int, int, threading.Thread]] = []
    both = lanes(True)
    for _ in range(2):
        both.run([noting([]), noting([])])
        both.run([noting(noted)])
    assert noted == [(0, 4, threading.current_thread())] * 2


def test_nothing_to_run(lanes: Callable[[bool], Lanes]) -> None:
    lanes(True).run([])


@pytest.mark.parametrize("failing", ["first", "second"])
def test_an_error_comes_out_when_nothing_runs_any_more(failing: str, lanes: Callable[[bool], Lanes]) -> None:
    ended: list[str] = []
    meet = threading.Barrier(2, timeout=DEADLINE_S)

    def work(name: str) -> None:
        meet.wait()
        if name == failing:
            raise RuntimeError(name)
        ended.append(name)

    both = lanes(True)
    with pytest.raises(RuntimeError, match=failing):
        both.run([lambda _: work("first"), lambda _: work("second")])
    assert len(ended) == 1
    noted: list[tuple[int, int, threading.Thread]] = []
    both.run([noting(noted, threading.Barrier(2, timeout=DEADLINE_S))] * 2)
    assert len(noted) == 2  # and both lanes are there for the next window


def test_after_an_error_no_other_pass_is_begun(lanes: Callable[[bool], Lanes]) -> None:
    waiting: list[Pass] = []
    cleared = threading.Event()

    class Passes(deque[Pass]):
        def clear(self) -> None:
            super().clear()
            cleared.set()

    def fail(_: int) -> None:
        raise RuntimeError("broken")

    def outlast(_: int) -> None:
        assert cleared.wait(DEADLINE_S), "the others were not put off"

    noted: list[tuple[int, int, threading.Thread]] = []
    waiting += [fail, outlast, *[noting(noted)] * 100]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "deque", Passes)
        with pytest.raises(RuntimeError, match="broken"):
            lanes(True).run(waiting)
    assert noted == []


def test_the_threads_of_a_lane_stay_what_they_are_in_its_operations(lanes: Callable[[bool], Lanes]) -> None:
    """Before its first operation a thread takes the number of the process, whatever was set in it."""
    torch.set_num_threads(3)
    counts: dict[int, int] = {}
    meet = threading.Barrier(2, timeout=DEADLINE_S)

    def operate(lane: int) -> None:
        meet.wait()
        torch.ones(10) + 1
        counts[lane] = torch.get_num_threads()

    lanes(True).run([operate, operate])
    assert counts == {0: 2, 1: 1}


def test_closing_ends_the_second_thread(lanes: Callable[[bool], Lanes]) -> None:
    noted: list[tuple[int, int, threading.Thread]] = []
    both = lanes(True)
    both.run([noting(noted, threading.Barrier(2, timeout=DEADLINE_S))] * 2)
    both.close()
    (other,) = {thread for lane, _, thread in noted if lane == 1}
    other.join(DEADLINE_S)
    assert not other.is_alive()


def test_at_the_end_of_the_process_the_last_window_still_has_both() -> None:
    """There replicas stop where Ray ends them in order, and executors take no calls any more."""
    program = """
import atexit, threading, torch
from twinlens.paths.lanes import Lanes
torch.set_num_threads(2)
lanes = Lanes(True)
meet = threading.Barrier(2, timeout=20)
atexit.register(lambda: lanes.run([lambda lane: (meet.wait(), print("lane"))] * 2))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.count("lane") == 2
