"""A record counts for the memory it takes, and an error that is kept holds nothing else."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from twinlens.replica.decode import Decoder
from twinlens.settings import IntakeSettings, RawSettings
from twinlens.text import Text

COUNT = 10


def tokenize(texts: Sequence[Text]) -> None:
    """Gives each text as many tokens as it has words, none of which is an int that Python shares."""
    for text in texts:
        words = text.content.count(" ")
        text.inputs = {"input_ids": [10_000 + n for n in range(words)], "token_type_ids": [0] * words}


def record(value: bytes, key: bytes | None = None, headers: Any = ()) -> Any:
    return SimpleNamespace(topic="t", partition=0, offset=7, timestamp=0, key=key, value=value, headers=list(headers))


def with_text(text: str) -> bytes:
    return json.dumps({"id": "1", "text": text}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("make", "about"),
    [
        pytest.param(lambda: record(with_text("a tweet of eight words as it may be")), 1_500, id="a tweet"),
        pytest.param(lambda: record(with_text("x" * 90_000)), 91_000, id="long"),
        pytest.param(lambda: record(with_text("\N{GRINNING FACE}" * 20_000)), 81_000, id="wide characters"),
        pytest.param(lambda: record(with_text("w " * 500)), 24_000, id="tokens"),
        pytest.param(lambda: record(with_text("x" * 200_000)), 201_000, id="too long"),
        pytest.param(lambda: record(b'{"text": "\xff' + b"x" * 200_000), 201_000, id="not UTF-8"),
        pytest.param(lambda: record(b'{"text": "' + b"x" * 200_000), 201_000, id="not JSON"),
        pytest.param(lambda: record(b"{}", bytes(50_000), [("h", bytes(50_000))]), 101_000, id="key and headers"),
    ],
)
def test_a_record_counts_for_about_the_memory_it_takes(make: Callable[[], Any], about: int) -> None:
    decoder = Decoder(IntakeSettings(), tokenize)
    decoder([make()])
    tracemalloc.start()
    try:
        items = decoder([make() for _ in range(COUNT)])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = sum(item.size_bytes for item in items)
    assert counted / COUNT == pytest.approx(about, rel=0.1)
    assert 0.5 * counted < taken < 1.1 * counted


def test_a_tokenizers_error_holds_no_text() -> None:
    from twinlens.paths.tokenize import RawTokenizer

    def broken(texts: list[str], **_: Any) -> Any:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("cannot tokenize") from error

    model: Any = SimpleNamespace(new_tokenizer=lambda: broken, max_tokens=8)
    (item,) = Decoder(IntakeSettings(), RawTokenizer(model, RawSettings()).tokenize)([record(with_text("a"))])
    error = item.text.token_error
    assert isinstance(error, ValueError)
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
