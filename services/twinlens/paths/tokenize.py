"""Tokenizing for the raw path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinlens.errors import without_frames
from twinlens.paths.model import LoadedModel
from twinlens.paths.observations import bisect
from twinlens.settings import RawSettings
from twinlens.text import Text

#: Characters per call of the tokenizer. It keeps what it cuts off, with offsets and the texts of the tokens, until the
#: result of the call is gone: about 70 bytes per character, and the same again while the tokens are counted.
MAX_CHARS = 200_000


class RawTokenizer:
    """The raw path's own tokenizer object. Only the intake thread uses it, so that lengths are known early."""

    def __init__(self, model: LoadedModel, settings: RawSettings) -> None:
        self._tokenizer = model.new_tokenizer()
        self._arguments: dict[str, Any] = {"truncation": settings.truncation}
        if settings.truncation:
            self._arguments["max_length"] = min(settings.max_length or model.max_tokens, model.max_tokens)

    def tokenize(self, texts: Sequence[Text]) -> None:
        """Fill in `inputs` and `cut_tokens` of every text; `token_error` where the tokenizer raises."""

        def run(rows: Sequence[int]) -> None:
            chosen = [texts[row] for row in rows]
            encoded = self._tokenizer([text.content for text in chosen], verbose=False, **self._arguments)
            names = [name for name in encoded if name != "attention_mask"]
            for position, text in enumerate(chosen):
                text.inputs = {name: encoded[name][position] for name in names}
                text.cut_tokens = self._cut_tokens(encoded, position, text)

        def fail(row: int, error: Exception) -> None:
            texts[row].token_error = without_frames(error)

        for rows in _calls(texts):
            bisect(rows, run, fail)

    def _cut_tokens(self, encoded: Any, position: int, text: Text) -> int:
        limit = self._arguments.get("max_length")
        if limit is None or text.token_count < limit:
            return 0
        return cut_tokens(self._tokenizer, encoded, position, text.content)


def _calls(texts: Sequence[Text]) -> list[list[int]]:
    """Rows of `texts` for each call of the tokenizer: up to MAX_CHARS characters in a call, a longer text alone."""
    calls: list[list[int]] = []
    room = 0
    for row, text in enumerate(texts):
        if not calls or len(text.content) > room:
            calls.append([])
            room = MAX_CHARS
        calls[-1].append(row)
        room -= len(text.content)
    return calls


def cut_tokens(tokenizer: Any, encoded: Any, position: int, text: str) -> int:
    """How many tokens of `text` were cut off.

    Fast tokenizers keep what they cut off. It has special tokens of its own, so the number is an upper bound. Slow ones
    are asked again.
    """
    if encoded.encodings is not None:
        return sum(map(len, encoded.encodings[position].overflowing))
    whole = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    return len(whole) - len(encoded["input_ids"][position])
