"""What each number format costs and changes: the raw path alone on length-sorted batches. Printed, never asserted.

`int8` is torch's dynamic quantisation of the linear layers (torch.ao.quantization), which torch has deprecated in
favour of another package; it is measured here to know what is missed, and is no setting.
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.benchmarks.limit import BATCH, DATA
from tests.benchmarks.system import CPUS
from tests.support.models import demo_tweets

FORMATS = ("float32", "bfloat16", "float16", "int8")
REPETITIONS = 3
TEXTS = 1_000


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_precision() -> None:
    torch.set_num_threads(CPUS)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "demo-model")
    texts = sorted(demo_tweets()[:TEXTS], key=lambda text: len(tokenizer(text)["input_ids"]))
    batches = [
        tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        for start in range(0, len(texts), BATCH)
    ]
    models = {name: new_model(name) for name in FORMATS}
    seconds: dict[str, list[float]] = {name: [] for name in FORMATS}
    logits: dict[str, np.ndarray] = {}
    for repetition in range(REPETITIONS + 1):  # the first one warms up
        for name, model in models.items():
            start = time.perf_counter()
            with torch.inference_mode():
                logits[name] = np.concatenate([model(**batch).logits.float().numpy() for batch in batches])
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    best = logits["float32"]
    print(f"\n{CPUS} CPUs, {torch.backends.cpu.get_cpu_capability()}, medians of {REPETITIONS}, {len(texts)} tweets")
    print("| format | tweets/s | against float32 | other labels | largest difference of a logit |")
    print("|---|---:|---:|---:|---:|")
    for name in FORMATS:
        ratio = statistics.median(b / s for b, s in zip(seconds["float32"], seconds[name], strict=True))
        others = int((logits[name].argmax(axis=1) != best.argmax(axis=1)).sum())
        rate = len(texts) / statistics.median(seconds[name])
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {others} | {np.abs(logits[name] - best).max():.3g} |")


def new_model(name: str) -> Any:
    dtype = torch.float32 if name == "int8" else getattr(torch, name)
    model = AutoModelForSequenceClassification.from_pretrained(DATA / "demo-model", dtype=dtype).eval()
    if name != "int8":
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
