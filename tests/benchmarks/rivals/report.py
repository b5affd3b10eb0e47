"""What was measured, as a Markdown table, as JSON and as a chart."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import description

PACKAGES = ("transformers", "ray", "kafka-python")


@dataclass
class Row:
    """A contestant's rates, one per repetition."""

    name: str
    title: str
    delivery: str
    tweets: int = 0  #: of the last repetition
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rates)


@dataclass
class Report:
    rows: list[Row]
    dtype: str
    base: str = "exactly-once"  #: the row that the others are compared with
    reference: str = "limit"

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Median of the ratios within each repetition; None where one of them did not take part."""
        rates = {row.name: row.rates for row in self.rows}
        pairs = list(zip(rates.get(numerator, []), rates.get(denominator, []), strict=False))
        return statistics.median(one / other for one, other in pairs) if pairs else None

    def markdown(self) -> str:
        repetitions = max(len(row.rates) for row in self.rows)
        lines = [
            f"Medians of {repetitions} alternating repetitions, {self.dtype}, one Apache Kafka broker. {machine()}.",
            "",
            "| | delivery | tweets | tweets/s | lowest to highest | of the reference | twinlens is |",
            "|---|---|--:|--:|--:|--:|--:|",
        ]
        for row in self._measured():
            share = self.ratio(row.name, self.reference)
            times = None if row.name == self.base else self.ratio(self.base, row.name)
            spread = f"{min(row.rates):,.0f} to {max(row.rates):,.0f}"
            lines.append(
                f"| {row.title} | {row.delivery} | {row.tweets:,} | {row.median:,.0f} | {spread} | "
                f"{'' if share is None else f'{share:.0%}'} | {'' if times is None else f'{times:.2f} times as fast'} |"
            )
        lines += ["", "Audited: the pipeline runs on a sample; the other predictions are derived from the logits."]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """`rivals.md`, `rivals.json`, and `rivals.svg` where matplotlib is installed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rivals.md").write_text(self.markdown() + "\n")
        content = {"machine": machine(), "dtype": self.dtype, "rows": [self._json(row) for row in self._measured()]}
        (folder / "rivals.json").write_text(json.dumps(content, indent=1) + "\n")
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print("no chart: matplotlib is not installed (make venv-bench)")
            return
        self._draw(Figure(figsize=(9, 0.5 + 0.42 * len(self._measured())), layout="constrained"), folder / "rivals.svg")

    def _measured(self) -> list[Row]:
        return [row for row in self.rows if row.rates]

    def _json(self, row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            "title": row.title,
            "delivery": row.delivery,
            "tweets": row.tweets,
            "tweets_per_s": row.rates,
            "median_tweets_per_s": row.median,
            "of_the_reference": self.ratio(row.name, self.reference),
            "twinlens_times_as_fast": self.ratio(self.base, row.name),
        }

    def _draw(self, figure: Any, file: Path) -> None:
        rows = self._measured()[::-1]  # bars are stacked from the bottom
        axes = figure.subplots()
        medians = [row.median for row in rows]
        low = [row.median - min(row.rates) for row in rows]
        high = [max(row.rates) - row.median for row in rows]
        colors = [
            "0.8" if row.name == self.reference else "C0" if row.title.startswith("twinlens") else "C1" for row in rows
        ]
        bars = axes.barh([row.title for row in rows], medians, xerr=[low, high], color=colors, ecolor="0.3")
        axes.bar_label(bars, fmt="{:,.0f}", padding=4)
        axes.set_xlabel(f"tweets per second, both paths, {self.dtype} (lines: lowest to highest)")
        axes.set_xlim(0, 1.12 * max(max(row.rates) for row in rows))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, metadata={"Date": None})


def machine() -> str:
    """Processor, Python and the packages that matter."""
    return ", ".join([description(), *(f"{name} {version(name)}" for name in PACKAGES)])
