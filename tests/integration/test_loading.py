"""A model that cannot be used is one clear sentence for the person who named it, and no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BigBirdConfig,
    FunnelConfig,
    LlamaConfig,
    ModernBertConfig,
    ViTConfig,
)

from tests.conftest import ModelFolder
from tests.support.models import build_model
from twinlens.errors import AskUser
from twinlens.paths.model import keeps_state, load_model, resolve_device


@pytest.fixture
def folder(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A working model, to be broken."""
    shutil.copytree(model_folder("bert", "three"), tmp_path / "model")
    return tmp_path / "model"


def refusal(source: object, device: str = "cpu") -> str:
    with pytest.raises(AskUser) as caught:
        load_model(str(source), None, "float32", device)
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    return str(error)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def only_bin(folder: Path) -> None:
    weights = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def own_code(file: str, name: str) -> Callable[[Path], None]:
    """As models are published that transformers does not know; running it would leave a file."""

    def break_it(folder: Path) -> None:
        (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass {name}: pass\n")
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, "auto_map": {name: f"own.{name}"}}))

    return break_it


def unknown_kind_with_own_code(folder: Path) -> None:
    own_code("config.json", "AutoConfig")(folder)
    change_config(folder, model_type="new")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def another_architecture(folder: Path) -> None:
    ViTConfig().save_pretrained(folder)


def without_head(kind: Any) -> Callable[[Path], None]:
    return lambda folder: kind(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        pytest.param(lambda f: (f / "config.json").unlink(), "There is no model", id="no config"),
        pytest.param(lambda f: (f / "config.json").write_text("{"), "not a valid JSON file", id="broken config"),
        pytest.param(lambda f: change_config(f, model_type="new"), "does not recognize", id="unknown model type"),
        pytest.param(lambda f: (f / "model.safetensors").unlink(), "no usable safetensors weights", id="no weights"),
        pytest.param(own_code("config.json", "AutoConfig"), "auto_map in its config.json", id="own code"),
        pytest.param(unknown_kind_with_own_code, "auto_map in its config.json", id="own code of a new kind"),
        pytest.param(
            own_code("tokenizer_config.json", "AutoTokenizer"),
            "auto_map in its tokenizer_config.json",
            id="own code of the tokenizer",
        ),
        pytest.param(only_bin, "no usable safetensors weights", id="only a pickle"),
        pytest.param(lfs_pointer, "Git LFS pointer", id="LFS pointer"),
        pytest.param(cut_weights, "cannot be read", id="half a file"),
        pytest.param(without_head(BertModel), "no trained classifier head: classifier.bias", id="no head"),
        pytest.param(without_head(BertForMaskedLM), "no trained classifier head", id="language model"),
        pytest.param(another_architecture, "is not a sequence classifier", id="for images"),
        pytest.param(
            lambda f: change_config(f, id2label={str(i): str(i) for i in range(5)}),
            "do not fit its config.json: classifier.bias, classifier.weight",
            id="other number of labels",
        ),
        pytest.param(no_tokenizer, "has no tokenizer", id="no tokenizer"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{"), "no usable tokenizer", id="broken tokenizer"),
        pytest.param(lambda f: (f / "tokenizer.json").write_text("{}"), "no usable tokenizer", id="empty tokenizer"),
    ],
)
def test_a_folder_that_is_no_classifier(folder: Path, break_it: Callable[[Path], object], words: str) -> None:
    break_it(folder)
    message = refusal(folder)
    assert words in message
    assert str(folder) in message
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("source", ["/no/such/folder", "nobody/nothing", "nothing", "", "a/b/c"])
def test_a_name_that_leads_nowhere(source: str) -> None:
    """The hub is offline in tests: what is not in the cache does not exist."""
    assert refusal(source).startswith(f"There is no model {source!r} (")


@pytest.mark.parametrize("device", ["toaster", "", "cuda:77"])
def test_a_device_that_is_not_there(folder: Path, device: str) -> None:
    assert refusal(folder, device).startswith(f"Device {device!r} cannot be used: ")


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_loaded(folder: Path, dtype: str) -> None:
    model = load_model(str(folder), None, dtype, "cpu")
    assert model.labels == ["negative", "neutral", "positive"]
    assert (model.dtype, model.device) == (dtype, "cpu")
    assert {parameter.dtype for parameter in model.model.parameters()} == {getattr(torch, dtype)}
    assert model.model.training is False
    assert model.id.name == "model"


def test_the_revision_of_a_folder_is_that_of_its_weights(folder: Path, tmp_path: Path) -> None:
    def revision(of: Path) -> str:
        return load_model(str(of), None, "float32", "cpu").id.revision

    copy = shutil.copytree(folder, tmp_path / "copy")
    change_config(copy, note="the same weights")
    other = build_model(tmp_path / "other", "bert", "three", seed=1)
    assert revision(folder) == revision(copy) != revision(other)


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        (BertConfig(), False),
        (LlamaConfig(), False),
        (LlamaConfig(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), True),
        (ModernBertConfig(), False),
        (ModernBertConfig(rope_parameters={"full_attention": {"rope_type": "dynamic", "factor": 2.0}}), True),
        (BigBirdConfig(), True),
        (FunnelConfig(), True),
    ],
)
def test_which_models_keep_something_of_a_call(config: Any, keeps: bool) -> None:
    assert keeps_state(SimpleNamespace(config=config)) is keeps


@pytest.mark.parametrize(("predict", "loads"), [({}, 1), ({"dtype": "bfloat16"}, 2)])
def test_paths_with_one_model_and_dtype_share_its_weights(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, predict: dict[str, str], loads: int
) -> None:
    """Twice the weights would be twice the memory, on a GPU above all."""
    from twinlens.paths.model import load_model
    from twinlens.replica import inference
    from twinlens.settings import Settings

    loaded: list[str] = []

    def load(*arguments: Any) -> Any:
        loaded.append(arguments[2])
        return load_model(*arguments)

    monkeypatch.setattr(inference, "load_model", load)
    settings = Settings.load({"raw": {"model": str(model_folder())}, "predict": predict, "device": "cpu"})
    inference.Inference(settings, "replica-a").close()
    assert len(loaded) == loads
