"""All settings in one typed tree. Only entry points (`cli`, `app.build`) read the environment.

`Settings.load(args)` merges four sources; a later one wins: defaults, `args` (the `args` of the Serve config file),
files in the secrets folder, the environment. The name of a variable or file is `TWINLENS_` and the path of the setting
with `__` between its parts: `TWINLENS_KAFKA__BOOTSTRAP_SERVERS=kafka:9092`. `docs/settings.md` describes each setting;
a test fails if one is missing there. Secrets stay in the process that read them: see `Settings.without_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from twinlens.errors import AskUser
from twinlens.settings.former_names import Environment, Secrets, renamed, with_present_names
from twinlens.settings.kafka import SECRETS, KafkaSettings, Section
from twinlens.settings.secret_files import SECRETS_DIR, SecretFiles

ENV_PREFIX = "TWINLENS_"
DEMO_MODEL = str(Path(__file__).parent.parent / "data" / "demo-model")

DType = Literal["float32", "bfloat16", "float16"]
FunctionToApply = Literal["default", "softmax", "sigmoid", "none"]
ONE_MODEL = (
    "predict.mode sampled derives predictions from the raw path's logits and needs the same model and revision in both "
    "paths: leave predict.model and predict.revision out, or set predict.mode to full"
)
OUTPUTS = ("logits", "predictions", "divergences", "comparisons", "dlq")


class TopicSettings(Section):
    """Names of the topics. A topic without a name here is called `<input>.logits` and so on."""

    input: str = "tweets"
    logits: str = ""
    predictions: str = ""
    divergences: str = ""
    comparisons: str = ""
    dlq: str = ""
    snapshots: str = ""

    @model_validator(mode="before")
    @classmethod
    def _derive_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            source = values.get("input") or "tweets"
            derived = {name: f"{source}.{name}" for name in (*OUTPUTS, "snapshots")}
            return {**derived, **{k: v for k, v in values.items() if v}}
        return values

    @model_validator(mode="after")
    def _names_are_legal_and_distinct(self) -> Self:
        names = (self.input, *self.outputs, self.snapshots)
        if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name)]:
            raise ValueError(f"no legal topic name: {wrong[0]!r}")
        if len(set(names)) != len(names):
            raise ValueError("the input, the outputs and the snapshots must be different topics")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The five topics that replicas write, co-partitioned with the input. Only the monitor writes `snapshots`."""
        return (self.logits, self.predictions, self.divergences, self.comparisons, self.dlq)


class IntakeSettings(Section):
    """How a record becomes a tweet, and how many records may wait."""

    format: Literal["json", "text"] = "json"
    text_field: str = "text"
    id_field: str = "id"
    max_text_chars: int = Field(100_000, ge=1)
    max_consecutive_refusals: int | None = Field(500, ge=1)
    max_refused_share: float | None = Field(0.5, gt=0, le=1)
    max_buffered_items: int = Field(4_096, ge=1)
    max_buffered_bytes: int = Field(64 * 1024 * 1024, ge=1_024)


class BatchingSettings(Section):
    """How windows are drawn. A running application takes new values through `user_config`."""

    max_window_items: int = Field(512, ge=1)
    latency_objective_ms: float = Field(1_000.0, gt=0)


class PathSettings(Section):
    """The model of one path and how the path runs it."""

    model: str | None = None  #: hub id or local folder; if None, the predict path runs the raw path's model
    revision: str | None = None
    max_length: int | None = Field(None, ge=3)
    truncation: bool = True
    dtype: DType = "float32"
    max_batch_items: int = Field(64, ge=1)
    max_batch_tokens: int = Field(8_192, ge=1)
    function_to_apply: FunctionToApply = "default"


class RawSettings(PathSettings):
    """`model(**tokenizer(text))`."""

    model: str = DEMO_MODEL
    publish_cls: bool = False


