"""Both paths against plain transformers, for every family and head: raw is `model(**tokenizer(text))`, one text at a
time; predict is the stock `pipeline("text-classification")` with the same arguments."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    pipeline,
)

from tests.conftest import ModelFolder
from tests.support.models import FAMILIES, HEADS, ODD_TEXTS, POSITIONS, VOCABULARY, build_tokenizer, demo_tweets
from tests.support.observed import texts_of
from twinlens.paths.model import UNLIMITED, LoadedModel, load_model
from twinlens.paths.observations import Observations
from twinlens.paths.predict import PredictPath
from twinlens.paths.raw import RawPath
from twinlens.paths.tokenize import RawTokenizer
from twinlens.replica.batching import Limits, split
from twinlens.replica.cost import CostModel
from twinlens.settings import PredictSettings, RawSettings
from twinlens.text import Text
from twinlens.verdict.compare import compare

TEXTS = (*demo_tweets()[::36], *ODD_TEXTS)  # 60 tweets of all lengths, and odd ones
LIMITS = {"roberta": POSITIONS - 2, "xlm-roberta": POSITIONS - 2}  # their positions start after the padding index

Batches = list[list[int]]


def one_by_one(lengths: Sequence[object]) -> Batches:
    return [[row] for row in range(len(lengths))]


def all_at_once(lengths: Sequence[object]) -> Batches:
    return [list(range(len(lengths)))]


def at_random(lengths: Sequence[object]) -> Batches:
    rows = list(range(len(lengths)))
    random.Random(3).shuffle(rows)
    return [rows[start : start + 7] for start in range(0, len(rows), 7)]


def by_cost(lengths: Sequence[int]) -> Batches:
    return split(lengths, CostModel(), Limits(16, 512))


SHAPES = (one_by_one, all_at_once, at_random, by_cost)


@dataclass(frozen=True)
class Plain:
    """What transformers says of one text, alone."""

    ids: list[int]
    logits: list[float]
    cls: list[float]
    truncated: bool
    answer: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model as twinlens loads it, and what plain transformers says of `TEXTS`."""

    model: LoadedModel
    folder: Path
    limit: int
    texts: list[Text]
    plain: list[Plain]

    @property
    def lengths(self) -> list[int]:
        return [text.token_count for text in self.texts]


Cases = Callable[[str, str], Case]


@pytest.fixture(scope="session")
def case(model_folder: ModelFolder) -> Cases:
    """`case(family, head)`, computed on first use."""

    @functools.cache
    def made(family: str, head: str) -> Case:
        folder = model_folder(family, head)
        model = load_model(str(folder), None, "float32", "cpu")
        limit = LIMITS.get(family, POSITIONS)
        texts = texts_of(TEXTS)
        RawTokenizer(model, RawSettings()).tokenize(texts)
        return Case(model, folder, limit, texts, plainly(folder, limit))

    return made


def plainly(folder: Path, limit: int) -> list[Plain]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    classify = stock(folder, limit)
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0].tolist()
            cls = model.base_model(**inputs).last_hidden_state[0, 0].tolist()
        whole = tokenizer(text, verbose=False)["input_ids"]
        ids = inputs["input_ids"][0].tolist()
        found.append(Plain(ids, logits, cls, len(whole) > limit, classify(text)[0]))
    return found


def stock(folder: Path, limit: int, **arguments: Any) -> Any:
    """The pipeline as its users write it."""
    return pipeline(
        "text-classification",
        model=str(folder),
        tokenizer=str(folder),
        device="cpu",
        truncation=True,
        max_length=limit,
        **arguments,
    )


def answers(seen: Observations) -> list[list[dict[str, Any]]]:
    if seen.facts.top_k is None:
        return [[{"label": seen.label(row), "score": score}] for row, score in enumerate(seen.top_scores().tolist())]
    return [[{"label": entry.label, "score": entry.score} for entry in answer] for answer in seen.answers]


#: Every family, and every head of one family; the other pairs are among the slow ones.
every_model = pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(family, head, marks=[] if head == "three" or family == "bert" else [pytest.mark.slow])
        for family in FAMILIES
        for head in HEADS
    ],
)


@every_model
def test_the_raw_path_is_the_plain_call_whatever_the_batches(case: Cases, family: str, head: str) -> None:
    this = case(family, head)
    assert this.model.max_tokens == this.limit
    assert [text.inputs["input_ids"] for text in this.texts] == [plain.ids for plain in this.plain]
    assert [text.truncated for text in this.texts] == [plain.truncated for plain in this.plain]
    assert {plain.truncated for plain in this.plain} == {True, False}
    path = RawPath(this.model, RawSettings(publish_cls=True))
    for shape in SHAPES:
        seen = path.observe(this.texts, shape(this.lengths))
        assert seen.errors == [None] * len(TEXTS)
        np.testing.assert_allclose(seen.logits, [plain.logits for plain in this.plain], rtol=0, atol=1e-5)
        assert seen.cls is not None
        np.testing.assert_allclose(seen.cls, [plain.cls for plain in this.plain], rtol=0, atol=1e-5)
        assert seen.input_ids == [plain.ids for plain in this.plain]
        assert seen.truncated.tolist() == [plain.truncated for plain in this.plain]


