"""The metrics of the replicas. Ray exports them at the Prometheus endpoint of every node.

Ray adds the prefix `ray_` to their names, and `_total` to the names of counters. Serve adds the tags application,
deployment and replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ray.serve.metrics import Counter, Gauge, Histogram

from twinlens.replica.report import PathWork, WindowReport

PREFIX = "twinlens_"
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
RECORDS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0]


class ReplicaMetrics:
    """The publish thread calls it with the report of every window. Create it inside a Serve replica."""

    def __init__(self) -> None:
        self._windows = _counter(
            "windows", "Windows by why they had their size, and what became of them.", "reason", "outcome"
        )
        self._tweets = _counter("published_tweets", "Tweets published to both output topics.")
        self._refused = _counter("dead_letters", "Records published to the dead-letter topic.")
        self._records = _histogram("window_records", "Records of a window.", RECORDS)
        self._delay = _histogram(
            "queue_delay_seconds", "From a record's timestamp until its window was drawn, for the oldest.", SECONDS
        )
        self._publish = _histogram("publish_seconds", "Encoding, sending and committing a window.", SECONDS)
        self._compute = _counter("compute_seconds", "What windows took to compute.")
        self._predicted = _counter("predicted_compute_seconds", "What the cost model had predicted for them.")
        self._window_error = _gauge("window_relative_error", "As cost_relative_error, of whole windows.")
        self._overhead = _gauge("window_overhead", "Seconds of windows, relative to the cost model's bare passes.")
        self._reserve = _gauge("publish_reserve_seconds", "Set aside of the latency objective for publishing a window.")
        self._tokens = _counter("tokens", "Tokens that went through a path's model, without padding.", "path")
        self._padding = _counter("padding_tokens", "Padding that went through a path's model.", "path")
        self._forward = _counter("forward_seconds", "What a path's passes took.", "path")
        self._forward_predicted = _counter(
            "predicted_forward_seconds", "What the cost model had predicted for them.", "path"
        )
        self._coefficient = _gauge(
            "cost_coefficient", "Of seconds = c0 + c1*n*L + c2*n*L^2, n texts of L tokens.", "path", "term"
        )
        self._error = _gauge("cost_relative_error", "Mean of |actual - predicted| / actual, lately.", "path")

    def __call__(self, report: WindowReport) -> None:
        dispatch = report.dispatch
        outcome = "abandoned" if report.publish_s is None else "published"
        self._windows.inc(1, {"reason": dispatch.reason.value, "outcome": outcome})
        if report.publish_s is not None:
            _add(self._tweets, report.tweets)
            _add(self._refused, report.refused)
            self._publish.observe(report.publish_s)
        self._records.observe(report.tweets + report.refused)
        self._delay.observe(dispatch.queue_delay_s)
        _add(self._compute, report.compute_s)
        _add(self._predicted, dispatch.predicted_s)
        self._window_error.set(dispatch.relative_error)
        self._overhead.set(dispatch.overhead)
        self._reserve.set(dispatch.publish_reserve_s)
        for path, work in report.paths.items():
            self._path(path, work)

    def _path(self, path: str, work: PathWork) -> None:
        tags = {"path": path}
        _add(self._tokens, work.tokens, tags)
        _add(self._padding, work.padded_tokens - work.tokens, tags)
        _add(self._forward, work.seconds, tags)
        _add(self._forward_predicted, work.predicted_s, tags)
        for term, coefficient in zip(("c0", "c1", "c2"), work.coefficients, strict=True):
            self._coefficient.set(coefficient, {"path": path, "term": term})
        self._error.set(work.relative_error, tags)


def _add(counter: Counter, amount: float, tags: Mapping[str, str] = MappingProxyType({})) -> None:
    if amount > 0:  # Ray refuses to add 0
        counter.inc(amount, dict(tags))


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(PREFIX + name, description=description, tag_keys=tags)  # type: ignore[arg-type]  # Ray means tuple[str, ...]


def _gauge(name: str, description: str, *tags: str) -> Gauge:
    return Gauge(PREFIX + name, description=description, tag_keys=tags)  # type: ignore[arg-type]  # Ray means tuple[str, ...]


def _histogram(name: str, description: str, boundaries: list[float]) -> Histogram:
    return Histogram(PREFIX + name, description=description, boundaries=boundaries)
