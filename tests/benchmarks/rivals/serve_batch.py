"""A consumer that hands tweets to a Ray Serve deployment with `@serve.batch`, many in flight. At least once.

Expects a Ray at `RAY_ADDRESS`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import ray
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata
from ray import serve

from tests.benchmarks.rivals.clients import Tweet, new_consumer, new_producer, poll, send
from tests.benchmarks.rivals.job import Job, job
from tests.benchmarks.rivals.paths import load

BATCH = 32
IN_FLIGHT = 256

Both = tuple[list[float], dict[str, Any]]  #: logits, and the pipeline's answer


@serve.deployment(max_ongoing_requests=IN_FLIGHT)
class Classifier:
    def __init__(self, job: Job) -> None:
        self._paths = load(job)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def __call__(self, texts: list[str]) -> list[Both]:
        return await asyncio.to_thread(self._both, texts)  # the event loop goes on taking requests

    def _both(self, texts: list[str]) -> list[Both]:
        import torch

        model, tokenizer, classify, tokenize = self._paths
        with torch.inference_mode():
            logits = model(**tokenizer(texts, padding=True, **tokenize)).logits.float().tolist()
        return list(zip(logits, classify(texts, batch_size=BATCH), strict=True))


def main(job: Job) -> None:
    ray.init(namespace="rivals", log_to_driver=False)
    serve.start(proxy_location="Disabled")  # no HTTP
    deployment = Classifier.options(ray_actor_options={"num_cpus": job.threads})  # type: ignore[attr-defined]
    classify = serve.run(deployment.bind(job), name=job.group, route_prefix=None)
    consumer, producer = new_consumer(job), new_producer(job)
    in_flight: deque[tuple[Tweet, Any]] = deque()
    answered: dict[TopicPartition, OffsetAndMetadata] = {}
    since_commit = 0
    while True:
        for tweet in poll(consumer, timeout_ms=0 if in_flight else 500):
            in_flight.append((tweet, classify.remote(tweet.text)))
            while len(in_flight) >= IN_FLIGHT:
                since_commit += settle(in_flight, answered, producer, job)
        if in_flight:  # nothing more has come so far
            since_commit += settle(in_flight, answered, producer, job)
        if since_commit >= IN_FLIGHT or (since_commit and not in_flight):
            producer.flush()
            consumer.commit(answered)
            since_commit = 0


def settle(
    in_flight: deque[tuple[Tweet, Any]],
    answered: dict[TopicPartition, OffsetAndMetadata],
    producer: Any,
    job: Job,
) -> int:
    """Wait for the oldest answer and send it, so that offsets may be committed up to its tweet."""
    tweet, response = in_flight.popleft()
    send(producer, job, tweet, *response.result())
    source = tweet.source
    answered[TopicPartition(source.topic, source.partition)] = OffsetAndMetadata(source.offset + 1, "", -1)
    return 1


if __name__ == "__main__":
    main(job())
