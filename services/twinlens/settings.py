"""Every setting, in one typed tree. Only entry points (`cli`, `app.build`) read the environment.

`Settings.load(args)` merges, later wins: defaults, `args` (the `args` of the Serve config file), the environment.
Variables are `TWINLENS_` + the path with `__` between its parts: `TWINLENS_KAFKA__BOOTSTRAP_SERVERS=kafka:9092`.
`docs/settings.md` describes each one; a test fails when one is missing there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from twinlens.errors import AskUser

ENV_PREFIX = "TWINLENS_"
DEMO_MODEL = str(Path(__file__).parent / "data" / "demo-model")

DType = Literal["float32", "bfloat16", "float16"]
FunctionToApply = Literal["default", "softmax", "sigmoid", "none"]
ONE_MODEL = (
    "predict.mode audited derives predictions from the raw path's logits and needs the same model and revision in both "
    "paths: leave predict.model and predict.revision out, or set predict.mode to full"
)
OUTPUTS = ("logits", "predictions", "divergences", "comparisons", "dlq")


class Section(BaseModel):
    """A branch of the tree: unknown names are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class KafkaSettings(Section):
    """How to reach the cluster and how to behave as a member of the consumer group."""

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
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: SecretStr | None = None
    ssl_check_hostname: bool = True

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_mechanism and self.sasl_username and self.sasl_password
        ):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password")
        return self


class TopicSettings(Section):
    """Names of the topics. Those that are not named are `<input>.logits` and so on."""

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
        """The five topics that replicas write, co-partitioned with the input. `snapshots` is the monitor's own."""
        return (self.logits, self.predictions, self.divergences, self.comparisons, self.dlq)


class IntakeSettings(Section):
    """How a record becomes a tweet, and how many may wait."""

    format: Literal["json", "text"] = "json"
    text_field: str = "text"
    id_field: str = "id"
    max_text_chars: int = Field(100_000, ge=1)
    max_consecutive_refusals: int | None = Field(500, ge=1)
    max_refused_share: float | None = Field(0.5, gt=0, le=1)
    max_buffered_items: int = Field(4_096, ge=1)
    max_buffered_bytes: int = Field(64 * 1024 * 1024, ge=1_024)


class BatchingSettings(Section):
    """How windows are drawn. These may be changed on a running application through `user_config`."""

    max_window_items: int = Field(512, ge=1)
    latency_objective_ms: float = Field(1_000.0, gt=0)


class PathSettings(Section):
    """What one path runs."""

    model: str | None = None  #: hub id or local folder; the predict path runs the raw path's unless it names its own
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
    mode: Literal["full", "audited"] = "full"
    audit_share: float = Field(0.05, gt=0, le=1)


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
    """The whole tree."""

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
        return env_settings, init_settings

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if self.batching.max_window_items > self.intake.max_buffered_items:
            raise ValueError("batching.max_window_items may not exceed intake.max_buffered_items")
        return self

    @model_validator(mode="after")
    def _audited_mode_has_one_model(self) -> Self:
        if self.predict.mode == "audited" and not self.one_model:
            raise ValueError(ONE_MODEL)
        return self

    @classmethod
    def load(cls, args: dict[str, Any] | None = None) -> Self:
        """Settings from `args` and the environment; AskUser with one line per wrong value."""
        try:
            return cls(**(args or {}))
        except SettingsError as error:
            raise AskUser(f"Wrong settings: {error}. See docs/settings.md.") from None
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'settings'}: {e['msg']}" for e in error.errors()
            )
            raise AskUser(f"Wrong settings: {wrong}. See docs/settings.md.") from None

    @property
    def group_id(self) -> str:
        """Consumer group: `kafka.group_id`, or the application's name."""
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
