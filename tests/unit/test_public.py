"""What `import twinlens` offers: the names that users may rely on, each with a docstring or a home that has one."""

from __future__ import annotations

import subprocess
import sys

import pytest

import twinlens
from twinlens import schemas

DECODERS = ("logits", "prediction", "divergence", "comparison")


@pytest.mark.parametrize("name", twinlens.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(twinlens, name).__doc__
    assert name in dir(twinlens)


def test_every_published_record_has_its_type_and_its_decoder() -> None:
    public = {getattr(twinlens, name) for name in twinlens.__all__}
    for topic, record in schemas.TYPES.items():
        assert record in public, topic
    for topic, record in schemas.example_records().items():
        (decode,) = (getattr(twinlens, f"decode_{name}") for name in DECODERS if name in topic)
        assert decode(schemas.encode(record)) == record


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'backlog_of'"):
        getattr(twinlens, "backlog_of")  # noqa: B009 - mypy knows the module


def test_importing_it_costs_nothing() -> None:
    program = "import sys, twinlens; print(*{'ray', 'torch', 'kafka', 'pydantic', 'msgspec'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
