"""Connections to Kafka that tell why they cannot be made."""

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
    """kafka-python's connections. A client that cannot get its first one raises the reason, and leaves nothing open.

    kafka-python 3.0 tries again until its time is up, whatever a broker says, and then tells that time is up. What it
    reads together with the end of a connection it drops, and that is how a broker refuses credentials. A socket whose
    handshake fails it leaves open.
    """

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
        """As kafka-python's. It is called by constructors: where it raises, nobody has a client to close."""
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
    """`receive` returns what it read and the error that ended the connection, if it did; here one after the other."""
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
