"""Settings: all of them documented, three sources in their order, and errors that a person can act on."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

import twinlens
from twinlens.errors import AskUser
from twinlens.settings import DEMO_MODEL, ENV_PREFIX, Settings, asking_user, own_variables
from twinlens.settings.kafka import SECRETS

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "hunter2-and-more"
SASL = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_username": "somebody",
    "sasl_password": SECRET,
}
PROTOCOLS = ("SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TYPES = {str: "text", int: "integer", float: "number", bool: "boolean", SecretStr: "secret"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def _leaves(model: type[BaseModel], value: BaseModel, path: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, field in model.model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from _leaves(type(inner), inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", field, inner


def _rows() -> dict[str, list[str]]:
    """Cells after the first of every row of a table of settings, by setting."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [row[0].strip("`") for row in rows]
    assert len(names) == len(set(names)), "a setting is documented twice"
    return {name: row[1:] for name, row in zip(names, rows, strict=True)}


def _type_in_words(field: FieldInfo) -> str:
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    nullable = type(None) in options
    (kind,) = (option for option in options if option is not type(None))
    choice = get_origin(kind) is Literal
    words = ", ".join(f"`{value}`" for value in get_args(kind)) if choice else TYPES[kind]
    bounds = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}
    for bound in field.metadata:
        if type(bound) in bounds:
            words += f" {bounds[type(bound)]} {dataclasses.astuple(bound)[0]:g}"
    if nullable:
        words += ", or null" if choice or " " in words else " or null"
    return words


def _default_in_words(value: Any) -> str:
    if isinstance(value, str):
        return value.removeprefix(str(Path(twinlens.__file__).parent) + os.sep)
    return json.dumps(value)


LEAVES = {name: (field, value) for name, field, value in _leaves(Settings, Settings.model_construct())}


def test_no_setting_is_undocumented_and_no_documented_one_is_gone() -> None:
    documented = set(_rows())
    assert set(LEAVES) - documented == set(), "settings without a row in docs/settings.md"
    assert documented - set(LEAVES) == set(), "rows of docs/settings.md without a setting"


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_setting_is_documented_as_it_is(name: str) -> None:
    field, value = LEAVES[name]
    assert name in _rows(), f"{name} has no row in docs/settings.md"
    variable, kind, default, meaning, when = _rows()[name]
    assert variable == f"`{ENV_PREFIX}{name.upper().replace('.', '__')}`"
    assert kind == _type_in_words(field)
    assert default == f"`{_default_in_words(value)}`"
    assert meaning
    assert when


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_the_documented_variable_reaches_the_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be right must be refused under this very name; text takes any, and is found there."""
    variable = _rows()[name][0].strip("`")
    if "text" in _rows()[name][1].split() or "secret" in _rows()[name][1]:
        given = "https://x-y" if name.endswith("_url") else "x-y"
        monkeypatch.setenv("TWINLENS_KAFKA__SSL_CERTFILE", given)  # without it ssl_keyfile is refused
        monkeypatch.setenv(variable, given)
        found = {path: value for path, _, value in _leaves(Settings, Settings.load())}[name]
        assert found.get_secret_value() == given if isinstance(found, SecretStr) else found == given
    else:
        monkeypatch.setenv(variable, "[]")
        with pytest.raises(AskUser, match=re.escape(name)):
            Settings.load()


def test_the_environment_wins_over_args_setting_by_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_KAFKA__BOOTSTRAP_SERVERS", "env:9092")
    settings = Settings.load({"kafka": {"bootstrap_servers": "args:9092", "session_timeout_ms": 20_000}})
    assert settings.kafka.bootstrap_servers == "env:9092"
    assert settings.kafka.session_timeout_ms == 20_000  # args over the default
    assert settings.kafka.request_timeout_ms == 30_000  # the default


def test_a_section_as_json_yields_to_a_single_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_KAFKA", '{"group_id": "json", "session_timeout_ms": 20000}')
    monkeypatch.setenv("TWINLENS_KAFKA__GROUP_ID", "single")
    settings = Settings.load()
    assert (settings.kafka.group_id, settings.kafka.session_timeout_ms) == ("single", 20_000)


