"""Why each path has a tokenizer object of its own, and that with them the lengths are right under load."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from transformers import AutoTokenizer

from tests.conftest import ModelFolder
from tests.support.observed import texts_of
from twinlens.paths import tokenize
from twinlens.paths.model import LoadedModel, load_model
from twinlens.paths.predict import ObservedPipeline, PredictPath
from twinlens.paths.tokenize import RawTokenizer
from twinlens.settings import PredictSettings, RawSettings

LONG = "word " * 100
DEADLINE_S = 20.0


@pytest.fixture
def _eager_switches() -> Iterator[None]:
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_eager_switches")
def test_two_threads_on_one_fast_tokenizer_get_each_others_truncation(model_folder: ModelFolder) -> None:
    """The hazard itself, seen within milliseconds: truncation is state of the tokenizer, not of the call."""
    shared = AutoTokenizer.from_pretrained(model_folder("bert", "three"))
    wrong: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S

    def tokenize(limit: int) -> None:
        while not wrong and time.monotonic() < deadline:
            try:
                length = len(shared(LONG, truncation=True, max_length=limit)["input_ids"])
            except RuntimeError as error:  # "Already borrowed": the other face of the same hazard
                wrong.append(error)
            else:
                if length != limit:
                    wrong.append((limit, length))

    other = threading.Thread(target=tokenize, args=(32,), daemon=True)
    other.start()
    tokenize(8)
    other.join(DEADLINE_S)
    assert wrong, "a shared tokenizer kept both lengths: then each path could do without its own"


@pytest.mark.usefixtures("_eager_switches")
def test_the_paths_keep_their_lengths_side_by_side(model_folder: ModelFolder) -> None:
    """The intake thread tokenizes for the raw path at 8 while the compute thread runs the predict path at 32."""
    model = load_model(str(model_folder("bert", "three")), None, "float32", "cpu")
    tokenizer = RawTokenizer(model, RawSettings(max_length=8))
    path = PredictPath(model, PredictSettings(max_length=32))
    lengths: set[int] = set()
    errors: list[Exception | None] = []
    stop = threading.Event()

    def intake() -> None:
        while not stop.is_set():
            texts = texts_of([LONG, "short", LONG])
            tokenizer.tokenize(texts)
            lengths.update(text.token_count for text in texts if text.content == LONG)
            errors.extend(text.token_error for text in texts if text.token_error)

    thread = threading.Thread(target=intake, daemon=True)
    thread.start()
    try:
        for _ in range(150):
            seen = path.observe(texts_of([LONG, LONG]), [[0, 1]])
            assert [len(ids) for ids in seen.input_ids] == [32, 32]
            assert seen.truncated.all()
            assert not seen.failed.any()
    finally:
        stop.set()
        thread.join(DEADLINE_S)
    assert lengths == {8}
    assert errors == []


class Watched(LoadedModel):
    """Keeps the tokenizers it gives out, and the texts of each of their calls."""

    made: ClassVar[list[Any]]
    calls: ClassVar[list[list[str]]]

    def new_tokenizer(self) -> Any:
        tokenizer, calls = super().new_tokenizer(), self.calls
        stock = type(tokenizer)

        class WatchedTokenizer(stock):  # type: ignore[misc, valid-type]
            def __call__(self, text: Any, **arguments: Any) -> Any:
                calls.append([text] if isinstance(text, str) else list(text))
                return super().__call__(text, **arguments)

        tokenizer.__class__ = WatchedTokenizer
        self.made.append(tokenizer)
        return tokenizer


@pytest.fixture
def watched(model_folder: ModelFolder) -> Watched:
    Watched.made, Watched.calls = [], []
    return Watched(**vars(load_model(str(model_folder("bert", "three")), None, "float32", "cpu")))


def test_no_two_users_share_a_tokenizer(watched: Watched) -> None:
    RawTokenizer(watched, RawSettings())
    PredictPath(watched, PredictSettings(), lanes=2).reconfigure(PredictSettings(max_length=8))
    assert len(watched.made) == 5
    assert len({id(tokenizer) for tokenizer in watched.made}) == 5
    assert len({id(tokenizer.backend_tokenizer) for tokenizer in watched.made}) == 5


def test_long_texts_are_tokenized_in_several_calls(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tokenizer cuts off stays in memory until its call is over."""
    tokenizer = RawTokenizer(watched, RawSettings())
    contents = ["a", "", LONG, LONG, "b", "c " * 50, "d", ""]
    whole, parts = texts_of(contents), texts_of(contents)
    tokenizer.tokenize(whole)
    watched.calls.clear()
    monkeypatch.setattr(tokenize, "MAX_CHARS", 101)
    tokenizer.tokenize(parts)
    assert watched.calls == [["a", ""], [LONG], [LONG], ["b", "c " * 50], ["d", ""]]
    assert [(text.inputs, text.cut_tokens) for text in parts] == [(text.inputs, text.cut_tokens) for text in whole]
    assert whole[2].cut_tokens > 0


def test_the_pipeline_does_not_hold_what_was_cut_off(model_folder: ModelFolder) -> None:
    model = load_model(str(model_folder()), None, "float32", "cpu")
    observed = ObservedPipeline(model=model.model, tokenizer=model.new_tokenizer())
    encoded = observed.preprocess(LONG, truncation=True, max_length=8)
    assert encoded.encodings is None
    assert observed.seen[0]["truncated"]
    assert encoded["input_ids"].shape == (1, 8)
