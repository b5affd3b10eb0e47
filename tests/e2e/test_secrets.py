"""What Ray keeps and shows of an application: neither its secrets nor its tweets."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.experimental import internal_kv
from ray.serve.context import _get_global_client

from tests.conftest import ModelFolder
from tests.support.replicas import committed, lines, produce, published, wait_until
from tests.support.secure_kafka import PASSWORD, SecureKafka, acl
from twinlens.audit import audit
from twinlens.broker import topics
from twinlens.errors import AskUser
from twinlens.serving.deploy import deploy_config
from twinlens.settings import Settings

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

TWEET = "a-word-of-a-tweet"
WRONG = "wrong-word-of-the-tweeter"


def config(name: str, args: dict[str, Any], secrets: Path) -> dict[str, Any]:
    replica = {"name": "Replica", "num_replicas": 1, "ray_actor_options": {"num_cpus": 1}}
    environment = {"env_vars": {"TWINLENS_SECRETS_DIR": str(secrets)}}
    application = {"name": name, "route_prefix": f"/{name}", "import_path": "twinlens.app:build", "args": args}
    return {"applications": [{**application, "runtime_env": environment, "deployments": [replica]}]}


def kept_and_shown() -> Iterator[tuple[str, bytes]]:
    """Everything in Ray's store, in the files of its session, and in what Serve answers to its dashboard."""
    for namespace in (None, b"serve", b"session", b"job", b"cluster", b"dashboard", b"fun", b"tracing"):
        for key in internal_kv._internal_kv_list(b"", namespace=namespace):
            yield f"store: {key!r}", internal_kv._internal_kv_get(key, namespace=namespace) or b""
    for file in Path(ray._private.worker._global_node.get_session_dir_path()).rglob("*"):
        if file.is_file():
            yield str(file), file.read_bytes()
    yield "serve status", str(serve.status()).encode()
    yield "details for the dashboard", json.dumps(_get_global_client().get_serve_details(), default=str).encode()


def holders(word: str) -> list[str]:
    return [where for where, content in kept_and_shown() if word.encode() in content]


def test_neither_secrets_nor_tweets_are_kept_or_shown(
    http_port: int, secure: SecureKafka, model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"secret-{uuid.uuid4().hex[:8]}"
    file = tmp_path / "TWINLENS_KAFKA__SASL_PASSWORD"
    file.write_text(f"{PASSWORD}\n")
    kafka = {key: value for key, value in secure.sasl().items() if key != "sasl_password"}
    raw = {"model": str(model_folder("bert", "three")), "truncation": False}
    args = {"application": name, "topics": {"input": name}, "kafka": kafka, "raw": raw}
    monkeypatch.setenv("TWINLENS_SECRETS_DIR", str(tmp_path))
    settings = Settings.load(args)
    everything = {
        *(acl("topic", name, "prefixed", each) for each in ("create", "read", "write")),
        acl("group", name, "literal", "read"),
        acl("transactional id", name, "prefixed", "write"),
    }
    with secure.allowing(everything):
        topics.create(settings, 1, 1)
        try:
            deploy_config(config(name, args, tmp_path), print)
            long = json.dumps({"text": f"{TWEET} " * 500}).encode()  # longer than the positions: the call raises
            bad = f'{{"text": "{TWEET}'.encode()
            sent = produce(settings, [(None, line, []) for line in (*lines(20), long, bad)])
            wait_until(lambda: committed(settings) == sent, "everything is committed", 90)
            assert audit(settings).clean
            assert any(b'"error"' in record.value for record in published(settings, "logits")["logits"])

            assert holders("a path raised"), "else nothing was looked at"
            assert holders(kafka["sasl_username"])
            assert holders(PASSWORD) == []
            assert holders(TWEET) == []
            assert PASSWORD.encode() not in pickle.dumps(serve.status())

            file.write_text(WRONG)
            with pytest.raises(AskUser, match="refuses User:tweeter") as caught:
                deploy_config(config(f"{name}-2", {**args, "application": f"{name}-2"}, tmp_path), print)
            assert WRONG not in str(caught.value)
            assert holders("refuses User:tweeter")
            assert holders(WRONG) == []
        finally:
            for each in set(serve.status().applications) & {name, f"{name}-2"}:
                serve.delete(each)


def test_a_secret_in_the_args_of_a_config_file_is_refused(http_port: int, tmp_path: Path) -> None:
    name = f"secret-{uuid.uuid4().hex[:8]}"
    # Serve has written it to its logs and its store by then, so it is another word than those above.
    args = {"application": name, "kafka": {"ssl_password": "misplaced-word"}}
    try:
        with pytest.raises(AskUser, match=r"kafka\.ssl_password must not stand .*TWINLENS_KAFKA__SSL_PASSWORD"):
            deploy_config(config(name, args, tmp_path), print)
    finally:
        serve.delete(name)
