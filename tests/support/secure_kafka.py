"""A real Kafka that lets nobody in without credentials, and nobody do anything without an ACL.

Beside `PLAINTEXT`, whose anonymous user may do everything and which only fixtures use, it has three listeners:
`SASL` (over TLS: PLAIN, SCRAM), `MTLS` (client certificates) and `OAUTH` (OAUTHBEARER with Kafka's validator of
unsigned tokens). On each of them the same user, `tweeter`, can be let in.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from tests.support.apache_kafka import Cluster, Listener, apache_kafka

USER, PASSWORD = "tweeter", "pass-word-of-the-tweeter"
KEY_PASSWORD = "pass-word-of-the-key"
ACL_DEADLINE_S = 10.0
ANY_ACL = ACLFilter(
    None,
    None,
    ACLOperation.ANY,
    ACLPermissionType.ANY,
    ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY),
)
PROPERTIES = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
ssl.principal.mapping.rules=RULE:^CN=([^,]+)$/$1/
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config={security}.plain.PlainLoginModule required user_{user}="{password}";
listener.name.sasl.scram-sha-256.sasl.jaas.config={security}.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config={security}.scram.ScramLoginModule required;
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=\
{security}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
"""


@dataclass(frozen=True)
class SecureKafka:
    """The cluster, its certificates, and who may do what on it."""

    cluster: Cluster
    folder: Path  #: ca.pem; other.pem, an authority that it does not know; tweeter.pem and .key, which has a password
    admin: KafkaAdminClient

    def kafka(self, listener: str, **settings: Any) -> dict[str, Any]:
        """Section `kafka` of the settings for a listener; what it lacks are credentials."""
        protocol = {"PLAINTEXT": "PLAINTEXT", "SASL": "SASL_SSL", "MTLS": "SSL", "OAUTH": "SASL_PLAINTEXT"}[listener]
        tls = {"ssl_cafile": str(self.folder / "ca.pem")} if protocol.endswith("SSL") else {}
        common = {"bootstrap_servers": self.cluster.bootstrap(listener), "session_timeout_ms": 3_000}
        return {**common, "security_protocol": protocol, **tls, **settings}

    def sasl(self, mechanism: str = "SCRAM-SHA-512", **settings: Any) -> dict[str, Any]:
        """The same, complete, for a mechanism with a password."""
        credentials = {"sasl_mechanism": mechanism, "sasl_username": USER, "sasl_password": PASSWORD}
        return self.kafka("SASL", **{**credentials, **settings})

    def mtls(self, **settings: Any) -> dict[str, Any]:
        """The same for a client certificate."""
        files = {"ssl_certfile": str(self.folder / f"{USER}.pem"), "ssl_keyfile": str(self.folder / f"{USER}.key")}
        return self.kafka("MTLS", **{**files, "ssl_password": KEY_PASSWORD, **settings})

    @contextlib.contextmanager
    def allowing(self, acls: set[ACL]) -> Iterator[None]:
        """These ACLs and no others within the block."""
        before = self._acls()
        self._change(before, acls)
        try:
            yield
        finally:
            self._change(acls, before)

    def _change(self, old: set[ACL], new: set[ACL]) -> None:
        if old - new:
            self.admin.delete_acls([_filter(each) for each in old - new])
        if new - old:
            self.admin.create_acls(list(new - old))
        end = time.monotonic() + ACL_DEADLINE_S
        while self._acls() != new:
            assert time.monotonic() < end, "the ACLs are not in force"
            time.sleep(0.02)

    def _acls(self) -> set[ACL]:
        return set(self.admin.describe_acls(ANY_ACL)[0])


def acl(resource: str, name: str, pattern: str, operation: str) -> ACL:
    """The ACL that allows the user an operation; words as in docs/security.md."""
    return ACL(
        f"User:{USER}",
        "*",
        ACLOperation[operation.upper()],
        ACLPermissionType.ALLOW,
        ResourcePattern(
            ResourceType[resource.upper().replace(" ", "_")], name, ACLResourcePatternType[pattern.upper()]
        ),
    )


def _filter(each: ACL) -> ACLFilter:
    what = each.resource_pattern
    pattern = ResourcePatternFilter(what.resource_type, what.resource_name, what.pattern_type)
    return ACLFilter(each.principal, each.host, each.operation, each.permission_type, pattern)


@contextlib.contextmanager
def secure_kafka(home: Path) -> Iterator[SecureKafka]:
    """Run it until the block ends."""
    with tempfile.TemporaryDirectory(prefix="twinlens-secure-") as name:
        folder = Path(name)
        make_certificates(folder)
        listeners = [Listener("SASL", "SASL_SSL"), Listener("MTLS", "SSL"), Listener("OAUTH", "SASL_PLAINTEXT")]
        properties = PROPERTIES.format(
            folder=folder, user=USER, password=PASSWORD, security="org.apache.kafka.common.security"
        )
        scram = [f"SCRAM-SHA-{bits}=[name={USER},iterations=4096,password={PASSWORD}]" for bits in (256, 512)]
        with apache_kafka(home, listeners=listeners, properties=properties, scram=scram) as cluster:
            admin = KafkaAdminClient(bootstrap_servers=cluster.bootstrap())
            try:
                yield SecureKafka(cluster, folder, admin)
            finally:
                admin.close()


def make_certificates(folder: Path) -> None:
    """An authority with a broker's and a client's certificate, and another authority with none."""
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key")
    _certificate(folder, "ca", "-noenc")
    _certificate(folder, "other", "-noenc")
    _certificate(folder, "broker", "-noenc", "-addext", "subjectAltName=IP:127.0.0.1", *authority)
    _certificate(folder, USER, "-passout", f"pass:{KEY_PASSWORD}", *authority)
    keystore = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker.keystore.pem").write_text(keystore)


def _certificate(folder: Path, name: str, *arguments: str) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", f"{name}.key")
    command = ["openssl", "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", "-out", f"{name}.pem"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def unsigned_token(subject: str = USER, lifetime_s: float = 3600) -> str:
    """A JWS without signature, as Kafka's validator for development takes it."""
    claims = {"sub": subject, "iat": time.time(), "exp": time.time() + lifetime_s}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
    return ".".join(part.decode().rstrip("=") for part in parts) + "."
