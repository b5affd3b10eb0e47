"""Poll, then the call and the pipeline on batches of 32 as they come. At least once."""

from __future__ import annotations

from tests.benchmarks.rivals.clients import new_consumer, new_producer, poll, send
from tests.benchmarks.rivals.job import Job, job
from tests.benchmarks.rivals.paths import load

BATCH = 32


def main(job: Job) -> None:
    model, tokenizer, classify, tokenize = load(job)
    import torch

    consumer, producer = new_consumer(job), new_producer(job)
    while True:
        tweets = poll(consumer, timeout_ms=500)
        for start in range(0, len(tweets), BATCH):
            batch = tweets[start : start + BATCH]
            texts = [tweet.text for tweet in batch]
            with torch.inference_mode():
                logits = model(**tokenizer(texts, padding=True, **tokenize)).logits.float().tolist()
            answers = classify(texts, batch_size=BATCH)
            for tweet, row, answer in zip(batch, logits, answers, strict=True):
                send(producer, job, tweet, row, answer)
        producer.flush()
        consumer.commit()


if __name__ == "__main__":
    main(job())
