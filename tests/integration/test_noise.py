"""The noise floor is measured: identical reruns, differences by shape, and dropout that gives itself away."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.conftest import ModelFolder
from tests.support.models import POSITIONS, demo_tweets
from tests.support.observed import BROKEN, texts_of
from twinlens.paths.model import load_model
from twinlens.paths.noise import KEPT, NoiseFloor
from twinlens.paths.observations import Observations, softmax
from twinlens.paths.raw import ForwardPass, RawPath
from twinlens.paths.tokenize import RawTokenizer
from twinlens.settings import RawSettings
from twinlens.text import Text


class Bench:
    """A raw path on a tiny model, with tokenized tweets."""

    def __init__(self, model_folder: ModelFolder, dtype: str = "float32", head: str = "three", long: int = 0) -> None:
        self.model = load_model(str(model_folder("bert", head)), None, dtype, "cpu")
        self.path = RawPath(self.model, RawSettings())
        self.texts: list[Text] = texts_of([*demo_tweets()[:24], *["never ending " * 100] * long])
        RawTokenizer(self.model, RawSettings()).tokenize(self.texts)

    def observe(self, size: int = 8) -> Observations:
        rows = list(range(len(self.texts)))
        return self.path.observe(self.texts, [rows[start : start + size] for start in range(0, len(rows), size)])


def measured(bench: Bench, seen: Observations, times: int = 6) -> NoiseFloor:
    noise = NoiseFloor(1.0, random.Random(5))
    for _ in range(times):
        noise.maybe_measure(bench.path, bench.texts, seen)
    return noise


@pytest.mark.parametrize("head", ["three", "multi", "one", "regression"])
def test_an_evaluated_model_repeats_itself(model_folder: ModelFolder, head: str) -> None:
    bench = Bench(model_folder, head=head)
    seen = bench.observe()
    noise = measured(bench, seen)
    assert seen.control_differs is False
    assert 0 <= noise.floor < 1e-5


def test_dropout_gives_itself_away(model_folder: ModelFolder) -> None:
    bench = Bench(model_folder)
    bench.model.model.train()
    seen = bench.observe()
    noise = measured(bench, seen, times=1)
    assert seen.control_differs is True
    assert noise.floor > 1e-4


def test_half_precision_has_a_higher_floor(model_folder: ModelFolder) -> None:
    half, full = Bench(model_folder, "bfloat16"), Bench(model_folder)
    seen = half.observe()
    floor = measured(half, seen).floor
    assert seen.control_differs is False
    assert measured(full, full.observe()).floor < floor < 0.2


def test_batches_that_cannot_be_padded_further_are_made_smaller(model_folder: ModelFolder) -> None:
    bench = Bench(model_folder, long=8)
    seen = bench.observe()
    assert max(batch.padded_tokens for batch in seen.batches) == POSITIONS
    full = next(n for n, batch in enumerate(seen.batches) if batch.padded_tokens == POSITIONS)
    seen.batch_of[seen.batch_of != full] = -1  # only this one can be chosen
    forward, passes = bench.path.forward, []

    def note(texts: list[Text], extra_padding: int = 0) -> Any:
        passes.append((len(texts), extra_padding))
        return forward(texts, extra_padding)

    bench.path.forward = note  # type: ignore[assignment, method-assign]
    noise = measured(bench, seen, times=20)
    assert set(passes) == {(8, 0), (7, 0)}
    assert 0 <= noise.floor < 1e-5
    assert seen.control_differs is False


def test_the_floor_is_the_difference_that_padding_makes(model_folder: ModelFolder) -> None:
    bench = Bench(model_folder, "bfloat16")
    seen = bench.observe(size=24)
    floor = measured(bench, seen, times=1).floor
    longest = seen.batches[0].padded_tokens
    ascending = sorted(bench.texts, key=lambda text: text.token_count)
    near, far = (bench.path.forward(ascending, extra).logits for extra in (0, min(8, POSITIONS - longest)))
    assert floor == float(np.abs(softmax(near) - softmax(far)).max())


def test_only_the_latest_measurements_count(model_folder: ModelFolder) -> None:
    bench = Bench(model_folder)
    noise = NoiseFloor(1.0, random.Random(5))
    bench.model.model.train()
    noise.maybe_measure(bench.path, bench.texts, bench.observe(size=4))
    high = noise.floor
    bench.model.model.eval()
    seen = bench.observe(size=4)
    for _ in range(KEPT - 1):
        noise.maybe_measure(bench.path, bench.texts, seen)
    assert noise.floor == high
    noise.maybe_measure(bench.path, bench.texts, seen)
    assert noise.floor < high


@pytest.mark.parametrize(("share", "times"), [(0.0, 0), (1.0, 200), (0.25, 50)])
def test_a_share_of_the_windows_is_measured(model_folder: ModelFolder, share: float, times: int) -> None:
    bench = Bench(model_folder)
    seen = bench.observe()
    passes = 0

    def count(texts: list[Text], extra_padding: int = 0) -> ForwardPass:
        nonlocal passes
        passes += 1
        return ForwardPass(np.zeros((len(texts), 3), np.float32), None, 10, 0.0)

    bench.path.forward = count  # type: ignore[assignment, method-assign]
    noise = NoiseFloor(share, random.Random(5))
    for _ in range(200):
        noise.maybe_measure(bench.path, bench.texts, seen)
    assert passes / 3 == pytest.approx(times, rel=0.3)


def test_before_the_first_measurement_it_is_zero() -> None:
    assert NoiseFloor(1.0, random.Random(5)).floor == 0.0


def test_nothing_to_measure(model_folder: ModelFolder) -> None:
    bench = Bench(model_folder)
    empty = bench.path.observe([], [])
    noise = measured(bench, empty)
    assert noise.floor == 0.0
    assert empty.control_differs is False


def test_a_batch_that_lost_a_row_is_left_alone(model_folder: ModelFolder) -> None:
    """It cannot be run again in its shape."""
    bench = Bench(model_folder)
    seen = bench.observe(size=24)
    seen.errors[3] = BROKEN
    bench.model.model.train()  # any measurement would show
    assert measured(bench, seen).floor == 0.0
    assert seen.control_differs is False