def test_a_variable_of_something_else_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_TEST_BOOTSTRAP", "kafka:9092")
    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"nope": 1}, "nope"),
        ({"kafka": {"nope": 1}}, "kafka.nope"),
        ({"kafka": {"session_timeout_ms": "soon"}}, "kafka.session_timeout_ms"),
        ({"kafka": {"session_timeout_ms": 1}}, "kafka.session_timeout_ms"),
        ({"kafka": "localhost"}, "kafka"),
        ({"intake": {"format": "avro"}}, "intake.format"),
        ({"raw": {"dtype": "int8"}}, "raw.dtype"),
        ({"application": "a b"}, "application"),
        ({"batching": {"max_window_items": 5_000}}, "batching.max_window_items"),
        ({"compare": {"score_tolerance": float("nan")}}, "compare.score_tolerance"),
        ({"predict": {"sample_share": 0}}, "predict.sample_share"),
        ({"predict": {"audit_share": 1.01}}, "predict.sample_share"),
        ({"predict": {"mode": "sampled", "model": "org/other"}}, "predict.mode"),
        ({"predict": {"mode": "sampled", "revision": "v2"}}, "predict.mode"),
        (
            {"raw": {"model": "org/a", "revision": "v1"}, "predict": {"mode": "sampled", "model": "org/a"}},
            "predict.mode",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(args: dict[str, Any], named: str) -> None:
    with pytest.raises(AskUser) as caught:
        Settings.load(args)
    message = str(caught.value)
    assert re.search(rf"(^|[ :;]){re.escape(named)}\b", message)
    assert "\n" not in message
    assert "docs/settings.md" in message


def test_every_wrong_value_is_named_not_only_the_first() -> None:
    with pytest.raises(AskUser, match=r"kafka\.nope.*; .*raw\.dtype"):
        Settings.load({"kafka": {"nope": 1}, "raw": {"dtype": "int8"}})


def test_an_unknown_name_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_KAFKA__NOPE", "1")
    with pytest.raises(AskUser, match=r"kafka\.nope"):
        Settings.load()


OAUTH = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "sasl_oauth_token_url": "https://login/token",
    "sasl_oauth_client_id": "somebody",
    "sasl_oauth_client_secret": SECRET,
}
COMPLETE = [
    *({**SASL, "security_protocol": p, "sasl_mechanism": m} for p in PROTOCOLS for m in MECHANISMS),
    *({**OAUTH, "security_protocol": p} for p in PROTOCOLS),
]


@pytest.mark.parametrize("complete", COMPLETE)
def test_each_mechanism_names_what_it_lacks(complete: dict[str, str]) -> None:
    assert Settings(kafka=complete).kafka.sasl_mechanism == complete["sasl_mechanism"]
    for missing in set(complete) - {"security_protocol"}:
        with pytest.raises(AskUser, match=f"kafka: .*{complete['security_protocol']} .*needs {missing}") as caught:
            _load({name: value for name, value in complete.items() if name != missing})
        assert not any(f"needs {name}" in str(caught.value) for name in set(complete) - {missing})


def _load(kafka: dict[str, str]) -> Settings:
    """As `Settings.load`, but for secrets in the arguments."""
    with asking_user():
        return Settings(kafka=kafka)


def test_all_that_is_missing_is_named_together() -> None:
    with pytest.raises(AskUser, match="SASL_SSL with PLAIN needs sasl_username and sasl_password;"):
        Settings.load({"kafka": {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}})


