"""The lag thread of the monitor."""

from __future__ import annotations

import pytest
from kafka.errors import NotCoordinatorError

from tests.support.replicas import wait_until
from twinlens.monitor import monitor as module
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
    monkeypatch.setattr(module, "LagProbe", Probe)
    monkeypatch.setattr(module, "LAG_PERIOD_S", 0.01)
    monitor = module.Monitor(Settings.load({}))
    thread = WatchedThread("lag", monitor._watch_lag)
    thread.start()
    try:
        wait_until(lambda: monitor.view(0).lag == {0: 3}, "the lag is known", 10)
    finally:
        monitor._stopping.set()
        assert thread.join(5)
    thread.check()
    assert Probe.made == Probe.closed
