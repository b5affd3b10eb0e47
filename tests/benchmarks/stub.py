"""A model of fixed cost in the place of the real one, so that what is left is the system's own work.

Weights, tokenizer and configuration are those of the demonstration model; only the pass through it is replaced. It
sleeps, which takes no CPU and lets the other threads run, as waiting for a GPU does.
"""

from __future__ import annotations

import os
import time
from typing import Any


def replace_models(ms_per_batch: float, ms_per_text: float) -> None:
    """Called in a replica's process: each of the two paths costs this much from now on."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the import below is the first of torch
    from twinlens.paths import model
    from twinlens.replica import compute

    def load_stub(source: str, revision: str | None, dtype: str, device: str) -> model.LoadedModel:
        loaded = model.load_model(source, revision, dtype, device)
        loaded.model.forward = _forward(len(loaded.labels), ms_per_batch / 1000, ms_per_text / 1000)
        return loaded

    compute.load_model = load_stub  # type: ignore[attr-defined]


def _forward(labels: int, s_per_batch: float, s_per_text: float) -> Any:
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        """Logits that depend on a text's own tokens, not on its neighbours or its padding."""
        time.sleep(s_per_batch + s_per_text * len(input_ids))
        label = (input_ids * attention_mask).sum(dim=1) % labels
        return SequenceClassifierOutput(logits=4.0 * torch.nn.functional.one_hot(label, labels))

    return forward