def test_a_token_file_needs_nothing_else_and_no_second_source() -> None:
    file = {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_file": "/token"}
    assert Settings.load({"kafka": file}).kafka.sasl_oauth_token_file == "/token"
    with pytest.raises(AskUser, match="exclude each other"):
        Settings.load({"kafka": {**file, "sasl_oauth_token_url": "https://login/token"}})


@pytest.mark.parametrize("url", ["http://login/token", "ftp://login", "login/token", "file:///etc/passwd", "https://"])
def test_the_clients_secret_goes_nowhere_in_clear(url: str) -> None:
    with pytest.raises(AskUser, match="sasl_oauth_token_url must be an https address"):
        Settings.load({"kafka": {"sasl_oauth_token_url": url}})
    assert Settings.load({"kafka": {"sasl_oauth_token_url": "http://127.0.0.1:80/t"}})


def test_the_token_servers_address_holds_no_credentials() -> None:
    """It stands in error texts."""
    with pytest.raises(AskUser, match="is shown in errors") as caught:
        Settings.load({"kafka": {"sasl_oauth_token_url": "https://me:hidden@login/token"}})
    assert "hidden" not in str(caught.value)


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(AskUser, match="ssl_keyfile needs ssl_certfile"):
        Settings.load({"kafka": {"security_protocol": "SSL", "ssl_keyfile": "key.pem"}})


def test_ssl_needs_no_sasl() -> None:
    assert Settings.load({"kafka": {"security_protocol": "SSL"}}).kafka.sasl_mechanism is None


def test_only_the_section_kafka_has_secrets() -> None:
    """`without_secrets`, `with_secrets` and the refusal in `args` know no others."""
    secret = {name for name, (field, _) in LEAVES.items() if SecretStr in get_args(field.annotation)}
    assert secret == {f"kafka.{name}" for name in SECRETS}
    assert {"sasl_password", "ssl_password", "sasl_oauth_client_secret"} == set(SECRETS)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_args_is_refused_and_where_it_belongs_is_named(name: str) -> None:
    with pytest.raises(
        AskUser, match=rf"kafka\.{name} .*TWINLENS_KAFKA__{name.upper()}.*TWINLENS_SECRETS_DIR"
    ) as caught:
        Settings.load({"kafka": {name: SECRET}})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert Settings.load({"kafka": {name: None}})


def test_secrets_stay_in_the_process_that_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_KAFKA__SASL_PASSWORD", SECRET)
    settings = Settings.load({"kafka": {name: value for name, value in SASL.items() if name != "sasl_password"}})
    sent = pickle.dumps(settings.without_secrets())
    assert SECRET.encode() in pickle.dumps(settings), "else the next line says nothing"
    assert SECRET.encode() not in sent

    monkeypatch.setenv("TWINLENS_KAFKA__SASL_PASSWORD", "rotated")
    monkeypatch.setenv("TWINLENS_KAFKA__SASL_USERNAME", "another")
    received = pickle.loads(sent).with_secrets()
    assert received.kafka.sasl_password.get_secret_value() == "rotated"
    assert received.kafka.sasl_username == "somebody", "only secrets are read again"
    assert received.without_secrets() == settings.without_secrets()

    monkeypatch.delenv("TWINLENS_KAFKA__SASL_PASSWORD")
    with pytest.raises(AskUser, match="needs sasl_password; secrets come from the environment"):
        pickle.loads(sent).with_secrets()


def test_secret_files_win_over_args_and_yield_to_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounted = tmp_path / "..data"  # as Kubernetes mounts them: links to files in a folder that is swapped
    mounted.mkdir()
    values = {"SASL_PASSWORD": f" {SECRET} \r\n", "SSL_PASSWORD": "file", "GROUP_ID": "file", "SASL_USERNAME": "file\n"}
    for name, value in values.items():
        (mounted / f"TWINLENS_KAFKA__{name}").write_bytes(value.encode())
        (tmp_path / f"TWINLENS_KAFKA__{name}").symlink_to(mounted / f"TWINLENS_KAFKA__{name}")
    (tmp_path / "keystore.jks").write_bytes(b"\xff\xfe not text")
    monkeypatch.setenv("TWINLENS_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("TWINLENS_KAFKA__SSL_PASSWORD", "environment")
    kafka = Settings.load({"kafka": {"group_id": "args", "auto_offset_reset": "latest"}}).kafka
    assert kafka.sasl_password is not None
    assert kafka.ssl_password is not None
    assert kafka.sasl_password.get_secret_value() == f" {SECRET} ", "only the line end is the editor's"
    assert kafka.ssl_password.get_secret_value() == "environment"
    assert (kafka.group_id, kafka.sasl_username, kafka.auto_offset_reset) == ("file", "file", "latest")
    again = Settings.load().without_secrets().with_secrets().kafka
    assert again.sasl_password == kafka.sasl_password


def test_what_is_wrong_with_secret_files_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINLENS_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(AskUser, match=r'directory ".*nowhere" does not exist'):
        Settings.load()
    monkeypatch.setenv("TWINLENS_SECRETS_DIR", str(tmp_path))
    (tmp_path / "TWINLENS_KAFKA__NOPE").write_text(SECRET)
    with pytest.raises(AskUser, match=r"kafka\.nope") as caught:
        Settings.load()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    (tmp_path / "TWINLENS_KAFKA__NOPE").write_bytes(b"\xff")
    with pytest.raises(AskUser, match="TWINLENS_KAFKA__NOPE in the secrets folder cannot be read"):
        Settings.load()


def test_variables_of_settings_are_told_from_others() -> None:
    names = [
        "TWINLENS_KAFKA__GROUP_ID",
        "TWINLENS_KAFKA",
        "TWINLENS_LOG_TEXT",
        "twinlens_device",
        "TWINLENS_SECRETS_DIR",
    ]
    others = ["TWINLENS_TEST_BOOTSTRAP", "KAFKA__GROUP_ID", "PATH", "KAFKA"]
    assert own_variables([*names, *others]) == names


def test_secrets_are_never_printed() -> None:
    settings = Settings(kafka={**SASL, "ssl_password": SECRET, "sasl_oauth_client_secret": SECRET})
    for shown in (repr(settings), str(settings), repr(settings.kafka), str(settings.model_dump()), settings.__dict__):
        assert SECRET not in str(shown)
    assert SECRET not in settings.model_dump_json()
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "wrong",
    [
        {"session_timeout_ms": "soon"},
        {"sasl_mechanism": None},
        {"sasl_mechanism": "GSSAPI"},
        {"sasl_password": [SECRET]},
        {"ssl_password": {"value": SECRET}},
        {"sasl_pasword": SECRET},
        {"sasl_oauth_token_url": SECRET},
    ],
)
def test_an_error_never_quotes_a_secret(wrong: dict[str, Any]) -> None:
    for load in (_load, lambda kafka: Settings.load({"kafka": kafka})):
        with pytest.raises(AskUser) as caught:
            load({**SASL, **wrong})
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value)
        # Pydantic's words, which quote the input, must not stand in the traceback either.
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_outputs_follow_the_input_unless_they_are_named() -> None:
    topics = Settings.load({"topics": {"input": "posts", "dlq": "broken", "logits": ""}}).topics
    assert topics.outputs == ("posts.logits", "posts.predictions", "posts.divergences", "posts.comparisons", "broken")
    assert topics.snapshots == "posts.snapshots", "it is no output: it is not co-partitioned"


