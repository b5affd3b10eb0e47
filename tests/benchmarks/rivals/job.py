"""What a loop is told, and what it writes."""

from __future__ import annotations

import sys

import msgspec


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The argument of every loop, as JSON."""

    servers: str
    group: str
    tweets: str  #: topics
    logits: str
    predictions: str
    model: str
    dtype: str
    threads: int
    max_length: int = 128


class Source(msgspec.Struct, frozen=True):
    """Where the tweet was read; results are joined by it."""

    topic: str
    partition: int
    offset: int


class Logits(msgspec.Struct, frozen=True):
    """What `model(**tokenizer(text))` gave."""

    id: str
    source: Source
    logits: list[float]


class Prediction(msgspec.Struct, frozen=True):
    """What the pipeline gave."""

    id: str
    source: Source
    label: str
    score: float


def job() -> Job:
    """The job of this process."""
    return msgspec.json.decode(sys.argv[1], type=Job)
