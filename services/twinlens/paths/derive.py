"""Predictions made from the raw path's logits, without running the pipeline. Pure.

The pipeline is a tokenizer, the model and a post-processing. Where both paths run one model, the raw path's logits and
the pipeline's own post-processing give a prediction without a second pass: it is derived. Whether that is what the
pipeline would have said is measured on a sample (`replica.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twinlens.paths.observations import Floats, Observations, apply_function
from twinlens.records import LabelScore


def derive(raw: Observations, predict: Observations, rows: npt.NDArray[np.int64]) -> None:
    """Fill `rows` of `predict` with what the pipeline's post-processing makes of the raw path's logits.

    Equal to TextClassificationPipeline.postprocess of transformers (pipelines/text_classification.py), all rows at
    once: scores in float32; the label is the first one with the highest score; with `top_k` the best so many, equal
    scores in the order of the labels. Where the raw path raised, its error is the prediction's.
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
