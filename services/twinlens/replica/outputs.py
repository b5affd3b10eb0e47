"""From a compared window to the records of the five output topics. Pure.

Per partition, records are in the order of their source offsets. Key and headers (a `traceparent` among them) pass
through unchanged. A refused record becomes a dead letter: the original bytes, key and headers, and the reason in
headers named `twinlens.*`. Only a value too large for `kafka.max_request_bytes` is cut, and a header says so.
"""

from __future__ import annotations

import numpy as np

from twinlens.deadletter import REPLAYED_FROM, own_headers
from twinlens.paths.observations import Observations
from twinlens.records import (
    BatchProvenance,
    Certainty,
    DivergenceRecord,
    LogitsRecord,
    PathView,
    PredictionMode,
    PredictionRecord,
    Record,
    SourceCoordinates,
    encode,
)
from twinlens.replica.counting import ComparedWindow, comparison_records
from twinlens.settings import Settings
from twinlens.window.item import Headers, Item, OutgoingRecord

SPARE_BYTES = 4_096  #: of `kafka.max_request_bytes`, left for what surrounds a dead letter
HEADER_BYTES = 10  #: around a header's name and value: their lengths, in up to five bytes each


class OutputWriter:
    """Builds the output records of one replica."""

    def __init__(self, settings: Settings, replica: str) -> None:
        self._settings = settings
        self._topics = settings.topics
        self._replica = replica

    def records(self, done: ComparedWindow, now_ms: int) -> list[OutgoingRecord]:
        """Every record of the window's transaction. `now_ms` is the wall clock."""
        name = f"{self._replica}-{done.window.number}"
        views = _Views(done, self._replica, name, self._settings)
        outgoing: list[OutgoingRecord] = []
        row = 0
        for item in done.window.items:
            if item.refusal is not None:
                outgoing.append(self.dead_letter(item, now_ms))
                continue
            outgoing.append(_outgoing(self._topics.logits, item, views.logits(row, item)))
            outgoing.append(_outgoing(self._topics.predictions, item, views.prediction(row, item)))
            if row in done.causes:
                outgoing.append(_outgoing(self._topics.divergences, item, views.divergence(row, item)))
            row += 1
        for record in comparison_records(
            done, application=self._settings.application, replica=self._replica, window=name, now_ms=now_ms
        ):
            key = f"{record.source_topic}/{record.source_partition}".encode()
            outgoing.append(OutgoingRecord(self._topics.comparisons, record.source_partition, key, encode(record), []))
        return outgoing

    def dead_letter(self, item: Item, now_ms: int) -> OutgoingRecord:
        """A refused record as it came, with the reason in its headers.

        If it is a replayed letter, the header that names the letter stays. Other headers named `twinlens.*` are
        removed: a letter that another tool has moved back would otherwise have two sets of them.
        """
        refusal = item.refusal
        assert refusal is not None
        added: Headers = [
            ("twinlens.reason", refusal.reason.encode()),
            ("twinlens.detail", refusal.detail.encode()),
            ("twinlens.source.topic", item.topic.encode()),
            ("twinlens.source.partition", str(item.partition).encode()),
            ("twinlens.source.offset", str(item.offset).encode()),
            ("twinlens.source.timestamp_ms", str(item.timestamp_ms).encode()),
            ("twinlens.refused_at_ms", str(now_ms).encode()),
            ("twinlens.application", self._settings.application.encode()),
        ]
        kept = own_headers(item.headers) + [(name, held) for name, held in item.headers if name == REPLAYED_FROM][-1:]
        value = item.value
        if value is None and item.key is None:  # producers send no such record; the reason says it was a tombstone
            value = b""
        # Kafka must accept it, or a record that cannot be read would stop the stream.
        headers = sum(len(name.encode()) + len(held) + HEADER_BYTES for name, held in kept + added)
        taken = len(item.key or b"") + headers + SPARE_BYTES
        room = max(0, self._settings.kafka.max_request_bytes - taken)
        if value is not None and len(value) > room:
            added.append(("twinlens.cut_from_bytes", str(len(value)).encode()))
            value = value[:room]
        return OutgoingRecord(self._topics.dlq, item.partition, item.key, value, kept + added)


