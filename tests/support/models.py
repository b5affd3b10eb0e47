"""Tiny classifiers with random weights, built on the fly: real architectures and real tokenizers, no download.

The tokenizers are trained on the demonstration tweets. The weights are drawn with a wide spread, so that logits differ
from text to text, and the position embeddings are few, so that truncation happens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import twinlens

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "electra", "xlm-roberta")
HEADS = ("three", "two", "multi", "one", "regression")
POSITIONS = 64  #: rows of the position embeddings
VOCABULARY = 600
DEVIATION = 0.3  #: of each logit over the tweets; the last bits of larger ones would not stay below 1e-5

_LABELS = {
    "three": ["negative", "neutral", "positive"],
    "two": ["no", "yes"],
    "multi": ["joy", "anger", "fear", "trust"],
    "one": ["toxic"],
    "regression": ["rating"],
}
_PROBLEM_TYPES = {"multi": "multi_label_classification", "regression": "regression"}

ODD_TEXTS = (
    "",
    "   \t\n ",
    "[SEP]",
    "<s> a literal </s> and [CLS] [MASK]",
    "\N{FACE WITH TEARS OF JOY}" * 7 + " \N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "a",
    "never ending " * 400,
    "x" * 3_000,
    "null \x00 and bell \x07",
    "مرحبا 你好 שלום",
)


@functools.cache
def demo_tweets() -> tuple[str, ...]:
    """The texts of the demonstration tweets."""
    file = Path(twinlens.__file__).parent / "data" / "demo-tweets" / "tweets.jsonl"
    return tuple(json.loads(line)["text"] for line in file.read_text().splitlines())


def build_model(folder: Path, family: str, head: str = "three", seed: int = 0, **config: Any) -> Path:
    """Save a model of `family` with `head` and its tokenizer in `folder`; returns `folder`.

    `config` overrides entries of the model's config. The same arguments give the same bytes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    build_tokenizer(folder, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family, **{**_config(family, head), **config})
        ).eval()
    _spread(model, folder)
    model.save_pretrained(folder)
    return folder


def build_tokenizer(folder: Path, family: str, **settings: Any) -> None:
    """Save the tokenizer of `family` in `folder`, as `AutoTokenizer` loads it. `settings` override; None leaves out."""
    from transformers import PreTrainedTokenizerFast

    sentence = _sentence_style(family)
    names = ("<s>", "</s>", "<pad>", "<unk>", "<mask>") if sentence else ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
    inputs = ["input_ids", "attention_mask"]
    if family in ("bert", "electra", "deberta-v2"):
        inputs.insert(1, "token_type_ids")
    merged = {
        "model_input_names": inputs,
        "model_max_length": 512,  # more than the model can take, as in many a published model
        **dict(zip(("cls_token", "sep_token", "pad_token", "unk_token", "mask_token"), names, strict=True)),
        **settings,
    }
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(family)),
        **{name: value for name, value in merged.items() if value is not None},
    ).save_pretrained(folder)


def _spread(model: Any, folder: Path) -> None:
    """Scale and shift the last layer so that every logit has mean 0 and the same deviation over some tweets."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(
        list(demo_tweets()[:64]), truncation=True, max_length=POSITIONS - 2, padding=True, return_tensors="pt"
    )
    last = next(m for m in model.modules() if getattr(m, "out_features", None) == model.config.num_labels)
    with torch.inference_mode():
        logits = model(**texts).logits.double()
        scale = (DEVIATION / logits.std(dim=0)).to(last.weight.dtype)
        last.weight *= scale[:, None]
        last.bias.copy_(scale * (last.bias - logits.mean(dim=0).to(last.weight.dtype)))


def _sentence_style(family: str) -> bool:
    return family in ("roberta", "xlm-roberta")


def _config(family: str, head: str) -> dict[str, Any]:
    labels = _LABELS[head]
    names: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if family == "distilbert":
        names = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    if family == "electra":
        names["embedding_size"] = 16
    if family == "deberta-v2":
        names |= {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 16,
            "pooler_hidden_size": 32,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        }
    return {
        **names,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 1 if _sentence_style(family) else 0,
        "type_vocab_size": 1 if _sentence_style(family) else 2,
        "initializer_range": 0.2,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": _PROBLEM_TYPES.get(head),
    }


@functools.cache
def _trained(family: str) -> str:
    """The family's kind of tokenizer, trained on the tweets, as the text of a tokenizer.json."""
    kind = {"roberta": _byte_level_bpe, "xlm-roberta": _unigram, "deberta-v2": _unigram}.get(family, _word_piece)
    tokenizer: Tokenizer = kind(demo_tweets(), _special(family))
    first, last = ("<s>", "</s>") if _sentence_style(family) else ("[CLS]", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)],
    )
    return str(tokenizer.to_str())


def _special(family: str) -> list[str]:
    if _sentence_style(family):
        return ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _word_piece(texts: Iterable[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level_bpe(texts: Iterable[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    unknown = next(name for name in special if "unk" in name.lower())
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
