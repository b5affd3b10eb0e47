"""Derived predictions are what the stock post-processing makes of the same logits, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import TextClassificationPipeline

from tests.support.observed import observed
from twinlens.paths.derive import derive
from twinlens.paths.observations import NON_FINITE, Observations, PathFacts, resolve_function

#: Ties, saturated sigmoids, and whatever else float32 has.
LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 20.0, 90.0, -90.0, 1e4, -1e4, float("nan"), float("inf")]),
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-30, max_value=30),
    st.floats(width=32),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@st.composite
def logits(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 9)))
    return draw(arrays.arrays(np.float32, shape, elements=LOGITS, fill=st.nothing()))


@given(
    logits(),
    st.sampled_from(["default", "softmax", "sigmoid", "none"]),
    st.sampled_from([None, "regression", "multi_label_classification", "single_label_classification"]),
    st.sampled_from([None, 1, 2, 3, 20]),
    st.sampled_from(sorted(DTYPES)),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflows, in the stock functions as in ours
def test_derived_answers_are_those_of_the_stock_post_processing(
    drawn: np.ndarray[Any, Any], function: str, problem_type: str | None, top_k: int | None, dtype: str
) -> None:
    """Bit for bit, from the tensor that the model returns."""
    tensor = torch.from_numpy(drawn).to(DTYPES[dtype])
    count, width = drawn.shape
    labels = [f"label {index % 7}" for index in range(width)]  # names may occur twice
    config = SimpleNamespace(problem_type=problem_type, num_labels=width, id2label=dict(enumerate(labels)))
    raw = Observations.empty(facts(labels, "softmax", None), count)
    raw.logits[:] = tensor.float().numpy()
    raw.score(np.arange(count))
    predict = Observations.empty(facts(labels, resolve_function(config, function), top_k), count)
    derive(raw, predict, np.arange(count))

    assert predict.derived.all()
    for row in range(count):
        if not np.isfinite(raw.logits[row]).all():
            assert predict.errors[row] == NON_FINITE
            continue
        assert predict.errors[row] is None
        expected = stock(tensor[row : row + 1], config, function, top_k)
        best = expected[0]
        assert (predict.label(row), float(predict.top_scores()[row])) == (best["label"], best["score"])
        listed = [{"label": entry.label, "score": entry.score} for entry in predict.answers[row]]
        assert listed == (expected if top_k is not None else [])


def stock(tensor: torch.Tensor, config: Any, function: str, top_k: int | None) -> list[dict[str, Any]]:
    """The answer on logits [1, labels] of a pipeline that was made with these arguments."""
    arguments: dict[str, Any] = {} if function == "default" else {"function_to_apply": function}
    if top_k is not None:
        arguments["top_k"] = top_k
    pipeline = SimpleNamespace(model=SimpleNamespace(config=config))
    _, _, parameters = TextClassificationPipeline._sanitize_parameters(pipeline, **arguments)
    answer = TextClassificationPipeline.postprocess(pipeline, {"logits": tensor}, **parameters)
    return answer if isinstance(answer, list) else [answer]


def facts(labels: Sequence[str], function: str, top_k: int | None) -> PathFacts:
    return observed([], labels=labels, function=function, top_k=top_k).facts