@every_model
def test_the_predict_path_is_the_stock_pipeline_whatever_the_batches(case: Cases, family: str, head: str) -> None:
    this = case(family, head)
    path = PredictPath(this.model, PredictSettings())
    for shape in SHAPES:
        seen = path.observe(this.texts, shape(this.lengths))
        assert seen.errors == [None] * len(TEXTS)
        assert [seen.label(row) for row in range(len(TEXTS))] == [plain.answer["label"] for plain in this.plain]
        # Regression scores are logits; probabilities differ by a fraction of what the logits differ by.
        atol = 1e-5 if head == "regression" else 3e-6
        np.testing.assert_allclose(seen.top_scores(), [p.answer["score"] for p in this.plain], rtol=0, atol=atol)
        assert seen.input_ids == [plain.ids for plain in this.plain]
        assert seen.mask_counts.tolist() == [len(plain.ids) for plain in this.plain]
        assert seen.truncated.tolist() == [plain.truncated for plain in this.plain]
    alone = path.observe(this.texts, one_by_one(this.lengths))
    assert [answer for [answer] in answers(alone)] == [plain.answer for plain in this.plain]  # to the last bit


@every_model
def test_in_the_same_batches_it_is_the_stock_pipeline_to_the_last_bit(case: Cases, family: str, head: str) -> None:
    this = case(family, head)
    seen = PredictPath(this.model, PredictSettings(top_k=10)).observe(this.texts, at_random(this.lengths))
    classify = stock(this.folder, this.limit, top_k=10)
    said = answers(seen)
    for batch in at_random(this.lengths):
        assert [said[row] for row in batch] == classify([TEXTS[row] for row in batch], batch_size=len(batch))
    assert all(len(answer) == len(this.model.labels) for answer in said)


