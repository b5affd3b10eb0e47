"""The guide's code runs and prints what the guide says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from twinlens.records import Cause

GUIDE = Path(__file__).parents[2] / "docs" / "call-and-predict.md"


def _blocks() -> list[tuple[str, str]]:
    """Every python block with the text block that follows it, or "" where none does."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    blocks: list[tuple[str, str]] = []
    for language, body in found:
        if language == "python":
            blocks.append((body, ""))
        else:
            assert language == "text", f"a block of {language} is not checked"
            assert blocks, "a text block before any code"
            assert blocks[-1][1] == "", "two text blocks after one of code"
            blocks[-1] = (blocks[-1][0], body)
    return blocks


@pytest.mark.usefixtures("one_torch_thread")
def test_the_code_prints_what_the_guide_says() -> None:
    blocks = _blocks()
    assert len(blocks) >= 4
    namespace: dict[str, Any] = {}
    for number, (code, said) in enumerate(blocks, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{GUIDE.name}, block {number}", "exec"), namespace)
        assert printed.getvalue() == said, f"block {number}"


def test_every_cause_is_explained() -> None:
    table = GUIDE.read_text().split("| way |")[1]
    assert {cause for cause in Cause if f"`{cause}`" not in table} == set()


@pytest.fixture
def one_torch_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
