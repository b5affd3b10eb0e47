"""The report of a run as Markdown, for docs/reliability.md."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.run import Report, Strike


def markdown(report: Report) -> str:
    """Seed, counts and a table of recovery times by kind of fault."""
    found = report.audit
    counts = [
        ("seed", str(report.seed)),
        ("faults", f"{len(report.strikes):,}"),
        ("tweets acknowledged by Kafka", f"{report.tweets:,}"),
        ("records that no tweet can be read from, acknowledged", f"{report.poison:,}"),
        ("published on both output topics", "unknown" if found is None else f"{found.published:,}"),
        ("dead letters", "unknown" if found is None else f"{found.dead_lettered:,}"),
        ("missing", "unknown" if found is None else f"{found.missing:,}"),
        ("duplicate", "unknown" if found is None else f"{found.duplicate:,}"),
        ("monitor's counts equal the audit's", "no" if report.view is None else "yes"),
        ("problems", f"{len(report.problems)}"),
        ("duration", f"{report.streamed_s / 60:.0f} min, then {report.drained_s:.0f} s to commit the rest"),
        ("machine", machine()),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in counts), ""]
    lines += [
        "Recovery: seconds from a fault to the first new commit on every partition. Standstill: the longest time that "
        "a partition was without a new commit, for standstills that began before the next fault. About every second "
        "fault is injected before the system has recovered from the one before.",
        "",
        "| fault | count | recovery: median | p90 | max | standstill: median | p90 | max |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in sorted({strike.kind for strike in report.strikes}):
        lines.append(_row(kind, [strike for strike in report.strikes if strike.kind == kind]))
    lines.append(_row("all", report.strikes))
    return "\n".join([*lines, *(f"\n    {problem}" for problem in report.problems), ""])


def machine() -> str:
    """Processor, cores and memory, in words."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({name}), {memory_gib:.0f} GiB, Python {platform.python_version()}"


def _row(kind: str, strikes: Sequence[Strike]) -> str:
    recoveries = [strike.recovery_s for strike in strikes if strike.recovery_s is not None]
    standstills = [strike.standstill_s for strike in strikes]
    cells = [*_quantiles(recoveries), *_quantiles(standstills)]
    return f"| {kind.replace('_', ' ')} | {len(strikes)} | {' | '.join(cells)} |"


def _quantiles(seconds: Sequence[float]) -> list[str]:
    """Median, p90 and maximum."""
    if not seconds:
        return ["never"] * 3
    ordered = sorted(seconds)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return [f"{value:.1f}" for value in (statistics.median(ordered), p90, ordered[-1])]
