"""A text that breaks a path is an error of its own row; its neighbours get what they would get without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ModelFolder
from tests.support.models import demo_tweets
from tests.support.observed import texts_of
from twinlens.errors import ReplaceReplica
from twinlens.paths.model import LoadedModel, load_model
from twinlens.paths.observations import Observations
from twinlens.paths.predict import PredictPath
from twinlens.paths.raw import RawPath
from twinlens.paths.tokenize import RawTokenizer
from twinlens.records import Cause, Verdict
from twinlens.settings import PredictSettings, RawSettings
from twinlens.text import Text
from twinlens.verdict.cause import cause_of
from twinlens.verdict.compare import compare

TOO_LONG = "far too long " * 200
MARKER = "zzzz"
NEIGHBOURS = [text for text in demo_tweets()[:40] if "z" not in text.lower() and len(text) < 80][:15]
BAD = 6  #: row of the text that breaks a path

Load = Callable[[], LoadedModel]
Observe = Callable[[LoadedModel, Sequence[str]], Observations]


@pytest.fixture
def load(model_folder: ModelFolder) -> Load:
    """A model of one's own, to be broken."""
    return lambda: load_model(str(model_folder("bert", "three")), None, "float32", "cpu")


def with_bad(text: str) -> list[str]:
    return [*NEIGHBOURS[:BAD], text, *NEIGHBOURS[BAD:]]


def tokenized(model: LoadedModel, contents: Sequence[str], settings: RawSettings | None = None) -> list[Text]:
    texts = texts_of(contents)
    RawTokenizer(model, settings or RawSettings()).tokenize(texts)
    return texts


def raw(model: LoadedModel, contents: Sequence[str], settings: RawSettings | None = None) -> Observations:
    texts = tokenized(model, contents, settings)
    return RawPath(model, settings or RawSettings()).observe(texts, [list(range(len(texts)))])


def predict(model: LoadedModel, texts: Sequence[str], settings: PredictSettings | None = None) -> Observations:
    path = PredictPath(model, settings or PredictSettings())
    return path.observe(texts_of(texts), [list(range(len(texts)))])


