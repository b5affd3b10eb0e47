"""TLS: checks of the certificate files, and the TLS error behind a failed connection."""

from __future__ import annotations

import ssl

from twinlens.errors import AskUser
from twinlens.settings import KafkaSettings

BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  #: the broker may be starting or stopping


def tls_error(error: Exception) -> ssl.SSLError | None:
    """The TLS error that made a connection fail, or None if the reason was another one."""
    for cause in (*error.args, error.__context__):
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, BROKEN_OFF):
            return cause
    return None


def check_certificates(kafka: KafkaSettings) -> None:
    """Raise AskUser if a file of `kafka.ssl_*` cannot be used. kafka-python reads them again for every connection."""
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
