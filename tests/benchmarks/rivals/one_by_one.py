"""Poll, then per tweet the call and the pipeline. At least once: results first, offsets afterwards."""

from __future__ import annotations

from tests.benchmarks.rivals.clients import new_consumer, new_producer, poll, send
from tests.benchmarks.rivals.job import Job, job
from tests.benchmarks.rivals.paths import load


def main(job: Job) -> None:
    model, tokenizer, classify, tokenize = load(job)
    import torch

    consumer, producer = new_consumer(job), new_producer(job)
    while True:
        for tweet in poll(consumer, timeout_ms=500):
            with torch.inference_mode():
                logits = model(**tokenizer(tweet.text, **tokenize)).logits.float()
            answer = classify(tweet.text)[0]
            send(producer, job, tweet, logits[0].tolist(), answer)
        producer.flush()
        consumer.commit()


if __name__ == "__main__":
    main(job())
