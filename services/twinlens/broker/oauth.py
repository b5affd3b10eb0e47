"""Access tokens for SASL OAUTHBEARER (RFC 7628), from a token server or from a file that another program renews."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import structlog
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError
from kafka.net.sasl.oauth import AbstractTokenProvider

from twinlens.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

TIMEOUT_S = 4.0  #: twice this is less than the default session timeout: the thread that waits also sends heartbeats
RENEWAL_SHARE = 0.8  #: a new token is requested after this share of a token's life, as in Kafka's own clients
DEFAULT_LIFE_S = 60.0  #: life of a token if its server does not give one
MAX_ANSWER_BYTES = 64 * 1024


class TokenUnavailableError(KafkaConnectionError):  # type: ignore[misc]
    """No token is available now. A later connection may get one."""


class FileToken(AbstractTokenProvider):  # type: ignore[misc]
    """The token in a file, read for every connection: Kubernetes renews projected service-account tokens in place."""

    def __init__(self, path: str) -> None:
        self._path = path

    def token(self) -> str:
        """The token in the file. Raises TokenUnavailableError if there is none."""
        try:
            return _checked(Path(self._path).read_text().strip())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it holds no token"
            raise TokenUnavailableError(f"kafka.sasl_oauth_token_file {self._path} cannot be used: {reason}") from None


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]
    """The client-credentials grant (RFC 6749, 4.4). All connections of a process share one token until its renewal.

    If the token server does not answer then, the old token is used as long as it is valid.
    """

    def __init__(self, kafka: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        assert kafka.sasl_oauth_token_url
        assert kafka.sasl_oauth_client_id
        assert kafka.sasl_oauth_client_secret  # the validator of the settings makes sure
        self._url = kafka.sasl_oauth_token_url
        secret = kafka.sasl_oauth_client_secret.get_secret_value()
        credentials = f"{quote_plus(kafka.sasl_oauth_client_id)}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
        form = {"grant_type": "client_credentials"}
        if kafka.sasl_oauth_scope:
            form["scope"] = kafka.sasl_oauth_scope
        self._request = urllib.request.Request(  # noqa: S310 - the setting's validator checks the scheme
            self._url,
            urlencode(form).encode(),
            {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}", "Accept": "application/json"},
        )
        tls = ssl.create_default_context(cafile=kafka.sasl_oauth_cafile)
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=tls))
        self._clock = clock
        self._lock = threading.Lock()
        self._token, self._renew_at, self._expires_at = "", 0.0, 0.0

    def token(self) -> str:
        """A valid token. Raises SaslAuthenticationFailedError or TokenUnavailableError if there is none."""
        with self._lock:
            now = self._clock()
            if not self._token or now >= self._renew_at:
                try:
                    self._renew(now)
                except (SaslAuthenticationFailedError, TokenUnavailableError) as error:
                    if not self._token or now >= self._expires_at:
                        raise
                    log.warning("token not renewed yet", error=str(error))
            return self._token

    def _renew(self, now: float) -> None:
        try:
            answer = self._ask()
        except TokenUnavailableError:
            answer = self._ask()
        try:
            token, life_s = _checked(answer["access_token"]), float(answer.get("expires_in") or DEFAULT_LIFE_S)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TokenUnavailableError(f"the token server at {self._url} answered without a token") from None
        self._token, self._renew_at, self._expires_at = token, now + RENEWAL_SHARE * life_s, now + life_s

    def _ask(self) -> Any:
        try:
            with self._opener.open(self._request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                said = f"{error.code} {_error_code(error)}".strip()
            if error.code in (400, 401, 403):
                raise SaslAuthenticationFailedError(f"the token server at {self._url} refused: {said}") from None
            raise TokenUnavailableError(f"the token server at {self._url} answered {said}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TokenUnavailableError(f"the token server at {self._url} does not answer: {reason}") from None
        except ValueError:
            raise TokenUnavailableError(f"the token server at {self._url} answered no JSON") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: the credentials are only for the server in the settings."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@functools.lru_cache(maxsize=8)
def token_provider(kafka: KafkaSettings) -> AbstractTokenProvider:
    """The source of tokens for OAUTHBEARER. There is one per process, so that all its clients share the token."""
    if kafka.sasl_oauth_token_file is not None:
        return FileToken(kafka.sasl_oauth_token_file)
    return ClientCredentials(kafka)


def _checked(token: str) -> str:
    """Return `token` if it has the form of a token (RFC 6750, 2.1), else raise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise ValueError
    return token


def _error_code(error: urllib.error.HTTPError) -> str:
    """The one-word `error` of the answer (RFC 6749, 5.2), or "". Its description might quote what was sent."""
    try:
        said = str(json.loads(error.read(MAX_ANSWER_BYTES))["error"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return ""
    return said if re.fullmatch(r"[a-z_]{1,40}", said) else ""
