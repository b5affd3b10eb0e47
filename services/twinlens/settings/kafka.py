"""The section `kafka` of the settings tree: the addresses of the cluster and the credentials for it."""

from __future__ import annotations

from typing import Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

HTTP_LOOPBACK = [("http", host) for host in ("127.0.0.1", "::1", "localhost")]  #: for a sidecar or a test


class Section(BaseModel):
    """A section of the tree. Unknown names are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class KafkaSettings(Section):
    """Settings for the connection to the cluster and for the membership in the consumer group."""

    bootstrap_servers: str = "127.0.0.1:9092"
    group_id: str | None = None
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    session_timeout_ms: int = Field(10_000, ge=500)
    static_membership: bool = False
    max_poll_interval_ms: int = Field(300_000, ge=1_000)
    request_timeout_ms: int = Field(30_000, ge=1_000)
    transaction_timeout_ms: int = Field(10_000, ge=1_000)
    max_request_bytes: int = Field(2 * 1024 * 1024, ge=1_024)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_oauth_token_url: str | None = None
    sasl_oauth_client_id: str | None = None
    sasl_oauth_client_secret: SecretStr | None = None
    sasl_oauth_scope: str | None = None
    sasl_oauth_cafile: str | None = None
    sasl_oauth_token_file: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: SecretStr | None = None
    ssl_check_hostname: bool = True

    @model_validator(mode="after")
    def _credentials_are_complete(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            if self.sasl_mechanism is None:
                raise ValueError(f"{self.security_protocol} needs sasl_mechanism")
            if missing := [name for name in self._needed() if not getattr(self, name)]:
                raise ValueError(
                    f"{self.security_protocol} with {self.sasl_mechanism} needs {' and '.join(missing)}"
                    f"{' (or sasl_oauth_token_file)' if self.sasl_mechanism == 'OAUTHBEARER' else ''}; "
                    "secrets come from the environment or the secrets folder of each process"
                )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @model_validator(mode="after")
    def _tokens_come_one_way_and_safely(self) -> Self:
        if self.sasl_oauth_token_url is not None:
            if self.sasl_oauth_token_file is not None:
                raise ValueError("sasl_oauth_token_url and sasl_oauth_token_file exclude each other")
            url = urlsplit(self.sasl_oauth_token_url)
            if not url.hostname or (url.scheme != "https" and (url.scheme, url.hostname) not in HTTP_LOOPBACK):
                raise ValueError("sasl_oauth_token_url must be an https address: the client's secret is sent there")
            if url.username or url.password:
                raise ValueError("sasl_oauth_token_url is shown in errors: set sasl_oauth_client_id and its secret")
        return self

    def _needed(self) -> tuple[str, ...]:
        """The settings that the SASL mechanism needs."""
        if self.sasl_mechanism != "OAUTHBEARER":
            return ("sasl_username", "sasl_password")
        if self.sasl_oauth_token_file is not None:
            return ()
        return ("sasl_oauth_token_url", "sasl_oauth_client_id", "sasl_oauth_client_secret")


#: Names of the secret settings.
SECRETS = tuple(name for name, field in KafkaSettings.model_fields.items() if SecretStr in get_args(field.annotation))
