"""Predictions made from the raw path's logits, without running the pipeline. Pure.

The pipeline is a tokenizer, the model and a post-processing. Where both paths run the same model, the raw path's logits
and the pipeline's post-processing give a prediction without a second pass: a derived prediction. Whether the pipeline
would have said the same is measured on a sample (`replica.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twinlens.paths.observations import Floats, Observations, apply_function
from twinlens.records import LabelScore


def derive(raw: Observations, predict: Observations, rows: npt.NDArray[np.int64]) -> None:
    """Fill in `rows` of `predict` with what the pipeline's post-processing makes of the raw path's logits.

    It gives what TextClassificationPipeline.postprocess of transformers (pipelines/text_classification.py) gives, for
    all rows at once. Scores are float32. The label is the first one with the highest score. With `top_k`, the answer
    has that many labels, best first, and equal scores in the order of the labels. Where the raw path raised, the
    prediction has its error.
    """
    predict.derived[rows] = True
    for row in rows.tolist():
        predict.errors[row] = raw.errors[row]
    held = rows[~raw.failed[rows]]
    scores = apply_function(predict.facts.function, raw.logits[held])
    predict.scores[held] = scores
    predict.top[held] = scores.argmax(axis=1)
    if predict.facts.top_k is not None:
        for row, answer in zip(held.tolist(), _answers(scores, predict.facts.labels, predict.facts.top_k), strict=True):
            predict.answers[row] = answer


def _answers(scores: Floats, labels: Sequence[str], top_k: int) -> list[list[LabelScore]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(scores, order, axis=1)
    return [
        [LabelScore(labels[index], score) for index, score in zip(indices, values, strict=True)]
        for indices, values in zip(order.tolist(), best.tolist(), strict=True)
    ]
