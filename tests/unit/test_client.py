"""Clients that cannot be made: what they tell, and that nothing of them is left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.replicas import wait_until
from twinlens.broker import client
from twinlens.errors import AskUser
from twinlens.serving.cluster import free_port
from twinlens.settings import KafkaSettings


@pytest.mark.parametrize("make", [client.new_admin, client.new_consumer, client.new_producer])
def test_a_client_that_reaches_no_broker_leaves_no_thread(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tries again for hours would pile them up: kafka-python leaves them running."""
    monkeypatch.setattr(client, "BOOTSTRAP_TIMEOUT_MS", 300)
    before = set(threading.enumerate())
    with pytest.raises(AskUser, match="No Kafka broker answers"):
        make(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"))
    wait_until(lambda: set(threading.enumerate()) <= before, "its threads have ended", 10)
