"""What all tests share. This file also makes `tests/` importable: `from models import build_model`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; a wrong name must fail at once
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """`model_folder(family, head)`: folder of a tiny model, built on first use; see `models.build_model`."""
    import torch
    from transformers.utils import logging

    from models import build_model

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    built: dict[tuple[str, str, int], Path] = {}

    def folder(family: str = "bert", head: str = "three", seed: int = 0) -> Path:
        key = (family, head, seed)
        if key not in built:
            built[key] = build_model(tmp_path_factory.mktemp("model") / f"{family}-{head}", family, head, seed)
        return built[key]

    return folder