class _Views:
    """Makes the records of one tweet from columns that are unpacked once per window."""

    def __init__(self, done: ComparedWindow, replica: str, window: str, settings: Settings) -> None:
        self._done = done
        self._settings = settings
        self._logits = done.raw.logits.tolist()
        self._predict_logits = done.predict.logits.tolist()
        self._raw_batches = _provenance(done.raw, replica, window)
        self._predict_batches = _provenance(done.predict, replica, window)
        self._scores = (done.raw.top_scores().tolist(), done.predict.top_scores().tolist())

    def logits(self, row: int, item: Item) -> LogitsRecord:
        raw = self._done.raw
        error = raw.errors[row]
        return LogitsRecord(
            id=item.id,
            source=SourceCoordinates(item.topic, item.partition, item.offset),
            application=self._settings.application,
            model=raw.facts.model,
            labels=raw.facts.labels,
            logits=[] if error is not None else self._logits[row],
            function=raw.facts.function,
            token_count=len(raw.input_ids[row]),
            truncated=bool(raw.truncated[row]),
            batch=self._raw_batches.get(int(raw.batch_of[row])),
            cls=None if raw.cls is None or error is not None else raw.cls[row].tolist(),
            error=error,
        )

    def prediction(self, row: int, item: Item) -> PredictionRecord:
        raw, predict = self._done.raw, self._done.predict
        error = predict.errors[row]
        derived = bool(predict.derived[row])
        return PredictionRecord(
            id=item.id,
            source=SourceCoordinates(item.topic, item.partition, item.offset),
            application=self._settings.application,
            model=predict.facts.model,
            label=predict.label(row),
            score=None if error is not None else self._scores[1][row],
            scores=predict.answers[row] if predict.facts.top_k is not None and error is None else None,
            batch=(
                self._raw_batches.get(int(raw.batch_of[row]))
                if derived
                else self._predict_batches.get(int(predict.batch_of[row]))
            ),
            mode=PredictionMode.DERIVED if derived else PredictionMode.PIPELINE,
            error=error,
        )

    def divergence(self, row: int, item: Item) -> DivergenceRecord:
        comparison = self._done.comparison
        verdict = comparison.verdicts[row]
        assert verdict is not None  # it diverges
        characters = self._settings.output.divergence_text_chars
        return DivergenceRecord(
            id=item.id,
            source=SourceCoordinates(item.topic, item.partition, item.offset),
            application=self._settings.application,
            verdict=verdict,
            cause=self._done.causes[row],
            certainty=Certainty.CONSISTENT,
            raw=self._view(row, self._done.raw, self._logits, self._scores[0], self._raw_batches),
            predict=self._view(row, self._done.predict, self._predict_logits, self._scores[1], self._predict_batches),
            tolerance=comparison.tolerance,
            score_delta=_finite(comparison.score_delta[row]),
            margin=_finite(comparison.margin[row]),
            logits_delta=_finite(comparison.logits_delta[row]),
            text=item.text.content[:characters] if characters else None,
        )

    def _view(
        self,
        row: int,
        seen: Observations,
        logits: list[list[float]],
        scores: list[float],
        batches: dict[int, BatchProvenance],
    ) -> PathView:
        error = seen.errors[row]
        return PathView(
            label=seen.label(row),
            score=None if error is not None else scores[row],
            logits=None if error is not None else logits[row],
            token_count=len(seen.input_ids[row]),
            truncated=bool(seen.truncated[row]),
            ids_digest=seen.ids_digest(row),
            batch=batches.get(int(seen.batch_of[row])),
            error=error,
        )


def _outgoing(topic: str, item: Item, record: Record) -> OutgoingRecord:
    return OutgoingRecord(topic, item.partition, item.key, encode(record), item.headers)


def _provenance(seen: Observations, replica: str, window: str) -> dict[int, BatchProvenance]:
    return {
        index: BatchProvenance(
            replica=replica,
            window=window,
            size=batch.size,
            padded_tokens=batch.padded_tokens,
            dtype=seen.facts.dtype,
            device=seen.facts.device,
        )
        for index, batch in enumerate(seen.batches)
    }


def _finite(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None
