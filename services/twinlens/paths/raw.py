"""The raw path: `model(**tokenizer(text))`, in batches. It yields logits. `tokenize.py` has its tokenizer."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from twinlens.paths.model import LoadedModel
from twinlens.paths.observations import (
    Batch,
    Floats,
    Observations,
    bisect,
    error_of,
)
from twinlens.paths.path import Path
from twinlens.settings import RawSettings
from twinlens.text import Text


class ForwardPass(NamedTuple):
    """What one forward pass gave."""

    logits: Floats  #: [n, labels]
    cls: Floats | None  #: [n, hidden], where `publish_cls` is on
    padded_tokens: int  #: length every text was padded to
    seconds: float


class RawPath(Path):
    """Runs the model on tokenized texts. Its lanes share everything."""

    def __init__(self, model: LoadedModel, settings: RawSettings) -> None:
        self._model = model.model
        self.max_tokens = model.max_tokens
        self._device = model.device
        self._publish_cls = settings.publish_cls
        self._noting = threading.Lock()  # around the number of a batch
        tokenizer = model.new_tokenizer()
        self.can_batch = tokenizer.pad_token_id is not None
        self._left = tokenizer.padding_side == "left"
        self._pad_ids = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        self.facts = model.facts(settings.function_to_apply)

    def begin(self, texts: Sequence[Text]) -> Observations:
        seen = Observations.empty(self.facts, len(texts))
        seen.input_ids = [text.inputs.get("input_ids", []) for text in texts]
        seen.mask_counts[:] = [len(ids) for ids in seen.input_ids]
        seen.truncated[:] = [text.truncated for text in texts]
        seen.errors = [None if text.token_error is None else error_of(text.token_error) for text in texts]
        return seen

    def run(self, seen: Observations, texts: Sequence[Text], batch: Sequence[int], lane: int = 0) -> None:
        def run(rows: Sequence[int]) -> None:
            self._run(seen, texts, rows)

        def fail(row: int, error: Exception) -> None:
            seen.errors[row] = error_of(error)

        rows = [row for row in batch if seen.errors[row] is None]
        if rows:
            bisect(rows, run, fail)

    def forward(self, texts: Sequence[Text], extra_padding: int = 0) -> ForwardPass:
        """One pass over `texts`, padded to the longest of them and `extra_padding` tokens more."""
        start = time.perf_counter()
        inputs = self._collate(texts, extra_padding)
        with torch.inference_mode():
            output = self._model(**inputs, output_hidden_states=self._publish_cls)
            logits = output.logits.float().cpu().numpy()
            cls = _first(output.hidden_states[-1], inputs["attention_mask"]) if self._publish_cls else None
        return ForwardPass(logits, cls, inputs["input_ids"].shape[1], time.perf_counter() - start)

    def _run(self, seen: Observations, texts: Sequence[Text], rows: Sequence[int]) -> None:
        done = self.forward([texts[row] for row in rows])
        chosen = np.asarray(rows)
        seen.logits[chosen] = done.logits
        seen.score(chosen)
        with self._noting:
            seen.batch_of[chosen] = len(seen.batches)
            seen.batches.append(Batch(len(rows), done.padded_tokens, done.seconds))
            if done.cls is not None:
                if seen.cls is None:
                    seen.cls = np.zeros((len(seen.errors), done.cls.shape[1]), np.float32)
                seen.cls[chosen] = done.cls

    def _collate(self, texts: Sequence[Text], extra_padding: int) -> dict[str, torch.Tensor]:
        """Pad to the longest text, on the tokenizer's side, with an attention mask."""
        lengths = [len(text.inputs["input_ids"]) for text in texts]
        width = max(lengths) + extra_padding
        arrays = {"attention_mask": np.zeros((len(texts), width), np.int64)}
        for name in texts[0].inputs:
            arrays[name] = np.full((len(texts), width), self._pad_ids.get(name, 0), np.int64)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            place = slice(width - length, width) if self._left else slice(0, length)
            arrays["attention_mask"][row, place] = 1
            for name, values in text.inputs.items():
                arrays[name][row, place] = values
        return {name: self._on_device(torch.from_numpy(array)) for name, array in arrays.items()}

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A GPU copies from pinned memory by itself, while this thread goes on and launches the pass."""
        if self._device.startswith("cuda"):
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> Floats:
    """[n, hidden] the state of each text's first token. With padding on the left, that is not position 0."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return np.asarray(hidden[rows, mask.argmax(dim=1)].float().cpu().numpy())
