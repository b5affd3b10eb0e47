"""twinlens on a Kafka with users, certificates and ACLs, with exactly the rights that docs/security.md grants."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import ModelFolder
from tests.support.replicas import lines, produce, running_replica, wait_until
from tests.support.secure_kafka import KEY_PASSWORD, PASSWORD, USER, SecureKafka, acl, unsigned_token
from tests.support.token_server import TokenServer
from twinlens.audit import audit
from twinlens.broker import client, topics
from twinlens.broker.client import new_admin
from twinlens.broker.lag import LagProbe
from twinlens.broker.oauth import token_provider
from twinlens.broker.publisher import AtLeastOncePublisher, OutgoingRecord, SourceOffset, TransactionalPublisher
from twinlens.broker.replay import Replay
from twinlens.clock import now_ms
from twinlens.errors import AskUser, ReplaceReplica
from twinlens.monitor.monitor import Monitor
from twinlens.monitor.summary import ALL
from twinlens.replica.replica import new_replica
from twinlens.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
GROUP, INPUT = "secured", "posts"
CLIENT_SECRET = "secret-of-the-client"


class Right(NamedTuple):
    """One operation of a row of the table."""

    user: str
    resource: str
    name: str
    pattern: str
    operation: str


def documented() -> list[Right]:
    """The table of docs/security.md, for the names of these tests."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in DOCUMENT.read_text().split("## ACLs")[1].splitlines()
        if re.match(r"\|[^|]+\| (topic|group|transactional id) \|", line)
    ]
    return [
        Right(user, resource, name.replace("<input>", INPUT).replace("<group_id>", GROUP), pattern, operation)
        for user, resource, name, pattern, operations, _ in rows
        for operation in operations.split(", ")
    ]


RIGHTS = documented()


def rights(*users: str, without: tuple[Right, ...] = ()) -> set[Any]:
    return {acl(*each[1:]) for each in RIGHTS if each.user in users and each not in without}


def test_the_commands_grant_the_applications_rights_and_no_others() -> None:
    script = DOCUMENT.read_text().split("## ACLs")[1].split("```sh")[1].split("```")[0].replace("\\\n", " ")
    granted = set()
    for line in script.splitlines():
        if line.startswith("acls --"):
            words = shlex.split(line)[1:]
            options = list(zip(words[::2], words[1::2], strict=True))
            pattern = dict(options).get("--resource-pattern-type", "literal")
            for resource, name in options:
                if resource in ("--topic", "--group", "--transactional-id"):
                    kind = resource.removeprefix("--").replace("-", " ")
                    granted.add(Right("application", kind, name, pattern, dict(options)["--operation"]))
    names = {INPUT: "tweets", GROUP: "twinlens"}
    wanted = {
        each._replace(name=re.sub("|".join(names), lambda found: names[found.group()], each.name))
        for each in RIGHTS
        if each.user == "application"
    }
    assert granted == wanted


@pytest.fixture(scope="module")
def new_settings(secure: SecureKafka, model_folder: ModelFolder) -> Callable[..., Settings]:
    """Settings with a tiny model; topics and group are those of the document's table."""
    model = str(model_folder("bert", "three"))

    def make(kafka: dict[str, Any], **sections: Any) -> Settings:
        # Not by `load`, which refuses secrets in arguments.
        return Settings(application=GROUP, kafka=kafka, topics={"input": INPUT}, raw={"model": model}, **sections)

    return make


@pytest.fixture(scope="module")
def settings(secure: SecureKafka, new_settings: Callable[..., Settings]) -> Settings:
    """Those of a user with a password; the topics exist."""
    mine = new_settings(secure.sasl())
    with secure.allowing(rights("topics create")):
        assert INPUT in topics.create(mine, 2, 1)
    return mine


def tweets(count: int) -> list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    return [(str(i).encode(), line, []) for i, line in enumerate(lines(count))]


def counted(monitor: Monitor) -> int:
    window = monitor.view(now_ms()).summary.windows[ALL]
    return window.tally.tweets + sum(window.refused.values())


def test_the_application_and_each_command_need_no_more_than_documented(secure: SecureKafka, settings: Settings) -> None:
    with secure.allowing(rights("produce")):
        topics.check_allowed(settings.kafka, INPUT, "Write")
        count = produce(settings, [*tweets(100), (None, b"not json", [])])
    with secure.allowing(rights("application")):
        monitor = Monitor(settings)
        monitor.start()
        try:
            with running_replica(settings):
                wait_until(lambda: behind(settings) == 0, "every tweet is committed")
            wait_until(lambda: counted(monitor) >= count, "all are counted")
            wait_until(lambda: monitor.view(now_ms()).lag == {0: 0, 1: 0}, "the lag is known")
            monitor.check_health()
        finally:
            monitor.stop()
    with secure.allowing(rights("audit")):
        topics.check(settings, read=(INPUT, *settings.topics.outputs))
        report = audit(settings)
    assert report.clean
    assert (report.published >= count - 1, report.dead_lettered) == (True, 1)
    with secure.allowing(rights("dlq")):
        replay = Replay(settings)
        replay.run(lambda _: None)
        assert replay.outcome.replayed.total() == 1


