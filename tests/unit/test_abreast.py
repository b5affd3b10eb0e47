"""Two calls at the same time, each with half of torch's threads, and never one that goes on alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from twinlens.inference.abreast import Abreast

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_both_run_at_the_same_time_with_half_of_the_threads() -> None:
    meet = threading.Barrier(2, timeout=DEADLINE_S)

    def threads() -> int:
        meet.wait()  # raises where the other one does not come
        return torch.get_num_threads()

    paths = Abreast("cpu")
    assert paths.run(threads, threads, abreast=True) == (2, 2)
    assert paths.run(threads, threads, abreast=True) == (2, 2)


@pytest.mark.parametrize(("device", "abreast"), [("cpu", False), ("cuda", True)])
def test_in_turn_with_all_threads(device: str, abreast: bool) -> None:
    order: list[str] = []

    def note(name: str) -> tuple[int, threading.Thread]:
        order.append(name)
        return torch.get_num_threads(), threading.current_thread()

    here = (4, threading.current_thread())
    assert Abreast(device).run(lambda: note("first"), lambda: note("second"), abreast=abreast) == (here, here)
    assert order == ["first", "second"]


def test_the_threads_come_back_after_a_change_of_mode() -> None:
    paths = Abreast("cpu")
    assert paths.run(torch.get_num_threads, torch.get_num_threads, abreast=True) == (2, 2)
    assert paths.run(torch.get_num_threads, torch.get_num_threads, abreast=False) == (4, 4)


def test_one_thread_is_not_halved() -> None:
    torch.set_num_threads(1)
    me = threading.current_thread
    assert Abreast("cpu").run(me, me, abreast=True) == (me(), me())


@pytest.mark.parametrize("failing", ["first", "second"])
def test_an_error_comes_out_when_neither_runs_any_more(failing: str) -> None:
    ended: list[str] = []
    meet = threading.Barrier(2, timeout=DEADLINE_S)

    def work(name: str) -> None:
        meet.wait()
        if name == failing:
            raise RuntimeError(name)
        ended.append(name)

    with pytest.raises(RuntimeError, match=failing):
        Abreast("cpu").run(lambda: work("first"), lambda: work("second"), abreast=True)
    assert len(ended) == 1


def test_closing_ends_the_second_thread() -> None:
    paths = Abreast("cpu")
    other, _ = paths.run(threading.current_thread, lambda: None, abreast=True)
    paths.close()
    other.join(DEADLINE_S)
    assert not other.is_alive()


def test_at_the_end_of_the_process_the_last_window_still_has_both() -> None:
    """There replicas stop where Ray ends them in order, and executors take no calls any more."""
    program = """
import atexit, torch
from twinlens.inference.abreast import Abreast
torch.set_num_threads(2)
paths = Abreast("cpu")
atexit.register(lambda: print(paths.run(lambda: "both", lambda: "there", abreast=True)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "('both', 'there')"
