"""Quix Streams: the call and the pipeline as two branches of a dataframe, message by message. At least once.

Runs in a Python of its own, see `requirements-quix.txt`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from quixstreams import Application, message_context
from quixstreams.models import JSONDeserializer, JSONSerializer

from tests.benchmarks.rivals.job import Job, Logits, Prediction, Source, job
from tests.benchmarks.rivals.paths import load


def source() -> Source:
    """Of the message that is being processed."""
    context = message_context()
    return Source(context.topic, context.partition, context.offset)


def main(job: Job) -> None:
    model, tokenizer, classify, tokenize = load(job)
    import torch

    app = Application(
        broker_address=job.servers,
        consumer_group=job.group,
        auto_offset_reset="earliest",
        auto_create_topics=False,
        producer_extra_config={"compression.type": "lz4"},
        loglevel="WARNING",
    )
    serializer = JSONSerializer(dumps=msgspec.json.encode)
    logits = app.topic(job.logits, value_serializer=serializer)
    predictions = app.topic(job.predictions, value_serializer=serializer)

    def call(tweet: dict[str, Any]) -> Logits:
        with torch.inference_mode():
            output = model(**tokenizer(tweet["text"], **tokenize)).logits.float()
        return Logits(tweet["id"], source(), output[0].tolist())

    def predict(tweet: dict[str, Any]) -> Prediction:
        answer = classify(tweet["text"])[0]
        return Prediction(tweet["id"], source(), answer["label"], answer["score"])

    tweets = app.dataframe(app.topic(job.tweets, value_deserializer=JSONDeserializer(loads=msgspec.json.decode)))
    tweets.apply(call).to_topic(logits)
    tweets.apply(predict).to_topic(predictions)
    app.run()


if __name__ == "__main__":
    main(job())
