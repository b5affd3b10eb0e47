"""Scores, digests, errors as data, and the bisection that keeps a bad text from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.observed import observed
from twinlens.errors import ReplaceReplica
from twinlens.paths.observations import apply_function, bisect, error_of, resolve_function, sigmoid, softmax


@pytest.mark.parametrize(
    ("problem_type", "labels", "setting", "expected"),
    [
        (None, 3, "default", "softmax"),
        (None, 2, "default", "softmax"),
        (None, 1, "default", "sigmoid"),
        ("single_label_classification", 3, "default", "softmax"),
        ("multi_label_classification", 4, "default", "sigmoid"),
        ("regression", 1, "default", "none"),
        ("regression", 3, "default", "none"),
        ("regression", 1, "sigmoid", "sigmoid"),
        (None, 3, "none", "none"),
        ("multi_label_classification", 4, "softmax", "softmax"),
    ],
)
def test_resolve_function(problem_type: str | None, labels: int, setting: str, expected: str) -> None:
    assert resolve_function(SimpleNamespace(problem_type=problem_type, num_labels=labels), setting) == expected


class TestScores:
    def test_known_values(self) -> None:
        logits = np.array([[0.0, np.log(3)]], np.float32)
        assert apply_function("softmax", logits)[0] == pytest.approx([0.25, 0.75])
        assert apply_function("sigmoid", logits)[0] == pytest.approx([0.5, 0.75])
        assert apply_function("none", logits)[0] == pytest.approx([0.0, np.log(3)])

    @given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=5))
    def test_any_finite_logits_give_finite_scores_without_a_warning(self, logits: list[float]) -> None:
        row = np.array([logits], np.float32)
        assert np.isfinite(sigmoid(row)).all()
        scores = softmax(row)
        assert scores.sum() == pytest.approx(1.0, rel=1e-5)
        assert scores.dtype == np.float32
        assert scores[0, int(row.argmax())] == scores.max()


def test_ids_digest_depends_on_every_token_and_its_place() -> None:
    seen = observed([[0.0, 1.0, 2.0]] * 5)
    seen.input_ids = [[2, 7, 3], [2, 7, 3], [7, 2, 3], [2, 7], []]
    digests = [seen.ids_digest(row) for row in range(5)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert all(len(digest) == 16 for digest in digests)


class TestErrorOf:
    def test_type_and_first_line(self) -> None:
        error = error_of(IndexError("index out of range\n  in a long story"))
        assert (error.type, error.message) == ("IndexError", "index out of range")

    def test_without_words(self) -> None:
        assert error_of(ValueError()).message == ""

    def test_is_short(self) -> None:
        assert len(error_of(ValueError("x" * 10_000)).message) == 300


class Runner:
    """Fails for the rows in `bad`, and notes what ran and what failed."""

    def __init__(self, bad: set[int], error: Exception | None = None) -> None:
        self.bad, self.error = bad, error or ValueError("bad text")
        self.passed: list[int] = []
        self.failed: list[int] = []
        self.calls = 0

    def run(self, rows: Sequence[int]) -> None:
        self.calls += 1
        if self.bad & set(rows):
            raise self.error
        self.passed.extend(rows)

    def fail(self, row: int, error: Exception) -> None:
        assert error is self.error
        self.failed.append(row)


class TestBisect:
    @given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=5))
    def test_exactly_the_bad_rows_fail_and_the_others_run_once(self, count: int, bad: set[int]) -> None:
        runner = Runner(bad & set(range(count)))
        bisect(range(count), runner.run, runner.fail)
        assert sorted(runner.failed) == sorted(runner.bad)
        assert sorted(runner.passed) == [row for row in range(count) if row not in bad]

    def test_one_bad_row_costs_two_passes_per_halving(self) -> None:
        runner = Runner({37})
        bisect(range(64), runner.run, runner.fail)
        assert runner.calls == 1 + 2 * 6

    def test_nothing_bad_is_one_pass(self) -> None:
        runner = Runner(set())
        bisect(range(64), runner.run, runner.fail)
        assert runner.calls == 1

    def test_a_broken_device_replaces_the_replica_at_once(self) -> None:
        runner = Runner({3}, RuntimeError("CUDA error: an illegal memory access was encountered"))
        with pytest.raises(ReplaceReplica, match="the device failed: CUDA error"):
            bisect(range(8), runner.run, runner.fail)
        assert runner.calls == 1
        assert runner.failed == []

    def test_an_accelerator_error_is_one_whatever_it_says(self) -> None:
        runner = Runner({3}, type("AcceleratorError", (RuntimeError,), {})("device-side assert"))
        with pytest.raises(ReplaceReplica):
            bisect(range(8), runner.run, runner.fail)

    def test_a_lack_of_memory_is_met_by_smaller_batches(self) -> None:
        sizes: list[int] = []

        def run(rows: Sequence[int]) -> None:
            if len(rows) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            sizes.append(len(rows))

        bisect(range(8), run, lambda row, error: pytest.fail(f"row {row} failed: {error}"))
        assert sizes == [2, 2, 2, 2]

    def test_what_is_no_error_passes_through(self) -> None:
        def interrupted(rows: Sequence[int]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bisect(range(4), interrupted, lambda row, error: None)
