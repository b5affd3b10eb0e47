"""A kafka-python client whose requests a test sees before they are sent, and may answer itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

Send = Callable[[], Future]
Look = Callable[[Any, Send], Future]  #: a request, and what sends it, to the future of its answer


def between(look: Look) -> Callable[..., KafkaNetClient]:
    """What `kafka_client` of a kafka-python client takes."""

    class Manager(KafkaConnectionManager):  # type: ignore[misc]
        def send(self, request: Any, *arguments: Any, **options: Any) -> Future:
            return look(request, lambda: super(Manager, self).send(request, *arguments, **options))

    def client(**configs: Any) -> KafkaNetClient:
        net = NetworkSelector(**configs)
        return KafkaNetClient(net, Manager(net, **configs))

    return client
