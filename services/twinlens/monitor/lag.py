"""Measures the consumer lag for the monitor."""

from __future__ import annotations

import threading

import structlog
from kafka.errors import KafkaError

from twinlens.broker.lag import LagProbe
from twinlens.errors import AskUser
from twinlens.settings import Settings

log = structlog.get_logger(__name__)

PERIOD_S = 1.0


class LagWatch:
    """Requests the lag every `PERIOD_S`. `run` runs in a separate thread with separate clients, so that an unavailable
    broker does not delay the fold.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.lag: dict[int, int] | None = None  #: records behind, per partition of the input topic; None: unknown

    def run(self, stopping: threading.Event) -> None:
        """Measure until `stopping` is set."""
        probe: LagProbe | None = None
        try:
            while not stopping.wait(PERIOD_S):
                try:
                    probe = probe or LagProbe(self._settings)
                    self.lag = probe.lag()
                except (KafkaError, AskUser) as error:
                    self.lag = None
                    log.warning("lag is not known", error=repr(error))
                    if probe is not None:  # kafka-python's admin client keeps asking a coordinator that has moved
                        probe.close()
                        probe = None
        finally:
            if probe is not None:
                probe.close()
