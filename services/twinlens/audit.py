"""An independent check of what was published. It joins the output topics by source coordinates.

It shares only the record types with the comparison in the replicas: scores are computed again from the published
logits. `join` is pure; `broker.reading` reads the topics.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from kafka import OffsetSpec, TopicPartition
from kafka.errors import RetriableError

from twinlens.broker.client import naming_denials, new_admin, new_consumer
from twinlens.broker.reading import read_topics
from twinlens.deadletter import letter_of
from twinlens.errors import AskUser
from twinlens.records import (
    LogitsRecord,
    PredictionMode,
    PredictionRecord,
    Verdict,
    decode_comparison,
    decode_logits,
    decode_prediction,
)
from twinlens.settings import Settings

Coordinates = tuple[int, int]  #: partition and offset on the input topic
EXAMPLES = 10  #: how many missing or diverging tweets a report shows
COORDINATOR_S = 15.0  #: the longest wait for the group's coordinator to be found
OPEN_GRACE_S = 5.0  #: an open transaction may last this much longer than its timeout


class Report(msgspec.Struct, kw_only=True):
    """The result of the audit. `missing` and `duplicate` should be 0."""

    consumed: int = 0  #: records of the input topic before the group's committed offsets
    published: int = 0  #: of the consumed records, those on both output topics
    derived: int = 0  #: of the published ones, those predicted from the raw path's logits: nothing to compare
    dead_lettered: int = 0  #: of the consumed records, those on the dead-letter topic
    missing: int = 0  #: of the consumed records, those on none of these topics, or on only one output topic
    duplicate: int = 0  #: extra records: all after the first per tweet and topic
    diverging: int = 0  #: of the published ones that are not derived, those that diverge
    label_divergences: int = 0
    score_divergences: int = 0
    one_sided: int = 0
    monitor_tweets: int = 0  #: by the comparison records: tweets published, compared or not
    monitor_diverging: int = 0
    unreadable: int = 0  #: records of the output topics that twinlens did not write
    examples: list[dict[str, Any]] = msgspec.field(default_factory=list)  #: the first diverging or missing tweets

    @property
    def clean(self) -> bool:
        """No tweet is missing and none is published twice."""
        return self.missing == 0 and self.duplicate == 0


class Side(NamedTuple):
    """The published answer of one path for one tweet."""

    label: str | None
    score: float | None


class Published(msgspec.Struct, kw_only=True):
    """Everything that was read from the output topics, by source coordinates."""

    raw: dict[Coordinates, Side] = msgspec.field(default_factory=dict)
    predict: dict[Coordinates, Side] = msgspec.field(default_factory=dict)
    derived: set[Coordinates] = msgspec.field(default_factory=set)
    windows: dict[Coordinates, str] = msgspec.field(default_factory=dict)
    dead: set[Coordinates] = msgspec.field(default_factory=set)
    duplicate: int = 0
    tolerances: dict[str, float] = msgspec.field(default_factory=dict)  #: by window
    monitor_tweets: int = 0
    monitor_diverging: int = 0
    unreadable: int = 0


def join(consumed: Iterable[Coordinates], published: Published, tolerance: float) -> Report:
    """Compare consumed records with published ones. `tolerance` applies to windows without a comparison record."""
    report = Report(
        duplicate=published.duplicate,
        monitor_tweets=published.monitor_tweets,
        monitor_diverging=published.monitor_diverging,
        unreadable=published.unreadable,
    )
    for at in consumed:
        report.consumed += 1
        raw, predict = published.raw.get(at), published.predict.get(at)
        if at in published.dead:
            report.dead_lettered += 1
            report.duplicate += (raw is not None) + (predict is not None)
        elif raw is None or predict is None:
            report.missing += 1
            _example(report, at, "missing", raw, predict)
        elif at in published.derived:
            report.published += 1
            report.derived += 1
        else:
            report.published += 1
            limit = published.tolerances.get(published.windows.get(at, ""), tolerance)
            verdict = verdict_of(raw, predict, limit)
            _count(report, verdict)
            if verdict.diverges:
                _example(report, at, verdict.value, raw, predict)
    return report


def verdict_of(raw: Side, predict: Side, tolerance: float) -> Verdict:
    """The verdict, computed only from published values."""
    if raw.label is None and predict.label is None:
        return Verdict.BOTH_FAILED
    if raw.label is None or predict.label is None or raw.score is None or predict.score is None:
        return Verdict.ONE_SIDED
    if raw.label != predict.label:
        return Verdict.LABEL
    far = abs(np.float32(raw.score) - np.float32(predict.score)) > tolerance
    return Verdict.SCORE if far else Verdict.AGREE


def raw_side(record: LogitsRecord) -> Side:
    """Label and score from published logits, computed with the function that the record names."""
    if record.error is not None:
        return Side(None, None)
    logits = np.asarray(record.logits, np.float32)
    if record.function == "softmax":
        exponentials = np.exp(logits - logits.max())
        scores = exponentials / exponentials.sum()
    elif record.function == "sigmoid":
        with np.errstate(over="ignore"):
            scores = 1.0 / (1.0 + np.exp(-logits))
    else:
        scores = logits
    top = int(scores.argmax())
    return Side(record.labels[top], float(scores[top]))


def predict_side(record: PredictionRecord) -> Side:
    """Label and score as published."""
    return Side(None, None) if record.error is not None else Side(record.label, record.score)


def audit(settings: Settings) -> Report:
    """Read every topic from its beginning and join them, up to the committed offsets of the group.

    Holds two small tuples per tweet in memory. Tweets count as missing if retention has removed their outputs.
    """
    with naming_denials(settings.kafka, "Describe", group=settings.group_id):
        ends = committed_offsets(settings)  # read first, so that everything before them is in the outputs
    with naming_denials(settings.kafka, "Read"):
        _wait_for_open_transactions(settings)
        published = Published()
        for topic, record in read_topics(settings, settings.topics.outputs):
            try:
                _collect(published, settings, topic, record)
            except (msgspec.MsgspecError, TypeError):
                published.unreadable += 1
        consumed = (
            (record.partition, record.offset)
            for _, record in read_topics(settings, (settings.topics.input,))
            if record.offset < ends.get(record.partition, 0)
        )
        return join(consumed, published, settings.compare.score_tolerance)


def _wait_for_open_transactions(settings: Settings) -> None:
    """Wait until all current outputs can be read: an open transaction hides everything after its beginning.

    A transaction left open by a dead process ends after `kafka.transaction_timeout_ms`. Raises AskUser if it does not.
    """
    admin, consumer = new_admin(settings.kafka), new_consumer(settings.kafka, isolation_level="read_committed")
    try:
        partitions = [TopicPartition(t, n) for t in settings.topics.outputs for n in consumer.partitions_for_topic(t)]
        latest = dict.fromkeys(partitions, OffsetSpec.LATEST)
        ends = {p: found.offset for p, found in admin.list_partition_offsets(latest).items()}
        deadline = time.monotonic() + settings.kafka.transaction_timeout_ms / 1000 + OPEN_GRACE_S
        while behind := [p for p, stable in consumer.end_offsets(partitions).items() if stable < ends[p]]:
            if time.monotonic() > deadline:
                raise AskUser(
                    f"An open transaction hides the end of {behind[0].topic}, partition {behind[0].partition}, for "
                    "longer than kafka.transaction_timeout_ms. Find it with Kafka's kafka-transactions.sh."
                )
            time.sleep(0.2)
    finally:
        admin.close()
        consumer.close()


def committed_offsets(settings: Settings) -> dict[int, int]:
    """The committed offset of the group for each partition of the input topic."""
    admin = new_admin(settings.kafka)
    deadline = time.monotonic() + COORDINATOR_S
    try:
        offsets: Mapping[TopicPartition, Any] | None = None
        while offsets is None:
            try:
                offsets = admin.list_group_offsets({settings.group_id: None})[settings.group_id]
            except RetriableError:  # on a new cluster, the first request makes Kafka create its offsets topic
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    finally:
        admin.close()
    return {tp.partition: value.offset for tp, value in offsets.items() if tp.topic == settings.topics.input}


def _collect(published: Published, settings: Settings, topic: str, record: Any) -> None:
    topics = settings.topics
    if topic == topics.logits:
        logits = decode_logits(record.value)
        if logits.application == settings.application:
            at = (logits.source.partition, logits.source.offset)
            published.duplicate += at in published.raw
            published.raw[at] = raw_side(logits)
            if logits.batch is not None:
                published.windows[at] = logits.batch.window
    elif topic == topics.predictions:
        prediction = decode_prediction(record.value)
        if prediction.application == settings.application:
            _collect_prediction(published, prediction)
    elif topic == topics.comparisons:
        comparison = decode_comparison(record.value)
        if comparison.application == settings.application:
            published.tolerances[comparison.window] = comparison.tolerance
            published.monitor_tweets += comparison.published
            published.monitor_diverging += comparison.tally.diverging
    elif topic == topics.dlq:
        letter = letter_of(record)
        if letter is not None and letter.application == settings.application:
            at = (letter.source.partition, letter.source.offset)
            published.duplicate += at in published.dead
            published.dead.add(at)


def _collect_prediction(published: Published, prediction: PredictionRecord) -> None:
    at = (prediction.source.partition, prediction.source.offset)
    published.duplicate += at in published.predict
    published.predict[at] = predict_side(prediction)
    if prediction.mode is PredictionMode.DERIVED:
        published.derived.add(at)


def _count(report: Report, verdict: Verdict) -> None:
    report.label_divergences += verdict is Verdict.LABEL
    report.score_divergences += verdict is Verdict.SCORE
    report.one_sided += verdict is Verdict.ONE_SIDED
    report.diverging += verdict.diverges


def _example(report: Report, at: Coordinates, what: str, raw: Side | None, predict: Side | None) -> None:
    if len(report.examples) < EXAMPLES:
        report.examples.append(
            {
                "partition": at[0],
                "offset": at[1],
                "what": what,
                "raw": None if raw is None else raw._asdict(),
                "predict": None if predict is None else predict._asdict(),
            }
        )
