"""The lag thread of the monitor."""

from __future__ import annotations

import threading

import pytest
from kafka.errors import NotCoordinatorError

from tests.support.replicas import wait_until
from twinlens.monitor import lag
from twinlens.settings import Settings
from twinlens.threads import WatchedThread


class Probe:
    """Like kafka-python's admin client: one that has asked a coordinator that has moved never asks another one."""

    made: int = 0
    closed: int = 0

    def __init__(self, _: Settings) -> None:
        Probe.made += 1
        self._stale = Probe.made == 1

    def lag(self) -> dict[int, int]:
        if self._stale:
            raise NotCoordinatorError()
        return {0: 3}

    def close(self) -> None:
        Probe.closed += 1


def test_the_lag_is_known_again_after_the_coordinator_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "LagProbe", Probe)
    monkeypatch.setattr(lag, "PERIOD_S", 0.01)
    watch, stopping = lag.LagWatch(Settings.load({})), threading.Event()
    thread = WatchedThread("lag", lambda: watch.run(stopping))
    thread.start()
    try:
        wait_until(lambda: watch.lag == {0: 3}, "the lag is known", 10)
    finally:
        stopping.set()
        assert thread.join(5)
    thread.check()
    assert Probe.made == Probe.closed