def as_application(settings: Settings) -> None:
    new_replica(settings, "denied")


def as_topics_create(settings: Settings) -> None:
    """With an input that the prefix of the ACLs covers, too, and that does not exist."""
    topics.create(Settings(kafka=settings.kafka, topics={"input": f"{INPUT}2"}), 1, 1)


def as_produce(settings: Settings) -> None:
    topics.check_allowed(settings.kafka, INPUT, "Write")


def as_audit(settings: Settings) -> None:
    topics.check(settings, read=(INPUT, *settings.topics.outputs))
    audit(settings)


def as_dlq(settings: Settings) -> None:
    topics.check_allowed(settings.kafka, settings.topics.dlq, "Read")
    topics.check_allowed(settings.kafka, settings.topics.input, "Write")
    Replay(settings).run(lambda _: None)


PARTS: dict[str, Callable[[Settings], None]] = {
    "application": as_application,
    "topics create": as_topics_create,
    "produce": as_produce,
    "audit": as_audit,
    "dlq": as_dlq,
}


def test_every_user_of_the_table_is_tried() -> None:
    assert {each.user for each in RIGHTS} == set(PARTS)


@pytest.mark.parametrize("missing", RIGHTS, ids=lambda each: "-".join(each).replace(" ", "_"))
def test_a_missing_acl_is_named_at_the_start(missing: Right, secure: SecureKafka, settings: Settings) -> None:
    with secure.allowing(rights(missing.user, without=(missing,))), pytest.raises(AskUser) as caught:
        PARTS[missing.user](settings)
    named = rf"Kafka denies User:{USER} {missing.operation} on the {missing.resource}s? {re.escape(missing.name)}"
    assert re.match(named, str(caught.value))
    assert str(caught.value).endswith("; grant it (docs/security.md).")
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_all_topics_that_are_denied_are_named_at_once(secure: SecureKafka, settings: Settings) -> None:
    logits, dlq, input_ = (
        next(each for each in RIGHTS if each.name == name and each.user == "application")
        for name in (settings.topics.logits, settings.topics.dlq, INPUT)
    )
    with secure.allowing(rights("application", without=(logits, dlq, input_))), pytest.raises(AskUser) as caught:
        new_replica(settings, "denied")
    assert f"Read on the topic {INPUT}, and Write on the topics {logits.name}, {dlq.name}; grant" in str(caught.value)


@pytest.mark.parametrize(
    ("thread", "resource", "name"),
    [("intake", "topic", INPUT), ("intake", "group", GROUP), ("publish", "topic", f"{INPUT}.logits")],
)
def test_a_right_taken_away_is_the_reason_of_the_failed_health_check(
    thread: str, resource: str, name: str, secure: SecureKafka, settings: Settings
) -> None:
    taken = next(each for each in RIGHTS if each[:3] == ("application", resource, name))
    with secure.allowing(rights("application", "produce")), running_replica(settings) as replica:
        produce(settings, tweets(10))
        wait_until(lambda: behind(settings) == 0, "the replica works")
        with secure.allowing(rights("application", "produce", without=(taken,))):
            produce(settings, tweets(10))
            said: list[str] = []

            def failed() -> bool:
                try:
                    replica.check_health()
                except ReplaceReplica as error:
                    said.append(str(error))
                return bool(said)

            wait_until(failed, "the health check fails")
        # Of a group's rights both threads hear; who comes first is a matter of luck.
        died = rf"the ({thread}{'|publish' if resource == 'group' else ''}) thread died"
        assert re.match(rf"{died}: Kafka denies User:{USER} {taken.operation} on the {resource}", said[0])
        assert name in said[0]
    with secure.allowing(rights("application")), running_replica(settings):
        wait_until(lambda: behind(settings) == 0, "the next replica goes on")


def behind(settings: Settings) -> int:
    """Records of the input that are not committed yet."""
    with contextlib.closing(LagProbe(settings)) as probe:
        return sum(probe.lag().values())


