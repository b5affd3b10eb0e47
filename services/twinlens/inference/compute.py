"""A window through both paths: how large it is, how it is split, what is observed, compared, and learned from it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import structlog

from twinlens.inference.batching import CostModel, Limits, split, window_size
from twinlens.inference.compare import compare
from twinlens.inference.counting import ComparedWindow
from twinlens.inference.derive import derive, sampled
from twinlens.inference.model import load_model, resolve_device
from twinlens.inference.noise import NoiseFloor
from twinlens.inference.observations import Observations
from twinlens.inference.predict import PredictPath
from twinlens.inference.raw import RawPath, RawTokenizer
from twinlens.settings import BatchingSettings, PathSettings, PredictSettings, Settings
from twinlens.window import Item, Window

log = structlog.get_logger(__name__)

FIRST_SECONDS_PER_TOKEN = 1e-4  #: before the first window; each one corrects it
LEARNING_RATE = 0.2  #: weight of the newest window in the seconds per token


class Compute:
    """Both models with what the replica learns about their speed. Used by one thread, but for `tokenizer`.

    Paths with the same model, revision and dtype share one copy of the weights.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._batching = settings.batching
        self._predict_settings = settings.predict
        device = resolve_device(settings.device)
        raw, predict = ((*settings.model_of(path), path.dtype) for path in (settings.raw, settings.predict))
        raw_model = load_model(*raw, device)
        predict_model = raw_model if predict == raw else load_model(*predict, device)
        self.tokenizer = RawTokenizer(raw_model, settings.raw)  #: for the thread that decodes
        self._raw = RawPath(raw_model, settings.raw)
        self._predict = PredictPath(predict_model, settings.predict)
        self._raw_cost, self._predict_cost = CostModel(), CostModel()
        self._seconds_per_token = FIRST_SECONDS_PER_TOKEN  # both paths together, exponentially weighted
        self._noise = NoiseFloor(settings.compare.noise_floor_share, random.Random(name))

    @property
    def max_window_items(self) -> int:
        return self._batching.max_window_items

    def reconfigure(self, batching: BatchingSettings, predict: PredictSettings) -> None:
        """From the next window on."""
        self._batching = batching
        if predict != self._predict_settings:
            self._predict.reconfigure(predict)
            self._predict_settings = predict

    def take(self, candidates: Sequence[Item], now_s: float) -> int:
        """How many of the waiting items fit into what is left of the oldest one's latency objective."""
        age_s = max(0.0, now_s - min(item.timestamp_ms for item in candidates) / 1000)
        budget_s = self._batching.latency_objective_ms / 1000 - age_s
        lengths = [max(item.token_count, 1) for item in candidates]
        return window_size(lengths, self._seconds_per_token, budget_s)

    def run(self, window: Window) -> ComparedWindow:
        """Observe the window's tweets by both paths, and compare."""
        start = time.perf_counter()
        tweets = window.tweets
        lengths = [item.token_count for item in tweets]
        raw_limits = _limits(self._settings.raw, self._raw.can_batch)
        raw = self._raw.observe(tweets, split(lengths, self._raw_cost, raw_limits))
        predict = self._predictions(tweets, raw)
        for cost, batches in ((self._raw_cost, raw.batches), (self._predict_cost, predict.batches)):
            for batch in batches:
                cost.learn(batch.size, batch.padded_tokens, batch.seconds)
        self._noise.maybe_measure(self._raw, tweets, raw)
        comparison = compare(raw, predict, self._settings.compare.score_tolerance, self._noise.floor)
        for path, seen in (("raw", raw), ("predict", predict)):
            self._log_errors(path, tweets, seen)
        seconds = time.perf_counter() - start
        if tokens := sum(lengths):
            self._seconds_per_token += LEARNING_RATE * (seconds / tokens - self._seconds_per_token)
        return ComparedWindow(window, raw, predict, comparison, seconds)

    def _predictions(self, tweets: Sequence[Item], raw: Observations) -> Observations:
        """The pipeline on all tweets, or in audited mode on a sample of them; the others are derived from `raw`."""
        settings, path = self._predict_settings, self._predict
        chosen = np.ones(len(tweets), np.bool_)
        if settings.mode == "audited":
            chosen = sampled(tweets, self._settings.application, settings.audit_share)
        rows = np.flatnonzero(chosen).tolist()
        whole = [tweets[row].token_count + tweets[row].cut_tokens for row in rows]
        most = path.max_tokens if settings.truncation else max(whole, default=0)
        shorter = [min(length, most) for length in whole]
        batches = split(shorter, self._predict_cost, _limits(settings, path.can_batch))
        predict = path.observe(tweets, [[rows[index] for index in batch] for batch in batches])
        derive(raw, predict, np.flatnonzero(~chosen))
        return predict

    def _log_errors(self, path: str, tweets: Sequence[Item], seen: Observations) -> None:
        """The first text of a window that made a path raise, and how many did; its text only under `log_text`."""
        rows = np.flatnonzero(seen.failed & ~seen.derived)
        if not rows.size:
            return
        item, error = tweets[rows[0]], seen.errors[rows[0]]
        at = f"{item.topic}/{item.partition}/{item.offset}"
        text = {"text": item.text} if self._settings.log_text else {}
        log.warning("a path raised", path=path, texts=int(rows.size), first=at, error=error, **text)


def _limits(path: PathSettings, can_batch: bool) -> Limits:
    """Without a padding token texts go one by one, as the stock pipeline demands."""
    return Limits(path.max_batch_items if can_batch else 1, path.max_batch_tokens)
