"""An interrupt while Ray starts takes effect once it has started; in the middle of it, it would crash the process."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import ray

from twinlens.serving.cluster import connected_cluster, local_cluster


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("cluster", [local_cluster, lambda: connected_cluster("127.0.0.1:1", verbose=False)])
def test_an_interrupt_waits_until_ray_has_started(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, cluster: Any
) -> None:
    came: list[str] = []

    def interrupt(*_: Any) -> None:
        came.append("interrupt")
        raise KeyboardInterrupt

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does, with a handler of its own
        if number is signal.SIGINT:
            os.kill(os.getpid(), number)
        came.append("started")

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(ray, "init", init)
    try:
        if number is signal.SIGINT:
            with pytest.raises(KeyboardInterrupt), cluster():
                came.append("running")
            assert came == ["started", "interrupt"]
        else:
            with pytest.raises(KeyboardInterrupt), cluster():
                os.kill(os.getpid(), number)
            assert came == ["started", "interrupt"], "the former handler is back"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
