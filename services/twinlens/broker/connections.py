"""Connections to Kafka that tell why they cannot be made."""

from __future__ import annotations

import ssl
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

from twinlens.errors import AskUser
from twinlens.kafka_settings import KafkaSettings

Received = tuple[bytes, Exception | None]
BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  #: the broker may be starting or stopping


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


def tls_error(error: Exception) -> ssl.SSLError | None:
    """What TLS said, where it said anything, of a connection that failed."""
    for cause in (*error.args, error.__context__):
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, BROKEN_OFF):
            return cause
    return None


def check_certificates(kafka: KafkaSettings) -> None:
    """AskUser when a file of `kafka.ssl_*` cannot be used. kafka-python reads them anew for every connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if kafka.ssl_cafile:
        try:
            context.load_verify_locations(kafka.ssl_cafile)
        except OSError as error:
            raise AskUser(
                f"kafka.ssl_cafile {kafka.ssl_cafile} is no PEM file with certificates ({_reason(error)})."
            ) from None
    if kafka.ssl_certfile:
        secret = kafka.ssl_password
        # Without a password OpenSSL would ask for one on the terminal.
        password = (lambda: "") if secret is None else secret.get_secret_value()
        try:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, password)
        except (OSError, ValueError) as error:
            files = f"{kafka.ssl_certfile} and kafka.ssl_keyfile {kafka.ssl_keyfile or '(the same file)'}"
            raise AskUser(
                f"kafka.ssl_certfile {files} are no PEM certificate and its key, or kafka.ssl_password "
                f"(TWINLENS_KAFKA__SSL_PASSWORD) does not open the key ({_reason(error)})."
            ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
