"""Connections to Kafka that tell why they cannot be made.

Four defects of kafka-python 3.0.12, and the test that fails when the repair is no longer needed:

* A client that cannot get its first connection tries again until its time is up, also where no other try can help, and
  then tells only that time is up (`get_connection`, `_do_bootstrap`). Java raises what authentication or TLS refused.
  `test_a_client_that_no_other_try_helps_tells_only_that_time_is_up`
* A constructor that raises leaves its threads running (`bootstrap`). Java closes what it has opened.
  `test_a_client_that_cannot_be_made_leaves_a_thread`
* A socket whose handshake fails stays open (`_build_transport`).
  `test_a_socket_whose_handshake_fails_is_left_to_the_garbage_collector`
* What is read together with the end of a connection is dropped (`_data_before_the_end`). This is how a broker refuses
  credentials. `test_what_is_read_together_with_the_end_of_a_connection_is_dropped`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from twinlens.broker.tls import tls_error

Received = tuple[bytes, Exception | None]


class Connections(KafkaConnectionManager):  # type: ignore[misc]
    """kafka-python's connections. A client that cannot get its first one raises the reason, and leaves nothing open."""

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs)
        self._reason: Exception | None = None

    def get_connection(self, node_id: Any, **arguments: Any) -> Any:
        """Raises the reason when no first connection can ever be made."""
        if self._reason is not None and not self.bootstrapped and is_final(self._reason):
            raise self._reason
        connection = super().get_connection(node_id, **arguments)
        if not connection.init_future.is_done:
            connection.init_future.add_errback(self._remember)
        return connection

    def _remember(self, error: Exception) -> None:
        self._reason = error

    def bootstrap(self, *arguments: Any, **options: Any) -> None:
        """Like kafka-python's, but closes what it opened if it raises: the caller has no client to close."""
        try:
            super().bootstrap(*arguments, **options)
        except BaseException:
            self.close()
            self._net.close()
            raise

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        options, proxy = self.config["socket_options"], self.config["proxy_url"]
        sock = await create_connection(self._net, node.host, node.port, options, proxy_url=proxy, timeout_at=timeout_at)
        tls = {name: value for name, value in self.config.items() if name.startswith("ssl_")}
        try:
            transport = (
                KafkaSSLTransport(self._net, sock, host=node.host, **tls)
                if self.ssl_enabled
                else KafkaTCPTransport(self._net, sock, host=node.host)
            )
        except (OSError, ValueError):
            sock.close()
            raise
        try:
            await transport.handshake()
        except Exception as error:
            transport.abort(error)
            raise KafkaConnectionError(f"Handshake failed: {error}") from error
        transport._sock_recv = _data_before_the_end(transport._sock_recv)
        return transport

    async def _do_bootstrap(self, deadline: float | None) -> Any:
        try:
            return await super()._do_bootstrap(deadline)
        except KafkaTimeoutError:
            raise self._reason or KafkaTimeoutError("no answer") from None


class Client(KafkaNetClient):  # type: ignore[misc]
    """What `kafka_client` of a kafka-python client takes."""

    def __init__(self, **configs: Any) -> None:
        net = NetworkSelector(**configs)
        super().__init__(net, Connections(net, **configs))


def _data_before_the_end(receive: Callable[[], Received]) -> Callable[[], Received]:
    """`receive` returns data together with the error that ended the connection; this, the error at the next call."""
    ended: list[Exception | None] = []

    def receive_in_turn() -> Received:
        if ended:
            return b"", ended.pop()
        data, error = receive()
        if data and error is not None:
            ended.append(error)
            return data, None
        return data, error

    return receive_in_turn


def is_final(error: Exception) -> bool:
    """Whether every other try will end in the same way, until a person changes something."""
    refused = isinstance(error, SaslAuthenticationFailedError | UnsupportedSaslMechanismError)
    return refused or tls_error(error) is not None