@pytest.mark.parametrize("name", ["logits", "snapshots"])
def test_topics_must_be_different_ones(name: str) -> None:
    with pytest.raises(AskUser, match="must be different topics"):
        Settings.load({"topics": {name: "tweets"}})
    with pytest.raises(AskUser, match="must be different topics"):
        Settings.load({"topics": {name: "tweets.comparisons"}})


def test_outputs_follow_an_input_that_only_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_TOPICS__INPUT", "posts")
    assert Settings.load().topics.divergences == "posts.divergences"
    topics = Settings.load({"topics": {"input": "tweets", "dlq": "broken"}}).topics
    assert (topics.input, topics.logits, topics.dlq) == ("posts", "posts.logits", "broken")


def test_the_predict_path_runs_the_raw_paths_model_unless_it_names_its_own() -> None:
    settings = Settings.load({"raw": {"model": "org/a", "revision": "1"}})
    assert settings.model_of(settings.predict) == settings.model_of(settings.raw) == ("org/a", "1")
    settings = Settings.load({"raw": {"model": "org/a", "revision": "1"}, "predict": {"model": "org/b"}})
    assert settings.model_of(settings.predict) == ("org/b", None)
    assert Settings.load().model_of(Settings.load().predict) == (DEMO_MODEL, None)


@pytest.mark.parametrize(
    "predict",
    [{}, {"dtype": "bfloat16", "max_length": 16}, {"model": "org/a", "revision": "v1"}, {"revision": "v1"}],
)
def test_sampled_mode_takes_any_two_paths_with_one_model(predict: dict[str, Any]) -> None:
    settings = Settings.load({"raw": {"model": "org/a", "revision": "v1"}, "predict": {"mode": "sampled", **predict}})
    assert (settings.predict.mode, settings.predict.sample_share) == ("sampled", 0.05)


def test_the_group_is_the_application_unless_it_is_named() -> None:
    assert Settings.load({"application": "a"}).group_id == "a"
    assert Settings.load({"application": "a", "kafka": {"group_id": "g"}}).group_id == "g"


def test_former_names_stay_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    former = Settings.load({"predict": {"mode": "audited", "audit_share": 0.2}})
    assert former == Settings.load({"predict": {"mode": "sampled", "sample_share": 0.2}})
    with pytest.raises(AskUser, match="one setting"):
        Settings.load({"predict": {"audit_share": 0.2, "sample_share": 0.2}})
    monkeypatch.setenv("TWINLENS_PREDICT__AUDIT_SHARE", "0.3")
    for args in ({}, {"sample_share": 0.2}, {"audit_share": 0.2}):
        assert Settings.load({"predict": args}).predict.sample_share == 0.3, "the environment wins under either name"
    monkeypatch.delenv("TWINLENS_PREDICT__AUDIT_SHARE")
    monkeypatch.setenv("TWINLENS_PREDICT__SAMPLE_SHARE", "0.4")
    assert Settings.load({"predict": {"audit_share": 0.2}}).predict.sample_share == 0.4
