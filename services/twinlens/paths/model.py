"""Loading a sequence classifier: safetensors only, no remote code, `eval()`, and a clear error when it is not one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from twinlens.errors import AskUser
from twinlens.paths.observations import PathFacts, resolve_function
from twinlens.records import ModelId

UNLIMITED = 2**31 - 1  #: where neither model nor tokenizer has a limit; the most that tokenizers' integers hold
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """Weights on a device, with what both paths need to know about them."""

    id: ModelId
    model: Any
    source: str  #: what `from_pretrained` was given
    revision: str | None
    labels: list[str]  #: in the order of the logits
    max_tokens: int  #: the longest input that position embeddings and tokenizer allow, special tokens included
    dtype: str
    device: str

    def new_tokenizer(self) -> Any:
        """A new tokenizer object. Fast tokenizers keep truncation state: never share one between threads."""
        return AutoTokenizer.from_pretrained(self.source, revision=self.revision, trust_remote_code=False)

    def facts(self, function_to_apply: str, top_k: int | None = None) -> PathFacts:
        """What is the same for every text that a path runs through this model."""
        return PathFacts(
            model=self.id,
            labels=self.labels,
            function=resolve_function(self.model.config, function_to_apply),
            dtype=self.dtype,
            device=self.device,
            training=self.model.training,
            top_k=top_k,
        )


def keeps_state(model: Any) -> bool:
    """Whether a call leaves something in the model's modules, so that two calls must not run at the same time.

    BigBird switches to full attention and stays there. Funnel keeps the lengths of its pooling. The rotary embeddings
    `dynamic` and `longrope` follow the longest text. (transformers, models/*/modeling_*.py and modeling_rope_utils.py)
    """
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    follows = any(each.get("rope_type") in {"dynamic", "longrope"} for each in by_layer)
    return follows or config.model_type in {"big_bird", "funnel"}


def resolve_device(device: str) -> str:
    """`auto` is the first CUDA device that this process sees, or the CPU. Ray hides devices that it did not assign."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(source: str, revision: str | None, dtype: str, device: str) -> LoadedModel:
    """Load a classifier from a hub id or a local folder.

    Raises AskUser when there is no such model, when it brings its own code, when its weights are not safetensors, or
    when it has no classifier head.
    """
    config = _load_config(source, revision)
    model = _load_weights(source, revision, dtype)
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise AskUser(f"Device {device!r} cannot be used: {error}. Set `device` to auto, cpu or cuda.") from None
    tokenizer = _load_tokenizer(source, revision)
    return LoadedModel(
        id=ModelId(name=Path(source).name if Path(source).is_dir() else source, revision=_revision(source, config)),
        model=model,
        source=source,
        revision=revision,
        labels=[str(model.config.id2label[i]) for i in range(model.config.num_labels)],
        max_tokens=_max_tokens(model, tokenizer),
        dtype=dtype,
        device=str(next(model.parameters()).device),
    )


def _load_config(source: str, revision: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise AskUser(_own_code(source, "config.json")) from None
        raise AskUser(
            f"There is no model {source!r} ({_first_sentence(error)}). Set raw.model to a hub id that this machine can "
            "reach, or to a folder with config.json, tokenizer.json and model.safetensors."
        ) from None
    if getattr(config, "auto_map", None):
        raise AskUser(_own_code(source, "config.json"))
    return config


def _load_weights(source: str, revision: str | None, dtype: str) -> Any:
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in our words
        )
    except OSError as error:
        raise AskUser(
            f"The model {source!r} has no usable safetensors weights ({_first_sentence(error)}). "
            "Save it with `save_pretrained(..., safe_serialization=True)`."
        ) from None
    except SafetensorError as error:
        raise AskUser(
            f"The weights of the model {source!r} cannot be read ({_first_sentence(error)}): the file is damaged, or "
            "it is only a Git LFS pointer. Download it again."
        ) from None
    except ValueError as error:
        raise AskUser(f"The model {source!r} is not a sequence classifier ({_first_sentence(error)}).") from None
    if missing := sorted(loading["missing_keys"]):
        raise AskUser(
            f"The model {source!r} has no trained classifier head: {', '.join(missing[:3])} would be random. "
            "Set raw.model to a model that was fine-tuned for sequence classification."
        )
    if mismatched := sorted(key for key, *_ in loading["mismatched_keys"]):
        raise AskUser(
            f"The weights of the model {source!r} do not fit its config.json: {', '.join(mismatched[:3])} have "
            "another shape. Set raw.model to a folder whose files belong together."
        )
    return model


def _load_tokenizer(source: str, revision: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise AskUser(
            f"The model {source!r} has no usable tokenizer ({_first_sentence(error)}). "
            "Save it next to the weights with `tokenizer.save_pretrained(...)`."
        ) from None
    if tokenizer.init_kwargs.get("auto_map"):
        raise AskUser(_own_code(source, "tokenizer_config.json"))
    # Without tokenizer files transformers makes up one that knows only special tokens: every word would be unknown.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise AskUser(
            f"The model {source!r} has no tokenizer, only weights. "
            "Save it next to them with `tokenizer.save_pretrained(...)`."
        )
    return tokenizer


def _max_tokens(model: Any, tokenizer: Any) -> int:
    """The longest input. RoBERTa-like embeddings count positions from after the padding index, and lose that many."""
    limits = [min(int(tokenizer.model_max_length), UNLIMITED)]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and positions > 0:
        embeddings = getattr(model.base_model, "embeddings", None)
        padding = getattr(embeddings, "padding_idx", None)
        limits.append(int(positions) - (0 if padding is None else int(padding) + 1))
    return min(limits)


def _revision(source: str, config: Any) -> str:
    """Commit of a hub model; BLAKE2b-48 over the weights of a local folder."""
    if commit := getattr(config, "_commit_hash", None):
        return str(commit)
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(Path(source).glob("*.safetensors")):
        with file.open("rb") as weights:
            while chunk := weights.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _own_code(source: str, file: str) -> str:
    """The error. Where transformers knows this kind of model, it would silently run its own code instead."""
    return (
        f"The model {source!r} comes with its own code (auto_map in its {file}), and twinlens runs no code of models. "
        "Set raw.model to one that transformers itself supports."
    )


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def check_model(source: str, revision: str | None) -> None:
    """Check what can be known without loading the weights. Raises AskUser as `load_model` would."""
    config = _load_config(source, revision)
    architectures = config.architectures or []
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise AskUser(
            f"The model {source!r} has no classifier head: it is a {architectures[0]}. "
            "Set raw.model to a model that was fine-tuned for sequence classification."
        )
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise AskUser(
            f"The model {source!r} has no safetensors weights. "
            "Save it with `save_pretrained(..., safe_serialization=True)`."
        )
