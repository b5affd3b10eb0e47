"""A window through both paths: its size, its batches, the two observations, verdicts, causes, and what it taught."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import numpy as np
import structlog

from twinlens.paths.derive import derive
from twinlens.paths.lanes import Lanes, Pass
from twinlens.paths.model import keeps_state, load_model, resolve_device
from twinlens.paths.noise import NoiseFloor
from twinlens.paths.observations import Observations
from twinlens.paths.predict import PredictPath
from twinlens.paths.raw import RawPath
from twinlens.paths.tokenize import RawTokenizer
from twinlens.replica.batching import Forward, Limits, predicted_cost, split
from twinlens.replica.cost import CostModel
from twinlens.replica.counting import ComparedWindow
from twinlens.replica.report import PathWork
from twinlens.replica.sampling import sampled
from twinlens.replica.sizing import Sizing
from twinlens.settings import BatchingSettings, PathSettings, PredictSettings, RawSettings, Settings
from twinlens.verdict.cause import cause_of
from twinlens.verdict.compare import compare
from twinlens.window.item import Item
from twinlens.window.window import Dispatch, Window

log = structlog.get_logger(__name__)


class Inference:
    """Both models, and what the replica learns about their speed. One thread uses it; `tokenizer` is for another.

    Paths with the same model, revision and dtype share one copy of the weights.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._batching = settings.batching
        self._raw_settings = settings.raw
        self._predict_settings = settings.predict
        device = resolve_device(settings.device)
        raw, predict = ((*settings.model_of(path), path.dtype) for path in (settings.raw, settings.predict))
        raw_model = load_model(*raw, device)
        predict_model = raw_model if predict == raw else load_model(*predict, device)
        self.tokenizer = RawTokenizer(raw_model, settings.raw)  #: for the thread that decodes
        self._raw = RawPath(raw_model, settings.raw)
        # A GPU runs one pass after the other anyway.
        self._lanes = Lanes(device == "cpu" and not any(keeps_state(each.model) for each in (raw_model, predict_model)))
        self._predict = PredictPath(predict_model, settings.predict, self._lanes.count)
        self._raw_cost, self._predict_cost = CostModel(), CostModel()
        self.sizing = Sizing()
        self._noise = NoiseFloor(settings.compare.noise_floor_share, random.Random(name))

    @property
    def max_window_items(self) -> int:
        return self._batching.max_window_items

    def reconfigure(self, batching: BatchingSettings, raw: RawSettings, predict: PredictSettings) -> None:
        """Change settings for the next window. Of `raw`, only the limits of a batch are used."""
        self._batching = batching
        self._raw_settings = raw
        if predict != self._predict_settings:
            self._predict.reconfigure(predict)
            self._predict_settings = predict

    def close(self) -> None:
        """No more windows."""
        self._lanes.close()

    def decide(self, candidates: Sequence[Item], waiting: int, now_s: float) -> tuple[int, Dispatch]:
        """How many of the candidates make the next window, and why. `waiting` records wait in all."""
        candidates = candidates[: self._batching.max_window_items]
        return self.sizing.decide(
            [item.text.token_count for item in candidates],
            self._forwards(),
            waiting=waiting,
            age_s=max(0.0, now_s - min(item.timestamp_ms for item in candidates) / 1000),
            objective_s=self._batching.latency_objective_ms / 1000,
        )

    def run(self, window: Window) -> ComparedWindow:
        """Run both paths on the window's tweets, compare, find the causes, and learn from the time it took."""
        start = time.perf_counter()
        tweets = window.tweets
        lengths = [item.text.token_count for item in tweets]
        raw, predict = self._observe(tweets)
        paths = {"raw": PathWork.of(raw, self._raw_cost), "predict": PathWork.of(predict, self._predict_cost)}
        self._noise.maybe_measure(self._raw, [item.text for item in tweets], raw)
        comparison = compare(raw, predict, self._settings.compare.score_tolerance, self._noise.floor)
        causes = {row: cause_of(row, comparison, raw, predict) for row in comparison.diverging}
        self._log_errors("raw", tweets, raw)
        self._log_errors("predict", tweets, predict)
        seconds = time.perf_counter() - start
        self.sizing.computed(lengths, self._forwards(), seconds)
        for cost, seen in ((self._raw_cost, raw), (self._predict_cost, predict)):
            passes = seen.batches
            cost.learn([p.size for p in passes], [p.padded_tokens for p in passes], [p.seconds for p in passes])
        return ComparedWindow(window, raw, predict, comparison, causes, seconds, paths)

    def _forwards(self) -> tuple[Forward, Forward]:
        """Costs, limits and shares for the next window: of the raw path, then of the predict path."""
        raw, predict = self._raw_settings, self._predict_settings
        share = predict.sample_share if predict.mode == "sampled" else 1.0
        return (
            Forward(self._raw_cost, _limits(raw, self._raw.can_batch)),
            Forward(self._predict_cost, _limits(predict, self._predict.can_batch), share),
        )

    def _observe(self, tweets: Sequence[Item]) -> tuple[Observations, Observations]:
        """Run both paths on all tweets. In sampled mode, run the pipeline on a sample and derive the other predictions
        from the raw path.
        """
        settings = self._predict_settings
        raw_forward, predict_forward = self._forwards()
        chosen = np.ones(len(tweets), np.bool_)
        if settings.mode == "sampled":
            chosen = sampled(tweets, self._settings.application, settings.sample_share)
        rows = np.flatnonzero(chosen).tolist()
        texts = [item.text for item in tweets]
        raw_lengths = [text.token_count for text in texts]
        whole = [text.token_count + text.cut_tokens for text in texts]
        most = self._predict.max_tokens if settings.truncation else max(whole, default=0)
        predict_lengths = [min(length, most) for length in whole]
        raw_batches = split(raw_lengths, self._raw_cost, raw_forward.limits)
        sample = split([predict_lengths[row] for row in rows], self._predict_cost, predict_forward.limits)
        predict_batches = [[rows[index] for index in batch] for batch in sample]

        raw, predict = self._raw.begin(texts), self._predict.begin(texts)
        passes: list[tuple[float, Pass]] = []
        for batch in raw_batches:
            seconds = predicted_cost(raw_lengths, [batch], self._raw_cost)
            passes.append((seconds, partial(self._raw.run, raw, texts, batch)))
        for batch in predict_batches:
            seconds = predicted_cost(predict_lengths, [batch], self._predict_cost)
            passes.append((seconds, partial(self._predict.run, predict, texts, batch)))
        self._lanes.run(run for _, run in sorted(passes, key=itemgetter(0), reverse=True))
        # A row that no batch held would be published with NaN for logits.
        assert (raw.failed | (raw.batch_of >= 0)).all(), "a text was in no batch"
        derive(raw, predict, np.flatnonzero(~chosen))
        return raw, predict

    def _log_errors(self, path: str, tweets: Sequence[Item], seen: Observations) -> None:
        """Log the first text that made a path raise, and how many did. The text itself only under `log_text`."""
        rows = np.flatnonzero(seen.failed & ~seen.derived)
        if not rows.size:
            return
        item, error = tweets[rows[0]], seen.errors[rows[0]]
        at = f"{item.topic}/{item.partition}/{item.offset}"
        text = {"text": item.text.content} if self._settings.log_text else {}
        log.warning("a path raised", path=path, texts=int(rows.size), first=at, error=error, **text)


def _limits(path: PathSettings, can_batch: bool) -> Limits:
    """Without a padding token, texts run one by one, as the stock pipeline requires."""
    return Limits(path.max_batch_items if can_batch else 1, path.max_batch_tokens)
