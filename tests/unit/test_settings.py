"""Settings: all of them documented, three sources in their order, and errors that a person can act on."""

from __future__ import annotations

import dataclasses
import json
import os
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
from twinlens.settings import DEMO_MODEL, ENV_PREFIX, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
SECRET = "hunter2-and-more"
SASL = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_username": "somebody",
    "sasl_password": SECRET,
}
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
        monkeypatch.setenv(variable, "x-y")
        found = {path: value for path, _, value in _leaves(Settings, Settings.load())}[name]
        assert found.get_secret_value() == "x-y" if isinstance(found, SecretStr) else found == "x-y"
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
        ({"predict": {"audit_share": 0}}, "predict.audit_share"),
        ({"predict": {"audit_share": 1.01}}, "predict.audit_share"),
        ({"predict": {"mode": "audited", "model": "org/other"}}, "predict.mode"),
        ({"predict": {"mode": "audited", "revision": "v2"}}, "predict.mode"),
        (
            {"raw": {"model": "org/a", "revision": "v1"}, "predict": {"mode": "audited", "model": "org/a"}},
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


@pytest.mark.parametrize("missing", ["sasl_mechanism", "sasl_username", "sasl_password"])
@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_sasl_needs_all_three(protocol: str, missing: str) -> None:
    complete = {**SASL, "security_protocol": protocol}
    assert Settings.load({"kafka": complete}).kafka.sasl_password is not None
    with pytest.raises(AskUser, match=f"kafka.*{protocol} needs.*{missing}"):
        Settings.load({"kafka": {name: value for name, value in complete.items() if name != missing}})


def test_ssl_needs_no_sasl() -> None:
    assert Settings.load({"kafka": {"security_protocol": "SSL"}}).kafka.sasl_mechanism is None


def test_secrets_are_never_printed() -> None:
    settings = Settings.load({"kafka": {**SASL, "ssl_password": SECRET}})
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
    ],
)
def test_an_error_never_quotes_a_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(AskUser) as caught:
        Settings.load({"kafka": {**SASL, **wrong}})
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
def test_audited_mode_takes_any_two_paths_with_one_model(predict: dict[str, Any]) -> None:
    settings = Settings.load({"raw": {"model": "org/a", "revision": "v1"}, "predict": {"mode": "audited", **predict}})
    assert (settings.predict.mode, settings.predict.audit_share) == ("audited", 0.05)


def test_the_group_is_the_application_unless_it_is_named() -> None:
    assert Settings.load({"application": "a"}).group_id == "a"
    assert Settings.load({"application": "a", "kafka": {"group_id": "g"}}).group_id == "g"