def check(seen: Observations, without: Observations, error: str) -> None:
    """Only row BAD is an error; the others are as in a run `without` it."""
    assert [row for row, failed in enumerate(seen.errors) if failed is not None] == [BAD]
    assert seen.errors[BAD].type == error  # type: ignore[union-attr]
    assert seen.label(BAD) is None
    others = [row for row in range(len(seen.errors)) if row != BAD]
    assert without.errors == [None] * len(others)
    assert [seen.label(row) for row in others] == [without.label(row) for row in range(len(others))]
    np.testing.assert_allclose(seen.logits[others], without.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(seen.top_scores()[others], without.top_scores(), rtol=0, atol=3e-6)
    assert [seen.input_ids[row] for row in others] == without.input_ids
    assert (seen.batch_of[others] >= 0).all()
    sizes = np.bincount(seen.batch_of[seen.batch_of >= 0], minlength=len(seen.batches))
    assert sizes.tolist() == [batch.size for batch in seen.batches]  # every pass is accounted for


class Picky(LoadedModel):
    """A model whose tokenizers raise on the marker."""

    def new_tokenizer(self) -> Any:
        tokenizer = super().new_tokenizer()
        stock = type(tokenizer)

        class PickyTokenizer(stock):  # type: ignore[misc, valid-type]
            def __call__(self, text: Any, **arguments: Any) -> Any:
                if any(MARKER in one for one in ([text] if isinstance(text, str) else text)):
                    raise ValueError(f"cannot tokenize\n{text}")
                return super().__call__(text, **arguments)

        tokenizer.__class__ = PickyTokenizer
        return tokenizer


def picky(model: LoadedModel) -> LoadedModel:
    return Picky(**vars(model))


def break_forward(model: LoadedModel, error: Exception) -> None:
    """Make the model raise on any batch that holds the marker's rarest token."""
    token = marker_token(model)
    forward = model.model.forward

    def picky(*args: Any, **inputs: Any) -> Any:
        if (inputs["input_ids"] == token).any():
            raise error
        return forward(*args, **inputs)

    model.model.forward = picky


def marker_token(model: LoadedModel) -> int:
    """A token of the marker that no neighbour has."""
    tokenizer = model.new_tokenizer()
    taken = {token for text in NEIGHBOURS for token in tokenizer(text)["input_ids"]}
    return int(min(set(tokenizer(MARKER)["input_ids"]) - taken))


class TestTooLong:
    """Without truncation the position embeddings run out."""

    def test_raw(self, load: Load) -> None:
        settings = RawSettings(truncation=False)
        seen = raw(load(), with_bad(TOO_LONG), settings)
        assert len(seen.input_ids[BAD]) > 64
        assert not seen.truncated.any()
        check(seen, raw(load(), NEIGHBOURS, settings), seen.errors[BAD].type)  # type: ignore[union-attr]

    def test_predict(self, load: Load) -> None:
        settings = PredictSettings(truncation=False)
        seen = predict(load(), with_bad(TOO_LONG), settings)
        assert len(seen.input_ids[BAD]) > 64  # noted, although the pass broke
        check(seen, predict(load(), NEIGHBOURS, settings), seen.errors[BAD].type)  # type: ignore[union-attr]

    def test_one_sided_because_of_the_missing_cut(self, load: Load) -> None:
        model, texts = load(), with_bad(TOO_LONG)
        first, second = raw(model, texts), predict(model, texts, PredictSettings(truncation=False))
        comparison = compare(first, second, 1e-4)
        assert comparison.diverging == [BAD]
        assert comparison.verdicts[BAD] is Verdict.ONE_SIDED
        assert cause_of(BAD, comparison, first, second) is Cause.TRUNCATION

    def test_the_error_does_not_quote_the_text(self, load: Load) -> None:
        seen = predict(load(), with_bad(TOO_LONG), PredictSettings(truncation=False))
        assert "far" not in seen.errors[BAD].message  # type: ignore[union-attr]


class TestTokenizerRaises:
    def test_raw(self, load: Load) -> None:
        model = load()
        texts = tokenized(picky(model), with_bad(MARKER))
        assert isinstance(texts[BAD].token_error, ValueError)
        assert [text.token_error for row, text in enumerate(texts) if row != BAD] == [None] * len(NEIGHBOURS)
        seen = RawPath(model, RawSettings()).observe(texts, [list(range(len(texts)))])
        check(seen, raw(load(), NEIGHBOURS), "ValueError")
        assert seen.errors[BAD].message == "cannot tokenize"  # type: ignore[union-attr]
        assert seen.input_ids[BAD] == []

    def test_predict(self, load: Load) -> None:
        seen = predict(picky(load()), with_bad(MARKER))
        check(seen, predict(load(), NEIGHBOURS), "ValueError")
        assert seen.input_ids[BAD] == []

    def test_of_every_text(self, load: Load) -> None:
        model = load()
        texts = tokenized(picky(model), [MARKER] * 5)
        seen = RawPath(model, RawSettings()).observe(texts, [[0, 1], [2, 3, 4]])
        assert seen.failed.all()
        assert seen.batches == []


class TestModelRaises:
    @pytest.mark.parametrize("observe", [raw, predict])
    def test_on_one_text(self, load: Load, observe: Observe) -> None:
        model = load()
        break_forward(model, RuntimeError("expected scalar type"))
        seen = observe(model, with_bad(MARKER))
        check(seen, observe(load(), NEIGHBOURS), "RuntimeError")
        assert len(seen.input_ids[BAD]) > 2  # what went in is known

    @pytest.mark.parametrize("observe", [raw, predict])
    def test_a_broken_device_replaces_the_replica(self, load: Load, observe: Observe) -> None:
        model = load()
        break_forward(model, RuntimeError("CUDA error: device-side assert triggered"))
        with pytest.raises(ReplaceReplica, match="the device failed"):
            observe(model, with_bad(MARKER))

    @pytest.mark.parametrize("observe", [raw, predict])
    def test_a_lack_of_memory_costs_nobody_a_result(self, load: Load, observe: Observe) -> None:
        model = load()
        forward = model.model.forward

        def small(*args: Any, **inputs: Any) -> Any:
            if len(inputs["input_ids"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(*args, **inputs)

        model.model.forward = small
        seen = observe(model, NEIGHBOURS)
        assert seen.errors == [None] * len(NEIGHBOURS)
        assert max(batch.size for batch in seen.batches) <= 4


class TestNonFinite:
    @pytest.mark.parametrize("observe", [raw, predict])
    def test_of_one_text(self, load: Load, observe: Observe) -> None:
        model = load()
        with torch.no_grad():
            model.model.get_input_embeddings().weight[marker_token(model)] = float("nan")
        seen = observe(model, with_bad(MARKER))
        check(seen, observe(load(), NEIGHBOURS), "NonFiniteLogits")
        assert seen.top[BAD] == -1

    @pytest.mark.parametrize("observe", [raw, predict])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # the stock softmax, of infinity
    def test_of_every_text_is_an_error_and_never_label_0(self, load: Load, observe: Observe, value: float) -> None:
        model = load()
        with torch.no_grad():
            model.model.classifier.bias[0] = value
        seen = observe(model, NEIGHBOURS)
        assert {error.type for error in seen.errors if error} == {"NonFiniteLogits"}
        assert seen.failed.all()
        assert [seen.label(row) for row in range(len(NEIGHBOURS))] == [None] * len(NEIGHBOURS)
        assert np.isnan(seen.top_scores()).all()

    def test_of_both_paths_is_no_divergence(self, load: Load) -> None:
        model = load()
        with torch.no_grad():
            model.model.classifier.bias[1] = float("nan")
        comparison = compare(raw(model, NEIGHBOURS), predict(model, NEIGHBOURS), 0.005)
        assert set(comparison.verdicts) == {Verdict.BOTH_FAILED}


def test_two_bad_texts_in_two_batches(load: Load) -> None:
    model = load()
    break_forward(model, RuntimeError("no"))
    texts = tokenized(model, [MARKER, *NEIGHBOURS[:6], MARKER])
    batches = [[0, 1, 2, 3], [4, 5, 6, 7]]
    for seen in (
        RawPath(model, RawSettings()).observe(texts, batches),
        PredictPath(model, PredictSettings()).observe(texts, batches),
    ):
        assert [row for row, error in enumerate(seen.errors) if error] == [0, 7]
        assert seen.input_ids == [text.inputs["input_ids"] for text in texts]


def test_the_pipeline_forgets_a_broken_call(load: Load) -> None:
    """What a broken call noted must not reach the rows of the next one."""
    model = load()
    break_forward(model, RuntimeError("no"))
    path = PredictPath(model, PredictSettings())
    first = path.observe(texts_of([MARKER]), [[0]])
    again = path.observe(texts_of(NEIGHBOURS), [list(range(len(NEIGHBOURS)))])
    assert first.failed.all()
    fresh = predict(load(), NEIGHBOURS)
    assert again.input_ids == fresh.input_ids
    np.testing.assert_array_equal(again.logits, fresh.logits)


def test_an_error_without_words_is_still_one(load: Load) -> None:
    model = load()
    model.model.forward = lambda **_: SimpleNamespace()  # no logits: AttributeError
    seen = raw(model, NEIGHBOURS[:2])
    assert [error.type for error in seen.errors if error] == ["AttributeError"] * 2