class PredictSettings(PathSettings):
    """`pipeline("text-classification")`."""

    top_k: int | None = Field(None, ge=1)
    mode: Literal["full", "sampled"] = "full"
    sample_share: float = Field(0.05, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        present = with_present_names(values)
        if isinstance(present, dict) and "audit_share" in present:
            raise ValueError("sample_share and audit_share are one setting: leave one of them out")
        return present


class CompareSettings(Section):
    """What counts as a divergence."""

    score_tolerance: float = Field(0.005, ge=0)
    noise_floor_share: float = Field(0.02, ge=0, le=1)


class OutputSettings(Section):
    """How results are published."""

    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    compression: Literal["none", "gzip", "lz4"] = "lz4"
    commit_deadline_s: float = Field(60.0, gt=0)
    divergence_text_chars: int = Field(280, ge=0)


class MonitorSettings(Section):
    """The monitoring actor and its alert."""

    alert_rate: float = Field(0.02, gt=0, lt=1)
    alert_run_length_tweets: int = Field(1_000_000, ge=10)
    recent_divergences: int = Field(20, ge=0)
    snapshot_period_s: float = Field(30.0, gt=0)


class Settings(BaseSettings):
    """The whole tree of settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, protected_namespaces=()
    )

    application: str = Field("twinlens", pattern=r"^[A-Za-z0-9._-]+$")
    device: str = "auto"
    torch_threads: int | None = Field(None, ge=1)
    log_text: bool = False
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = Field(default_factory=lambda: TopicSettings.model_validate({}))
    intake: IntakeSettings = IntakeSettings()
    batching: BatchingSettings = BatchingSettings()
    raw: RawSettings = RawSettings()
    predict: PredictSettings = PredictSettings()
    compare: CompareSettings = CompareSettings()
    output: OutputSettings = OutputSettings()
    monitor: MonitorSettings = MonitorSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return Environment(settings_cls), Secrets(settings_cls, ENV_PREFIX), init_settings

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.batching.max_window_items > self.intake.max_buffered_items:
            raise ValueError("batching.max_window_items may not exceed intake.max_buffered_items")
        return self

    @model_validator(mode="after")
    def _sampled_mode_has_one_model(self) -> Self:
        if self.predict.mode == "sampled" and not self.one_model:
            raise ValueError(ONE_MODEL)
        return self

    @classmethod
    def load(cls, args: dict[str, Any] | None = None) -> Self:
        """Settings from `args`, the secrets folder and the environment.

        Raises AskUser, which names every wrong setting. Raises AskUser also if `args` hold a secret, because Ray shows
        `args` to anybody who opens its dashboard.
        """
        args = args or {}
        kafka = args.get("kafka")
        if isinstance(kafka, dict) and (shown := [name for name in SECRETS if kafka.get(name) is not None]):
            raise AskUser(
                f"kafka.{shown[0]} must not stand in the args of a config file, which `serve status` and the Ray "
                f"dashboard show. Set {_variable(shown[0])}, or put it into a file of that name in the folder that "
                f"{SECRETS_DIR} names."
            )
        with asking_user():
            return cls(**renamed(args))

    def without_secrets(self) -> Self:
        """A copy without secrets, which may leave this process.

        Ray keeps the arguments of actors: a restarted actor would get old secrets.
        """
        return self.model_copy(update={"kafka": self.kafka.model_copy(update=dict.fromkeys(SECRETS))})

    def with_secrets(self) -> Self:
        """A copy with secrets of this process's environment and secrets folder. Raises AskUser if one is missing."""
        found = dict.fromkeys(SECRETS)
        with asking_user():
            for source in (SecretFiles(type(self), ENV_PREFIX), EnvSettingsSource(type(self))):
                found |= {name: value for name, value in source().get("kafka", {}).items() if name in SECRETS}
            kafka = KafkaSettings.model_validate({**self.kafka.model_dump(), **found})
        return self.model_copy(update={"kafka": kafka})

    @property
    def group_id(self) -> str:
        """The consumer group: `kafka.group_id`, or the application's name if that is not set."""
        return self.kafka.group_id or self.application

    @property
    def one_model(self) -> bool:
        """Whether both paths run the same model and revision."""
        return self.model_of(self.raw) == self.model_of(self.predict)

    def model_of(self, path: PathSettings) -> tuple[str, str | None]:
        """Name and revision of the model that a path runs."""
        if path.model is not None:
            return path.model, path.revision
        return self.raw.model, path.revision or self.raw.revision


def own_variables(names: Iterable[str]) -> list[str]:
    """The environment variables among `names` that `Settings.load` reads."""
    firsts = {f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields}
    return [name for name in names if name.upper().split("__")[0] in firsts or name == SECRETS_DIR]


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}KAFKA__{name.upper()}"


@contextmanager
def asking_user() -> Iterator[None]:
    """Turn errors in the settings into AskUser. Its text is one line and quotes no value."""
    try:
        yield
    except SettingsError as error:
        raise AskUser(f"Wrong settings: {error}. See docs/settings.md.") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in e['loc']) or 'settings'}: {e['msg']}" for e in error.errors()
        )
        raise AskUser(f"Wrong settings: {wrong}. See docs/settings.md.") from None
