"""The raw path: `model(**tokenizer(text))`, in batches. It yields logits."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from twinlens.errors import without_frames
from twinlens.inference.model import LoadedModel
from twinlens.inference.observations import (
    Batch,
    Floats,
    Observations,
    PathFacts,
    apply_function,
    bisect,
    error_of,
    resolve_function,
)
from twinlens.records import PathError
from twinlens.settings import RawSettings
from twinlens.window import Item

NON_FINITE = PathError(type="NonFiniteLogits", message="the model gave NaN or infinity")
#: Characters per call of the tokenizer. It keeps all that it cuts off until the call's result is gone, with offsets
#: and the tokens' texts: some 70 bytes per character, and the like again while the tokens are counted.
MAX_CHARS = 200_000


class RawTokenizer:
    """The raw path's own tokenizer object. Used by the intake thread only, so that lengths are known early."""

    def __init__(self, model: LoadedModel, settings: RawSettings) -> None:
        self._tokenizer = model.new_tokenizer()
        self._arguments: dict[str, Any] = {"truncation": settings.truncation}
        if settings.truncation:
            self._arguments["max_length"] = min(settings.max_length or model.max_tokens, model.max_tokens)

    def tokenize(self, items: Sequence[Item]) -> None:
        """Fill `inputs` and `cut_tokens` of every item; where the tokenizer raises, `token_error`."""

        def run(rows: Sequence[int]) -> None:
            chosen = [items[row] for row in rows]
            encoded = self._tokenizer([item.text for item in chosen], verbose=False, **self._arguments)
            names = [name for name in encoded if name != "attention_mask"]
            for position, item in enumerate(chosen):
                item.inputs = {name: encoded[name][position] for name in names}
                item.cut_tokens = self._cut_tokens(encoded, position, item)

        def fail(row: int, error: Exception) -> None:
            items[row].token_error = without_frames(error)

        for rows in _calls(items):
            bisect(rows, run, fail)

    def _cut_tokens(self, encoded: Any, position: int, item: Item) -> int:
        limit = self._arguments.get("max_length")
        if limit is None or item.token_count < limit:
            return 0
        return cut_tokens(self._tokenizer, encoded, position, item.text)


def _calls(items: Sequence[Item]) -> list[list[int]]:
    """Rows of `items` for each call of the tokenizer: runs of up to MAX_CHARS characters, a longer text alone."""
    calls: list[list[int]] = []
    room = 0
    for row, item in enumerate(items):
        if not calls or len(item.text) > room:
            calls.append([])
            room = MAX_CHARS
        calls[-1].append(row)
        room -= len(item.text)
    return calls


def cut_tokens(tokenizer: Any, encoded: Any, position: int, text: str) -> int:
    """How many tokens of `text` were cut off. Fast tokenizers keep what they cut (with special tokens of its own, so
    the number is an upper bound); slow ones are asked again."""
    if encoded.encodings is not None:
        return sum(map(len, encoded.encodings[position].overflowing))
    whole = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    return len(whole) - len(encoded["input_ids"][position])


