"""Signals while Ray starts. In the middle of ray.init() an interrupt would crash the process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from twinlens.serving.cluster import connected_cluster, local_cluster, terminate_like_ctrl_c


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happened, in order. Signals are handled as in the commands, and the former handlers come back afterwards."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    terminate_like_ctrl_c()
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests of this process may have a Ray
    yield []
    for each, handler in before.items():
        signal.signal(each, handler)


def starting(monkeypatch: pytest.MonkeyPatch, came: list[str], during: Callable[[], None]) -> None:
    """Let ray.init() do `during`, and set its own handler of SIGTERM as it does."""

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        came.append("starts")
        during()
        came.append("started")

    monkeypatch.setattr(ray, "init", init)


def test_ctrl_c_waits_until_ray_has_started(monkeypatch: pytest.MonkeyPatch, came: list[str]) -> None:
    starting(monkeypatch, came, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), local_cluster():
        came.append("runs")
    assert came == ["starts", "started"]


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch, came: list[str]) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    starting(monkeypatch, came, twice)
    with pytest.raises(KeyboardInterrupt), local_cluster():
        came.append("runs")
    assert came == ["starts"]


def test_ctrl_c_is_not_lost_where_ray_does_not_start(monkeypatch: pytest.MonkeyPatch, came: list[str]) -> None:
    def fail() -> None:
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("no memory")

    starting(monkeypatch, came, fail)
    with pytest.raises(KeyboardInterrupt), local_cluster():
        came.append("runs")


def test_ctrl_c_does_not_wait_for_a_cluster_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, came: list[str]
) -> None:
    starting(monkeypatch, came, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), connected_cluster("127.0.0.1:1", verbose=False):
        came.append("runs")
    assert came == ["starts"]


@pytest.mark.parametrize("cluster", [local_cluster, lambda: connected_cluster("127.0.0.1:1", verbose=False)])
def test_sigterm_ends_the_command_like_ctrl_c_once_ray_has_started(
    monkeypatch: pytest.MonkeyPatch, came: list[str], cluster: Any
) -> None:
    starting(monkeypatch, came, lambda: None)
    with pytest.raises(KeyboardInterrupt), cluster():
        signal.raise_signal(signal.SIGTERM)
