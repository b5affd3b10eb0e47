"""The limit: both paths on length-sorted texts in one process, with neither Kafka nor Ray around them.

Run as a program it prints seconds per repetition as JSON, after one repetition to warm up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

DATA = Path(__file__).parents[2] / "services" / "twinlens" / "data"
BATCH = 64


def main(dtype: str, threads: int, repetitions: int) -> None:
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    folder = str(DATA / "demo-model")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline(
        "text-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        truncation=True,
        max_length=128,
    )
    lines = (DATA / "demo-tweets" / "tweets.jsonl").read_text().splitlines()
    texts = sorted((json.loads(line)["text"] for line in lines), key=lambda text: len(tokenizer(text)["input_ids"]))
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    seconds = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        for batch in batches:
            with torch.inference_mode():
                model(**tokenizer(batch, padding=True, truncation=True, return_tensors="pt")).logits.float().numpy()
        for batch in batches:
            classify(batch, batch_size=BATCH)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"texts": len(texts), "seconds": seconds[1:]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