class RawPath:
    """Runs the model on tokenized items. `run` may be called by several threads at a time."""

    def __init__(self, model: LoadedModel, settings: RawSettings) -> None:
        self._model = model.model
        self.max_tokens = model.max_tokens
        self._device = model.device
        self._publish_cls = settings.publish_cls
        self._noting = threading.Lock()  # of which batch is which
        tokenizer = model.new_tokenizer()
        self.can_batch = tokenizer.pad_token_id is not None
        self._left = tokenizer.padding_side == "left"
        self._pad_ids = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        self.facts = PathFacts(
            model=model.id,
            labels=model.labels,
            function=resolve_function(model.model.config, settings.function_to_apply),
            dtype=model.dtype,
            device=model.device,
            training=model.model.training,
        )

    def observe(self, items: Sequence[Item], batches: Sequence[Sequence[int]]) -> Observations:
        """One row per item, computed in the given batches (lists of indices into `items`)."""
        seen = self.begin(items)
        for batch in batches:
            self.run(seen, items, batch)
        score(seen)
        return seen

    def begin(self, items: Sequence[Item]) -> Observations:
        """One row per item, with what its tokens tell; `run` and `score` fill in the rest."""
        seen = Observations.empty(self.facts, len(items))
        seen.input_ids = [item.inputs.get("input_ids", []) for item in items]
        seen.mask_counts[:] = [len(ids) for ids in seen.input_ids]
        seen.truncated[:] = [item.truncated for item in items]
        seen.errors = [None if item.token_error is None else error_of(item.token_error) for item in items]
        return seen

    def run(self, seen: Observations, items: Sequence[Item], batch: Sequence[int], _lane: int = 0) -> None:
        """Fill the batch's rows of `seen`: logits, or an error. The lane makes no difference."""

        def run(rows: Sequence[int]) -> None:
            self._run(seen, items, rows)

        def fail(row: int, error: Exception) -> None:
            seen.errors[row] = error_of(error)

        rows = [row for row in batch if seen.errors[row] is None]
        if rows:
            bisect(rows, run, fail)

    def forward(self, items: Sequence[Item], extra_padding: int = 0) -> tuple[Any, int, float]:
        """Model output of one pass over `items`, its padded length in tokens, and its seconds."""
        start = time.perf_counter()
        inputs = self._collate(items, extra_padding)
        with torch.inference_mode():
            output = self._model(**inputs, output_hidden_states=self._publish_cls)
            logits = output.logits.float().cpu().numpy()
            cls = _first(output.hidden_states[-1], inputs["attention_mask"]) if self._publish_cls else None
        return (logits, cls), inputs["input_ids"].shape[1], time.perf_counter() - start

    def _run(self, seen: Observations, items: Sequence[Item], rows: Sequence[int]) -> None:
        (logits, cls), padded, seconds = self.forward([items[row] for row in rows])
        chosen = np.asarray(rows)
        seen.logits[chosen] = logits
        with self._noting:
            seen.batch_of[chosen] = len(seen.batches)
            seen.batches.append(Batch(len(rows), padded, seconds))
            if cls is not None:
                if seen.cls is None:
                    seen.cls = np.zeros((len(seen.errors), cls.shape[1]), np.float32)
                seen.cls[chosen] = cls

    def _collate(self, items: Sequence[Item], extra_padding: int) -> dict[str, torch.Tensor]:
        """Pad to the longest item, on the tokenizer's side, with an attention mask."""
        lengths = [len(item.inputs["input_ids"]) for item in items]
        width = max(lengths) + extra_padding
        arrays = {"attention_mask": np.zeros((len(items), width), np.int64)}
        for name in items[0].inputs:
            arrays[name] = np.full((len(items), width), self._pad_ids.get(name, 0), np.int64)
        for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
            place = slice(width - length, width) if self._left else slice(0, length)
            arrays["attention_mask"][row, place] = 1
            for name, values in item.inputs.items():
                arrays[name][row, place] = values
        return {name: self._on_device(torch.from_numpy(array)) for name, array in arrays.items()}

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """From pinned memory a GPU fetches by itself, while this thread goes on to launch the pass."""
        if self._device.startswith("cuda"):
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> Floats:
    """[n, hidden] the state of each text's first token, which left padding moves away from position 0."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return np.asarray(hidden[rows, mask.argmax(dim=1)].float().cpu().numpy())


def score(seen: Observations) -> None:
    """Scores and labels of every row that has finite logits; the others are errors, never label 0."""
    for row in np.flatnonzero(~np.isfinite(seen.logits).all(axis=1)):
        seen.errors[int(row)] = seen.errors[int(row)] or NON_FINITE
    rows = np.flatnonzero(~seen.failed)
    if rows.size:
        seen.scores[rows] = apply_function(seen.facts.function, seen.logits[rows])
        seen.top[rows] = seen.scores[rows].argmax(axis=1)
