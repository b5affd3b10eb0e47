"""Plots of what was measured, where matplotlib is installed and TWINLENS_BENCH_REPORT names a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.benchmarks import report


@contextlib.contextmanager
def figure(file: str, rows: int = 1) -> Iterator[Any]:
    """A column of `rows` plots with one x axis, written at the end of the block; None where there is to be none."""
    folder = report.folder()
    if folder is None:
        yield None
        return
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"{file} is not drawn: matplotlib is not installed")
        yield None
        return
    mpl.use("svg")
    from matplotlib import pyplot

    # Text stays text, and no date: the same measurement gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": file, "axes.grid": True, "grid.alpha": 0.3}):
        drawn, axes = pyplot.subplots(rows, sharex=True, figsize=(7, 1.6 + 2.2 * rows), squeeze=False)
        try:
            yield [row[0] for row in axes]
            drawn.tight_layout()
            drawn.savefig(folder / file, metadata={"Date": None})
        finally:
            pyplot.close(drawn)


def latency(file: str, stages: list[dict[str, Any]], objective_ms: float) -> None:
    """Percentiles against offered load."""
    with figure(file) as axes:
        if axes is None:
            return
        (plot,) = axes
        percents = [stage["percent"] for stage in stages]
        for name in ("max", "p99", "p90", "p50"):
            plot.plot(percents, [stage[f"{name}_ms"] for stage in stages], marker="o", label=name)
        plot.axhline(objective_ms, color="black", linestyle="--", linewidth=1, label="objective")
        plot.set(xlabel="offered load, % of capacity", ylabel="latency, ms", yscale="log")
        plot.legend()


def step(file: str, seconds: list[dict[str, Any]], objective_ms: float) -> None:
    """Rates, lag and latency by second."""
    with figure(file, rows=3) as axes:
        if axes is None:
            return
        rates, lag, latency_ms = axes
        at = [second["second"] for second in seconds]
        for name in ("offered", "published"):
            rates.plot(at, [second[name] for second in seconds], label=name)
        rates.set(ylabel="tweets/s")
        rates.legend()
        lag.plot(at, [second["lag"] for second in seconds])
        lag.set(ylabel="lag, tweets")
        seen = [second for second in seconds if second["p99_ms"] is not None]
        latency_ms.plot([second["second"] for second in seen], [second["p99_ms"] for second in seen], marker=".")
        latency_ms.axhline(objective_ms, color="black", linestyle="--", linewidth=1)
        latency_ms.set(xlabel="s", ylabel="p99 latency, ms", yscale="log")
