"""The predict path: the stock `pipeline("text-classification")`, with its own tokenizer object and its own arguments.

The subclass changes nothing in what the pipeline computes. Every step that it overrides calls the stock one and keeps
what is needed to explain a difference: token ids, mask, logits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchEncoding, TextClassificationPipeline, pipeline

from twinlens.paths.model import LoadedModel
from twinlens.paths.observations import NON_FINITE, Batch, Observations, bisect, error_of
from twinlens.paths.path import Path
from twinlens.paths.tokenize import cut_tokens
from twinlens.records import LabelScore
from twinlens.settings import PredictSettings
from twinlens.text import Text


class ObservedPipeline(TextClassificationPipeline):  # type: ignore[misc]
    """The stock pipeline, which notes in `seen` one entry per text of the running call, in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.padded_tokens = 0
        super().__init__(*args, **kwargs)

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        encoded = super().preprocess(inputs, **tokenizer_kwargs)
        self.seen.append(
            {
                "input_ids": encoded["input_ids"][0].tolist(),
                "mask_count": int(encoded["attention_mask"].sum()) if "attention_mask" in encoded else -1,
                "truncated": cut_tokens(self.tokenizer, encoded, 0, inputs) > 0,
                "logits": None,
            }
        )
        # Without what was cut off: it is large, and would stay in memory as long as the batch.
        return BatchEncoding(encoded.data)

    def _forward(self, model_inputs: Any) -> Any:
        self.padded_tokens = int(model_inputs["input_ids"].shape[1])
        outputs = super()._forward(model_inputs)
        logits = outputs["logits"].float().cpu().numpy()
        for entry, row in zip((e for e in self.seen if e["logits"] is None), logits, strict=True):
            entry["logits"] = row
        return outputs


class PredictPath(Path):
    """Runs the pipeline on texts. Each lane has its own pipeline and tokenizer; the weights are shared."""

    def __init__(self, model: LoadedModel, settings: PredictSettings, lanes: int = 1) -> None:
        self._loaded = model
        self._lanes = lanes
        self._noting = threading.Lock()  # around the number of a batch
        self.reconfigure(settings)

    def reconfigure(self, settings: PredictSettings) -> None:
        """Take other pipeline arguments; the weights stay."""
        model = self._loaded
        self.max_tokens = min(settings.max_length or model.max_tokens, model.max_tokens)
        arguments: dict[str, Any] = {}
        if settings.truncation:
            arguments |= {"truncation": True, "max_length": self.max_tokens}
        if settings.function_to_apply != "default":
            arguments["function_to_apply"] = settings.function_to_apply
        if settings.top_k is not None:
            arguments["top_k"] = settings.top_k
        self._pipelines: list[ObservedPipeline] = [
            pipeline(
                "text-classification",
                model=model.model,
                tokenizer=model.new_tokenizer(),
                device=model.device,
                pipeline_class=ObservedPipeline,
                **arguments,
            )
            for _ in range(self._lanes)
        ]
        self.can_batch = self._pipelines[0].tokenizer.pad_token_id is not None
        self.facts = model.facts(settings.function_to_apply, settings.top_k)
        self._index = {label: position for position, label in enumerate(model.labels)}

    def begin(self, texts: Sequence[Text]) -> Observations:
        return Observations.empty(self.facts, len(texts))

    def run(self, seen: Observations, texts: Sequence[Text], batch: Sequence[int], lane: int = 0) -> None:
        classify = self._pipelines[lane]

        def run(rows: Sequence[int]) -> None:
            self._run(classify, seen, texts, rows)

        def fail(row: int, error: Exception) -> None:
            seen.errors[row] = error_of(error)
            _note(classify, seen, [row])

        bisect(batch, run, fail)

    def _run(self, classify: ObservedPipeline, seen: Observations, texts: Sequence[Text], rows: Sequence[int]) -> None:
        classify.seen.clear()
        start = time.perf_counter()
        answers = classify([texts[row].content for row in rows], batch_size=len(rows))
        seconds = time.perf_counter() - start
        _note(classify, seen, rows)
        if self.facts.top_k is not None:
            for row, answer in zip(rows, answers, strict=True):
                seen.answers[row] = [LabelScore(str(entry["label"]), entry["score"]) for entry in answer]
        best = [answer[0] if isinstance(answer, list) else answer for answer in answers]
        logits = np.stack([entry["logits"] for entry in classify.seen])
        scores = np.array([entry["score"] for entry in best], np.float32)
        top = np.array([self._index[str(entry["label"])] for entry in best])
        chosen = np.asarray(rows)
        seen.logits[chosen] = logits
        with self._noting:
            seen.batch_of[chosen] = len(seen.batches)
            seen.batches.append(Batch(len(rows), classify.padded_tokens, seconds))
        finite = np.isfinite(logits).all(axis=1) & np.isfinite(scores)
        seen.top[chosen[finite]] = top[finite]
        seen.scores[chosen[finite], top[finite]] = scores[finite]
        for row in chosen[~finite].tolist():
            seen.errors[row] = NON_FINITE  # the pipeline would have said label 0


def _note(classify: ObservedPipeline, seen: Observations, rows: Sequence[int]) -> None:
    """Copy what the tokenizer did. There is nothing for a text that made the tokenizer raise."""
    for row, entry in zip(rows, classify.seen, strict=False):
        seen.input_ids[row] = entry["input_ids"]
        seen.truncated[row] = entry["truncated"]
        seen.mask_counts[row] = len(entry["input_ids"]) if entry["mask_count"] < 0 else entry["mask_count"]
