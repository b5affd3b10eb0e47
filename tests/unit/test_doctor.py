"""What `twinlens doctor` says of the device."""

from __future__ import annotations

import pytest
import torch

from twinlens.cli.doctor import device_line
from twinlens.settings import Settings


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "said"),
    [
        (True, True, "bfloat16 is fast here"),
        (False, True, "bfloat16 is fast here"),  # nearly twice as fast as float32 (docs/performance.md)
        (False, False, "float32 is the fastest dtype here"),
    ],
)
def test_the_dtype_that_this_cpu_is_made_for(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, said: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert device_line(Settings(device="cpu")).endswith(said)