@pytest.mark.parametrize("resource", ["topic", "group", "transactional id"])
def test_a_denied_publication_asks_for_the_user_and_is_not_tried_again(
    resource: str, secure: SecureKafka, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = {"topic": settings.topics.logits, "group": GROUP, "transactional id": f"{GROUP}:"}[resource]
    missing = next(each for each in RIGHTS if each[:3] == ("application", resource, taken))
    with secure.allowing(rights("application")):
        publisher = TransactionalPublisher(settings, f"{GROUP}:denied:00000000")
    member = client.new_consumer(settings.kafka, group_id=f"{GROUP}")
    try:
        with (
            secure.allowing(rights("application", without=(missing,))),
            pytest.raises((AskUser, ReplaceReplica), match=f"{missing.operation} on the {resource} {taken}"),
        ):
            publisher.publish(
                [OutgoingRecord(settings.topics.logits, 0, None, b"x", [])],
                {(INPUT, 0): SourceOffset(1)},
                member.group_metadata,
            )
    finally:
        publisher.close()
        member.close()
    assert "".join(capfd.readouterr()).count("transaction aborted") == 1


def test_a_denied_publication_without_transactions_asks_for_the_user(secure: SecureKafka, settings: Settings) -> None:
    missing = next(each for each in RIGHTS if each.name == settings.topics.logits)
    with secure.allowing(rights("application")):
        publisher = AtLeastOncePublisher(settings, "denied")
        publisher.publish([OutgoingRecord(settings.topics.dlq, 0, None, b"x", [])], {}, lambda: True)
    try:
        with (
            secure.allowing(rights("application", without=(missing,))),
            pytest.raises(AskUser, match=f"Write on the topic {missing.name}"),
        ):
            publisher.publish([OutgoingRecord(missing.name, 0, None, b"x", [])], {}, lambda: True)
    finally:
        publisher.close()


def test_a_monitor_that_may_not_read_says_so(secure: SecureKafka, settings: Settings) -> None:
    missing = next(each for each in RIGHTS if each.name == settings.topics.comparisons and each.operation == "Read")
    with secure.allowing(rights("application", without=(missing,))):
        monitor = Monitor(settings)
        monitor.start()
        try:
            with pytest.raises(ReplaceReplica, match=f"Read on the topic {missing.name}"):
                wait_until(lambda: bool(monitor.check_health()), "the health check fails", 10)
        finally:
            monitor.stop()


@pytest.fixture(scope="module")
def token_server(secure: SecureKafka) -> Iterator[TokenServer]:
    """Grants the user a token to whoever knows the client's secret."""

    def answer(request: Any) -> tuple[int, Any]:
        headers, _ = request
        if headers["Authorization"] == client_credentials(CLIENT_SECRET):
            return 200, {"access_token": unsigned_token(), "expires_in": 3600}
        return 401, {"error": "invalid_client"}

    with TokenServer(answer, secure.folder / "broker.keystore.pem") as server:
        yield server


def client_credentials(secret: str) -> str:
    import base64

    return f"Basic {base64.b64encode(f'{USER}:{secret}'.encode()).decode()}"


def oauth(secure: SecureKafka, server: TokenServer, **settings: Any) -> dict[str, Any]:
    return secure.kafka(
        "OAUTH",
        **{
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_oauth_token_url": server.url,
            "sasl_oauth_client_id": USER,
            "sasl_oauth_client_secret": CLIENT_SECRET,
            "sasl_oauth_cafile": str(secure.folder / "ca.pem"),
            **settings,
        },
    )


def token_file(secure: SecureKafka, token: str) -> dict[str, Any]:
    file = secure.folder / "token"
    file.write_text(f"{token}\n")
    return secure.kafka("OAUTH", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=str(file))


WAYS: dict[str, Callable[[SecureKafka, TokenServer], dict[str, Any]]] = {
    "PLAIN": lambda secure, _: secure.sasl("PLAIN"),
    "SCRAM-SHA-256": lambda secure, _: secure.sasl("SCRAM-SHA-256"),
    "SCRAM-SHA-512": lambda secure, _: secure.sasl("SCRAM-SHA-512"),
    "client certificate": lambda secure, _: secure.mtls(),
    "token server": oauth,
    "token file": lambda secure, _: token_file(secure, unsigned_token()),
}


@pytest.mark.parametrize("way", WAYS)
def test_tweets_go_through_by_every_way_in(
    way: str,
    secure: SecureKafka,
    token_server: TokenServer,
    settings: Settings,
    new_settings: Callable[..., Settings],
) -> None:
    mine = new_settings(WAYS[way](secure, token_server))
    with secure.allowing(rights("application", "produce", "audit")):
        count = produce(mine, tweets(10))
        with running_replica(mine):
            wait_until(lambda: behind(mine) == 0, "all are committed")
        report = audit(mine)
    assert report.clean
    assert report.published >= count


WRONG: dict[str, tuple[Callable[[SecureKafka, TokenServer], dict[str, Any]], str]] = {
    "PLAIN": (
        lambda secure, _: secure.sasl("PLAIN", sasl_password="wrong"),
        f"refuses User:{USER}: .*Check kafka.sasl_username and kafka.sasl_password .TWINLENS_KAFKA__SASL_PASSWORD",
    ),
    "SCRAM": (lambda secure, _: secure.sasl(sasl_password="wrong"), f"refuses User:{USER}: "),
    "user": (lambda secure, _: secure.sasl(sasl_username="nobody"), "refuses User:nobody: "),
    "mechanism": (
        lambda secure, server: oauth(secure, server) | {"sasl_mechanism": "PLAIN", "sasl_username": "a",
                                                        "sasl_password": PASSWORD},
        "does not offer PLAIN; set kafka.sasl_mechanism",
    ),
    "authority": (
        lambda secure, _: secure.sasl(ssl_cafile=str(secure.folder / "other.pem")),
        "The certificate of Kafka at .* is not trusted: .*issuer.* Set kafka.ssl_cafile",
    ),
    "no authority": (lambda secure, _: secure.sasl(ssl_cafile=None), "The certificate of Kafka at .* is not trusted"),
    "no such authority": (
        lambda secure, _: secure.sasl(ssl_cafile="/no/ca.pem"),
        "kafka.ssl_cafile /no/ca.pem is not a PEM file with certificates .No such file",
    ),
    "no certificate": (
        lambda secure, _: secure.kafka("MTLS"),
        "refuses the client's certificate, or requires one .*Set kafka.ssl_certfile and kafka.ssl_keyfile",
    ),
    "no such certificate": (lambda secure, _: secure.mtls(ssl_certfile="/no/cert"), "kafka.ssl_certfile /no/cert"),
    "another's key": (
        lambda secure, _: secure.mtls(ssl_keyfile=str(secure.folder / "other.key")),
        "ssl_keyfile .*other.key are not a PEM certificate and its key",
    ),
    "password of the key": (
        lambda secure, _: secure.mtls(ssl_password="wrong"),
        "kafka.ssl_password .TWINLENS_KAFKA__SSL_PASSWORD. does not open the key",
    ),
    "no password of the key": (lambda secure, _: secure.mtls(ssl_password=None), "does not open the key"),
    "client secret": (
        lambda secure, server: oauth(secure, server, sasl_oauth_client_secret="wrong"),
        "the token server at .* refused: 401 invalid_client.*TWINLENS_KAFKA__SASL_OAUTH_CLIENT_SECRET",
    ),
    "authority of the token server": (
        lambda secure, server: oauth(secure, server, sasl_oauth_cafile=None),
        "There is no token for Kafka at .*: the token server at .*certificate verify failed",
    ),
    "no such token file": (
        lambda secure, _: token_file(secure, "a") | {"sasl_oauth_token_file": "/no/token"},
        "sasl_oauth_token_file /no/token cannot be used: No such file",
    ),
    "expired token": (
        lambda secure, _: token_file(secure, unsigned_token(lifetime_s=-60)),
        "refuses this user: .*Check kafka.sasl_oauth_token_file",
    ),
    "no TLS": (lambda secure, _: secure.mtls(security_protocol="PLAINTEXT"), "or kafka.security_protocol"),
    "TLS": (lambda secure, _: secure.kafka("PLAINTEXT", security_protocol="SSL"), "or kafka.security_protocol"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_the_credentials_is_said(
    what: str,
    secure: SecureKafka,
    token_server: TokenServer,
    new_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, expected = WRONG[what]
    patient = what not in ("no TLS", "TLS", "authority of the token server", "no such token file")
    monkeypatch.setattr(client, "BOOTSTRAP_TIMEOUT_MS", 30_000 if patient else 500)
    with pytest.raises(AskUser, match=expected) as caught:
        new_admin(new_settings(make(secure, token_server)).kafka)
    message = str(caught.value)
    assert "\n" not in message
    for secret in (PASSWORD, KEY_PASSWORD, CLIENT_SECRET, "wrong"):
        assert secret not in message


def test_clients_of_a_process_share_a_token(
    secure: SecureKafka, token_server: TokenServer, new_settings: Callable[..., Settings]
) -> None:
    token_provider.cache_clear()
    before = len(token_server.requests)
    mine = [new_settings(oauth(secure, token_server)) for _ in range(2)]
    for each in mine:
        new_admin(each.kafka).close()
    assert len(token_server.requests) == before + 1
