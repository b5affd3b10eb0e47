"""What crosses a boundary: the record types of every topic, and nothing else.

Values are JSON (msgspec). `docs/schemas/` and `docs/asyncapi.json` are generated from these types by
`twinlens.schemas`; a test fails when they are stale. Fields with a default are left out of the JSON when they
have it, so a field can be added without breaking a reader.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """How the two paths compare on one tweet."""

    AGREE = "agree"
    LABEL = "label"
    SCORE = "score"
    ONE_SIDED = "one_sided"
    BOTH_FAILED = "both_failed"

    @property
    def diverges(self) -> bool:
        """Whether it counts as a divergence. `both_failed` is neither a divergence nor an agreement."""
        return self in _DIVERGENCES


_DIVERGENCES = frozenset({Verdict.LABEL, Verdict.SCORE, Verdict.ONE_SIDED})


class Cause(StrEnum):
    """The first check that fails (see `verdict.cause`)."""

    ERROR = "error"
    TRUNCATION = "truncation"
    TOKENIZATION = "tokenization"
    MASK = "mask"
    MODE = "mode"
    MODEL = "model"
    PRECISION = "precision"
    DEVICE = "device"
    BATCH_NUMERICS = "batch_numerics"
    POST_PROCESSING = "post_processing"
    LABEL_MAP = "label_map"
    UNEXPLAINED = "unexplained"


class Certainty(StrEnum):
    """`confirmed`: an experiment that changed this one factor closed the gap. `consistent`: the evidence fits."""

    CONFIRMED = "confirmed"
    CONSISTENT = "consistent"


class PredictionMode(StrEnum):
    """How a prediction was made: by the pipeline, or from the raw path's logits by the pipeline's post-processing."""

    PIPELINE = "pipeline"
    DERIVED = "derived"


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of all published records."""


class SourceCoordinates(msgspec.Struct, frozen=True):
    """Where the tweet was read: the identity of a tweet for every join and audit."""

    topic: str
    partition: int
    offset: int


class ModelId(msgspec.Struct, frozen=True):
    """A model's name (hub id or folder name) and its revision (commit, or digest of the weights)."""

    name: str
    revision: str


class BatchProvenance(Record, frozen=True):
    """How a text was computed: enough to compute it again in the same way."""

    replica: str
    window: str  #: `<replica>-<number>`; all tweets of one transaction share it
    size: int  #: texts in the forward pass
    padded_tokens: int  #: length every text of the batch was padded to
    dtype: str
    device: str


class PathError(Record, frozen=True):
    """The exception a path raised for one text."""

    type: str
    message: str


class LogitsRecord(Record, frozen=True):
    """One per tweet on `tweets.logits`: what `model(**tokenizer(text))` gave.

    `logits` has one entry per label, in the order of `labels`; it is empty where the path raised (`error`).
    """

    id: str
    source: SourceCoordinates
    application: str
    model: ModelId
    labels: list[str]
    logits: list[float]
    function: str  #: what the pipeline's post-processing makes scores with: softmax, sigmoid or none
    token_count: int = 0  #: tokens of the text after truncation, special tokens included, padding excluded
    truncated: bool = False
    batch: BatchProvenance | None = None
    cls: list[float] | None = None  #: last hidden state of the first token, when `raw.publish_cls` is on
    error: PathError | None = None


class LabelScore(msgspec.Struct, frozen=True):
    """One entry of the pipeline's answer."""

    label: str
    score: float


class PredictionRecord(Record, frozen=True):
    """One per tweet on `tweets.predictions`: what `pipeline("text-classification")` gave.

    `label` and `score` are the highest-scoring label; `scores` is the whole answer when `predict.top_k` is set. With
    `predict.mode: sampled` the pipeline runs on a sample only. The others are `derived`: `batch` and `error` are then
    those of the raw path, whose logits the answer was made from.
    """

    id: str
    source: SourceCoordinates
    application: str
    model: ModelId
    label: str | None = None
    score: float | None = None
    scores: list[LabelScore] | None = None
    batch: BatchProvenance | None = None
    mode: PredictionMode = PredictionMode.PIPELINE
    error: PathError | None = None