@every_model
def test_both_paths_agree_on_every_text(case: Cases, family: str, head: str) -> None:
    """In the same batches there is nothing to see; in others only last bits."""
    this = case(family, head)
    raw, predict = RawPath(this.model, RawSettings()), PredictPath(this.model, PredictSettings())
    seen = raw.observe(this.texts, by_cost(this.lengths))
    for shape in (by_cost, at_random):
        other = predict.observe(this.texts, shape(this.lengths))
        comparison = compare(seen, other, score_tolerance=1e-5)
        assert comparison.diverging == []
        assert float(comparison.logits_delta.max()) < 1e-5
        assert seen.input_ids == other.input_ids
        assert seen.facts == other.facts
    assert len(set(seen.top.tolist())) == len(this.model.labels)  # the tweets show every label


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("function", ["default", "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_pipeline_arguments(case: Cases, head: str, function: Any, top_k: int | None) -> None:
    this = case("distilbert", head)
    arguments: dict[str, Any] = {} if function == "default" else {"function_to_apply": function}
    if top_k is not None:
        arguments["top_k"] = top_k
    rows = list(range(0, len(TEXTS), 5))
    texts = [this.texts[row] for row in rows]
    expected = stock(this.folder, this.limit, **arguments)([TEXTS[row] for row in rows], batch_size=len(rows))
    settings = PredictSettings(function_to_apply=function, top_k=top_k)
    seen = PredictPath(this.model, settings).observe(texts, [list(range(len(texts)))])
    assert answers(seen) == [[answer] if top_k is None else answer for answer in expected]
    raw = RawPath(this.model, RawSettings(function_to_apply=function)).observe(texts, [list(range(len(texts)))])
    assert raw.facts.function == seen.facts.function
    assert raw.top.tolist() == seen.top.tolist()
    np.testing.assert_allclose(raw.top_scores(), seen.top_scores(), rtol=0, atol=2e-6)


def test_other_arguments_from_the_next_window_on(case: Cases) -> None:
    this = case("bert", "three")
    path = PredictPath(this.model, PredictSettings())
    before = path.observe(this.texts, one_by_one(this.lengths))
    path.reconfigure(PredictSettings(max_length=8, top_k=3))
    after = path.observe(this.texts, one_by_one(this.lengths))
    expected = stock(this.folder, 8, top_k=3)(list(TEXTS), batch_size=1)
    assert answers(after) == expected
    assert max(map(len, before.input_ids)) == this.limit
    assert max(map(len, after.input_ids)) == path.max_tokens == 8


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("wish", "limit"), [(3, 3), (16, 16), (1_000, None)])
def test_max_length(case: Cases, family: str, wish: int, limit: int | None) -> None:
    """A limit that the positions do not allow is not granted."""
    this = case(family, "three")
    texts, limit = texts_of(TEXTS), limit or this.limit
    RawTokenizer(this.model, RawSettings(max_length=wish)).tokenize(texts)
    predict = PredictPath(this.model, PredictSettings(max_length=wish))
    seen = predict.observe(texts, one_by_one(TEXTS))
    tokenizer = AutoTokenizer.from_pretrained(this.folder)
    whole = [len(tokenizer(text, verbose=False)["input_ids"]) for text in TEXTS]
    for lengths, truncated in (
        ([text.token_count for text in texts], [text.truncated for text in texts]),
        ([len(ids) for ids in seen.input_ids], seen.truncated.tolist()),
    ):
        assert lengths == [min(length, limit) for length in whole]
        assert truncated == [length > limit for length in whole]


def test_half_precision_is_the_stock_pipeline_too(case: Cases) -> None:
    this = case("bert", "three")
    model = load_model(str(this.folder), None, "bfloat16", "cpu")
    seen = PredictPath(model, PredictSettings()).observe(this.texts, one_by_one(this.lengths))
    classify = stock(this.folder, this.limit, dtype=torch.bfloat16)
    assert [answer for [answer] in answers(seen)] == [classify(text)[0] for text in TEXTS]
    assert seen.facts.dtype == "bfloat16"


def test_labels_that_are_numbers(case: Cases, model_folder: ModelFolder, tmp_path: Path) -> None:
    from tests.support.models import build_model

    folder = build_model(tmp_path, "bert", "three", id2label={0: 0, 1: 1, 2: 2}, label2id={0: 0, 1: 1, 2: 2})
    model = load_model(str(folder), None, "float32", "cpu")
    seen = PredictPath(model, PredictSettings()).observe(texts_of(TEXTS), one_by_one(TEXTS))
    assert seen.errors == [None] * len(TEXTS)
    assert {seen.label(row) for row in range(len(TEXTS))} == {"0", "1", "2"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token", ["<pad>", None])
def test_a_decoder(tmp_path: Path, side: str, pad_token: str | None) -> None:
    """It pads on the left, or cannot pad at all: then texts go one by one, as the stock pipeline demands."""
    build_tokenizer(tmp_path, "roberta", padding_side=side, pad_token=pad_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2ForSequenceClassification(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=POSITIONS,
                num_labels=3,
                pad_token_id=1 if pad_token else None,
                bos_token_id=0,
                eos_token_id=2,
                initializer_range=0.3,
            )
        ).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), None, "float32", "cpu")
    texts = texts_of(TEXTS)
    RawTokenizer(model, RawSettings()).tokenize(texts)
    raw, predict = RawPath(model, RawSettings()), PredictPath(model, PredictSettings())
    assert raw.can_batch is predict.can_batch is (pad_token is not None)
    batches = at_random(TEXTS) if pad_token else one_by_one(TEXTS)
    seen, other = raw.observe(texts, batches), predict.observe(texts, batches)
    assert seen.errors == other.errors == [None] * len(TEXTS)
    np.testing.assert_allclose(seen.logits, other.logits, rtol=0, atol=1e-5)
    said, classify = answers(other), stock(tmp_path, POSITIONS)
    for batch in batches:
        expected = classify([TEXTS[row] for row in batch], batch_size=len(batch))
        assert [answer for row in batch for answer in said[row]] == expected


def test_cls_is_the_first_token_also_behind_padding_on_the_left(case: Cases, tmp_path: Path) -> None:
    """DeBERTa's positions are relative, so padding on the left moves no logits either."""
    this = case("deberta-v2", "three")
    shutil.copytree(this.folder, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(this.folder)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    path = RawPath(load_model(str(tmp_path), None, "float32", "cpu"), RawSettings(publish_cls=True))
    seen = path.observe(this.texts, all_at_once(TEXTS))
    assert seen.cls is not None
    np.testing.assert_allclose(seen.cls, [plain.cls for plain in this.plain], rtol=0, atol=1e-5)


def test_a_model_without_any_limit(tmp_path: Path) -> None:
    build_tokenizer(tmp_path, "roberta", padding_side="left", model_max_length=None)
    BloomForSequenceClassification(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2, num_labels=3, pad_token_id=1)
    ).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), None, "float32", "cpu")
    assert model.max_tokens == UNLIMITED
    texts = texts_of(["short", "long " * 300])
    RawTokenizer(model, RawSettings()).tokenize(texts)
    seen = RawPath(model, RawSettings()).observe(texts, [[0], [1]])
    other = PredictPath(model, PredictSettings()).observe(texts, [[0], [1]])
    assert seen.errors == other.errors == [None, None]
    assert len(seen.input_ids[1]) > 300
    assert seen.input_ids == other.input_ids
    assert not seen.truncated.any()
    assert not other.truncated.any()
