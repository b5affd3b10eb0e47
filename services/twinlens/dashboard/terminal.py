"""Turns the monitor's view into something that rich can print on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from twinlens.monitor.summary import ALL, WindowSummary
from twinlens.monitor.view import View
from twinlens.records import DivergenceRecord, PathView

RECENT_SHOWN = 6
UNKNOWN = "·"


def render(view: View, status: str = "") -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [
        _title(view, status),
        Columns([_windows(view), _labels(view.summary.windows[ALL])], padding=(0, 2)),
        _recent(view.recent[-RECENT_SHOWN:]),
    ]
    return Group(*parts)


def _title(view: View, status: str) -> RenderableType:
    summary = view.summary
    lag = UNKNOWN if view.lag is None else f"{sum(view.lag.values()):,}"
    line = Text.assemble(
        ("twinlens ", "bold"), summary.application, "   lag ", (lag, "bold"), " records   ", (status, "dim")
    )
    if summary.alert_active:
        alert = summary.alerts[-1]
        line.append(
            f"\nALERT: the divergence rate exceeds its limit ({_percent(alert.rate)} in the minute before it)",
            "bold red",
        )
    elif summary.alerts:
        line.append(f"\n{len(summary.alerts)} past alert(s)", "yellow")
    if sample := _sample(summary.windows[ALL]):
        line.append(f"\ncompared: {sample}; rates and intervals are those of this sample")
    if view.snapshot.lost_offsets:
        line.append(
            f"\nup to {view.snapshot.lost_offsets:,} comparisons were removed before they were counted", "yellow"
        )
    if view.snapshot.error is not None:
        line.append(f"\nno snapshot is written: {view.snapshot.error}", "yellow")
    return line


def _sample(window: WindowSummary) -> str:
    """How many of the published tweets were compared; empty if all were."""
    compared, published = window.tally.tweets, window.published
    return f"{compared:,} of {published:,} tweets ({100 * compared / published:.1f} %)" if compared < published else ""


def _windows(view: View) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    windows = view.summary.windows
    for name in windows:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[WindowSummary], str]] = {
        "tweets": lambda w: f"{w.published:,}",
        "  compared": lambda w: f"{w.tally.tweets:,}",
        "tweets/s": lambda w: _number(w.tweets_per_s, "{:,.0f}"),
        "dead letters": lambda w: f"{sum(w.refused.values()):,}",
        "agreement": lambda w: _percent(None if w.tally.rate is None else 1 - w.tally.rate),
        "divergence": lambda w: _percent(w.tally.rate),
        "  95 % interval": lambda w: f"{_percent(w.tally.low)}-{_percent(w.tally.high)}" if w.tally.tweets else UNKNOWN,
        "  label": lambda w: f"{w.tally.label:,}",
        "  score": lambda w: f"{w.tally.score:,}",
        "  one-sided": lambda w: f"{w.tally.one_sided:,}",
        "score delta p99": lambda w: _number(w.score_delta["p99"], "{:.4f}"),
        "latency p50": lambda w: _number(w.latency_s["p50"], "{:.2f} s"),
        "latency p99": lambda w: _number(w.latency_s["p99"], "{:.2f} s"),
        "batch size": lambda w: _number(w.batch_size_mean, "{:.0f}"),
    }
    if not any(_sample(window) for window in windows.values()):
        del rows["  compared"]
    for name, cell in rows.items():
        table.add_row(name, *(cell(window) for window in windows.values()))
    return table


def _labels(window: WindowSummary) -> Table:
    table = Table(title="raw (down) x predict (across)", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    names = sorted({*window.labels, *(name for row in window.labels.values() for name in row)})
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for raw in names:
        row = window.labels.get(raw, {})
        cells = [
            Text(f"{row.get(name, 0):,}", "" if raw == name or not row.get(name) else "bold red") for name in names
        ]
        table.add_row(raw, *cells)
    for cause, count in sorted(window.causes.items(), key=lambda pair: -pair[1]):
        table.add_row(Text(f"cause: {cause}", "dim"), Text(f"{count:,}", "dim"))
    return table


def _recent(records: list[DivergenceRecord]) -> RenderableType:
    if not records:
        return Text("no diverging tweet yet", "dim")
    table = Table(expand=True, box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("diverging tweet", ratio=1, no_wrap=True)
    table.add_column("raw path", no_wrap=True)
    table.add_column("predict path", no_wrap=True)
    table.add_column("cause", no_wrap=True)
    for record in reversed(records):
        style = "bold" if record.verdict == "label" else ""
        table.add_row(
            Text(" ".join((record.text or record.id).split())), Text(_side(record.raw), style),
            Text(_side(record.predict), style), Text(record.cause),
        )  # fmt: skip
    return Panel(table, title="newest first", padding=(0, 1))


def _side(side: PathView) -> str:
    return side.error.type if side.error is not None else f"{side.label} {_number(side.score, '{:.4f}')}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.2f} %"


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