class PathView(Record, frozen=True):
    """One path's side of a divergence."""

    label: str | None = None
    score: float | None = None
    logits: list[float] | None = None
    token_count: int = 0
    truncated: bool = False
    ids_digest: str = ""  #: BLAKE2b-64 of the token ids, padding excluded
    batch: BatchProvenance | None = None
    error: PathError | None = None


class DivergenceRecord(Record, frozen=True):
    """One per diverging tweet on `tweets.divergences`."""

    id: str
    source: SourceCoordinates
    application: str
    verdict: Verdict
    cause: Cause
    certainty: Certainty
    raw: PathView
    predict: PathView
    tolerance: float  #: score tolerance in force: the configured one or the noise floor, whichever is larger
    score_delta: float | None = None  #: |raw score - predict score|, each of its own label on top
    margin: float | None = None  #: raw path: highest logit minus second highest
    logits_delta: float | None = None  #: largest |raw logit - predict logit|
    text: str | None = None  #: the tweet's first characters, see `output.divergence_text_chars`


class Tally(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Counts of tweets by verdict; addition merges two of them."""

    tweets: int = 0
    label: int = 0
    score: int = 0
    one_sided: int = 0
    both_failed: int = 0

    @property
    def diverging(self) -> int:
        """Tweets whose verdict is a divergence."""
        return sum(getattr(self, verdict.value) for verdict in _DIVERGENCES)

    def count(self, verdict: Verdict) -> None:
        """One more tweet with this verdict."""
        self.tweets += 1
        if verdict is not Verdict.AGREE:
            setattr(self, verdict.value, getattr(self, verdict.value) + 1)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            tweets=self.tweets + other.tweets,
            label=self.label + other.label,
            score=self.score + other.score,
            one_sided=self.one_sided + other.one_sided,
            both_failed=self.both_failed + other.both_failed,
        )


Histogram = dict[int, int]  #: bucket index -> count, see `twinlens.sketch`


class ComparisonRecord(Record, frozen=True):
    """One per committed window and source partition on `tweets.comparisons`: counts and sketches that merge.

    Offsets are those of `source_topic`/`source_partition`; both ends are inclusive. `tally` counts compared tweets, as
    do `by_length`, `labels`, `causes` and `score_delta`; `derived` counts the other tweets, `refused` the dead letters.
    What belongs to the window as a whole (`batch_sizes`, `tokens`, `padded_tokens`, `compute_s`) stands in the record
    of its first partition only, so that sums over records are right.
    """

    application: str
    replica: str
    window: str
    source_topic: str
    source_partition: int
    first_offset: int
    last_offset: int
    published_at_ms: int  #: wall clock of the replica when the transaction began
    raw_model: ModelId
    predict_model: ModelId
    tally: Tally
    derived: int = 0  #: tweets with a derived prediction: published, not compared
    refused: dict[str, int] = msgspec.field(default_factory=dict)  #: by `RefusalReason`
    labels: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  #: raw label -> predict label -> tweets
    by_length: dict[str, Tally] = msgspec.field(default_factory=dict)  #: by upper bound of the token count
    causes: dict[str, int] = msgspec.field(default_factory=dict)
    score_delta: Histogram = msgspec.field(default_factory=dict)
    latency_s: Histogram = msgspec.field(default_factory=dict)  #: record timestamp to start of the transaction
    batch_sizes: dict[int, int] = msgspec.field(default_factory=dict)  #: raw path: texts per forward pass -> passes
    tokens: int = 0  #: raw path, padding excluded
    padded_tokens: int = 0  #: raw path, padding included
    compute_s: float = 0.0  #: seconds the window spent in both paths
    tolerance: float = 0.0  #: score tolerance in force

    @property
    def published(self) -> int:
        """Tweets on both output topics, compared or not."""
        return self.tally.tweets + self.derived


def encode(record: Record) -> bytes:
    """JSON bytes of a record."""
    return _ENCODER.encode(record)


_ENCODER = msgspec.json.Encoder()
decode_logits = msgspec.json.Decoder(LogitsRecord).decode
decode_prediction = msgspec.json.Decoder(PredictionRecord).decode
decode_divergence = msgspec.json.Decoder(DivergenceRecord).decode
decode_comparison = msgspec.json.Decoder(ComparisonRecord).decode
