"""A real Kafka that lets nobody in without credentials and nothing happen without an ACL.

Beside `PLAINTEXT`, whose anonymous user may do everything and which only fixtures use, it has three listeners:
`SASL` (over TLS: PLAIN, SCRAM), `MTLS` (client certificates) and `OAUTH` (OAUTHBEARER with Kafka's validator of
unsecured tokens).
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

from tests.apache_kafka import Cluster, Listener, apache_kafka
from tests.integration.helpers import wait_until

USER, PASSWORD = "tweeter", "pass-word-of-the-tweeter"
KEY_PASSWORD = "pass-word-of-the-key"
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
    folder: Path  #: ca.pem, client.pem, client.key (with a password), other.pem: an authority that it does not know
    admin: KafkaAdminClient

    def allow(self, *acls: ACL) -> None:
        self.admin.create_acls(list(acls))
        wait_until(lambda: set(acls) <= self.acls(), "the ACLs are in force")

    def forbid(self, *acls: ACL) -> None:
        filters = [
            ACLFilter(a.principal, a.host, a.operation, a.permission_type, ResourcePatternFilter(
                a.resource_pattern.resource_type, a.resource_pattern.resource_name, a.resource_pattern.pattern_type))
            for a in acls
        ]  # fmt: skip
        self.admin.delete_acls(filters)
        wait_until(lambda: not set(acls) & self.acls(), "the ACLs are gone")

    def acls(self) -> set[ACL]:
        everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        found, _ = self.admin.describe_acls(ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, everything))
        return set(found)


def acl(user: str, resource: str, name: str, pattern: str, operation: str) -> ACL:
    return ACL(
        f"User:{user}", "*", ACLOperation[operation.upper()], ACLPermissionType.ALLOW,
        ResourcePattern(ResourceType[resource.upper()], name, ACLResourcePatternType[pattern.upper()]),
    )  # fmt: skip


@contextlib.contextmanager
def secure_kafka(home: Path) -> Iterator[SecureKafka]:
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
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2",
               "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]  # fmt: skip
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def unsecured_token(subject: str, lifetime_s: float = 3600) -> str:
    """A JWS without signature, as Kafka's validator for development takes it."""
    claims = {"sub": subject, "iat": time.time(), "exp": time.time() + lifetime_s}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
    return ".".join(part.decode().rstrip("=") for part in parts) + "."
