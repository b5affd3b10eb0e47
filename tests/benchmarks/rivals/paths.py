"""The model, its tokenizer and the pipeline, loaded in the same way for every loop."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from tests.benchmarks.rivals.job import Job


class Paths(NamedTuple):
    model: Any
    tokenizer: Any
    classify: Any  #: the pipeline, with a tokenizer of its own as in twinlens
    tokenize: dict[str, Any]  #: arguments for the tokenizer


def load(job: Job) -> Paths:
    # Read by libgomp and tokenizers when they are loaded, so before the imports.
    os.environ |= {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(job.threads)
    model = AutoModelForSequenceClassification.from_pretrained(job.model, dtype=getattr(torch, job.dtype)).eval()
    cut = {"truncation": True, "max_length": job.max_length}
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    classify = pipeline(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(job.model), device="cpu", **cut
    )
    return Paths(model, tokenizer, classify, {**cut, "return_tensors": "pt"})
