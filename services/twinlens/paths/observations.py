"""What one path saw of some texts: columns with one entry per text, and what is needed to explain a difference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from twinlens.errors import ReplaceReplica
from twinlens.records import LabelScore, ModelId, PathError

Floats = npt.NDArray[np.float32]
NON_FINITE = PathError(type="NonFiniteLogits", message="the model gave NaN or infinity")


@dataclass(frozen=True)
class PathFacts:
    """What is the same for every text of a path, and can differ between the paths."""

    model: ModelId
    labels: list[str]
    function: str  #: what turns logits into scores: softmax, sigmoid or none
    dtype: str
    device: str
    training: bool
    top_k: int | None = None  #: predict path: how many labels the pipeline's answer has; None: the top one, not listed


@dataclass(frozen=True)
class Batch:
    """One forward pass."""

    size: int  #: texts
    padded_tokens: int  #: length every text was padded to
    seconds: float


@dataclass
class Observations:
    """Columns over n texts. Where `errors[i]` is set, ignore row i of the other columns.

    Where `derived[i]` is set, only `errors`, `scores`, `top` and `answers` are filled in.
    """

    facts: PathFacts
    logits: Floats  #: [n, labels]
    scores: Floats  #: [n, labels], after `facts.function`
    top: npt.NDArray[np.int64]  #: [n] index of the label with the highest score
    errors: list[PathError | None]
    input_ids: list[list[int]]  #: token ids as the path made them, padding excluded
    mask_counts: npt.NDArray[np.int64]  #: [n] ones in the attention mask
    truncated: npt.NDArray[np.bool_]  #: [n]
    batch_of: npt.NDArray[np.int64]  #: [n] index into `batches`
    derived: npt.NDArray[np.bool_]  #: [n] predict path: made from the raw path's logits (`paths.derive`)
    batches: list[Batch] = field(default_factory=list)
    answers: list[list[LabelScore]] = field(default_factory=list)  #: predict path with `top_k`: the whole answer
    cls: Floats | None = None  #: raw path, [n, hidden]
    control_differs: bool = False  #: the same pass run twice gave different bits

    @classmethod
    def empty(cls, facts: PathFacts, count: int) -> Observations:
        """`count` rows, to be filled in by batches."""
        width = len(facts.labels)
        return cls(
            facts=facts,
            logits=np.full((count, width), np.nan, np.float32),
            scores=np.full((count, width), np.nan, np.float32),
            top=np.full(count, -1, np.int64),
            errors=[None] * count,
            input_ids=[[] for _ in range(count)],
            mask_counts=np.zeros(count, np.int64),
            truncated=np.zeros(count, np.bool_),
            batch_of=np.full(count, -1, np.int64),
            derived=np.zeros(count, np.bool_),
            answers=[[] for _ in range(count)],
        )

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """[n] whether the path raised."""
        return np.array([error is not None for error in self.errors], np.bool_)

    def score(self, rows: npt.NDArray[np.int64]) -> None:
        """Scores and labels of `rows`, from their logits. Logits that are not finite are an error, never label 0."""
        finite = np.isfinite(self.logits[rows]).all(axis=1)
        for row in rows[~finite].tolist():
            self.errors[row] = NON_FINITE
        held = rows[finite]
        if held.size:
            self.scores[held] = apply_function(self.facts.function, self.logits[held])
            self.top[held] = self.scores[held].argmax(axis=1)

    def top_scores(self) -> Floats:
        """[n] score of the best label; NaN where the path raised."""
        scores = np.full(len(self.errors), np.nan, np.float32)
        rows = np.flatnonzero(~self.failed)
        scores[rows] = self.scores[rows, self.top[rows]]
        return scores

    def ids_digest(self, row: int) -> str:
        """BLAKE2b-64 of the token ids as 32-bit little-endian integers."""
        return hashlib.blake2b(np.asarray(self.input_ids[row], "<u4").tobytes(), digest_size=8).hexdigest()

    def label(self, row: int) -> str | None:
        return None if self.errors[row] is not None else self.facts.labels[int(self.top[row])]


def softmax(logits: Floats) -> Floats:
    """As in transformers' pipelines/text_classification.py, rows of [n, labels]."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(logits: Floats) -> Floats:
    """As in transformers' pipelines/text_classification.py."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)


def apply_function(function: str, logits: Floats) -> Floats:
    """Scores of `logits` [n, labels] under softmax, sigmoid or none."""
    if function == "softmax":
        return softmax(logits)
    return sigmoid(logits) if function == "sigmoid" else logits


def resolve_function(config: Any, setting: str) -> str:
    """What the stock pipeline applies: the setting, or what the model's problem type and number of labels ask for."""
    if setting != "default":
        return setting
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def error_of(exception: BaseException) -> PathError:
    """A path's exception as data: its type and its first line. These libraries do not quote the text there."""
    return PathError(type=type(exception).__name__, message=(str(exception).splitlines() or [""])[0][:300])


def bisect(rows: Sequence[int], run: Callable[[Sequence[int]], None], fail: Callable[[int, Exception], None]) -> None:
    """Run `rows`. If that raises, run each half, and so on, until only rows that raise by themselves have failed.

    Raises ReplaceReplica when the device itself failed.
    """
    try:
        run(rows)
        return
    except Exception as error:
        if _device_is_broken(error):
            raise ReplaceReplica(f"the device failed: {error}") from error
        if len(rows) == 1:
            fail(rows[0], error)
            return
    middle = len(rows) // 2
    bisect(rows[:middle], run, fail)
    bisect(rows[middle:], run, fail)


def _device_is_broken(error: Exception) -> bool:
    """After most CUDA errors every later call fails too. Running out of memory is not one of them."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
