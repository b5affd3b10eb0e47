"""The experiment: tweets stream while faults strike, at moments and in an order that the seed decides; then all is
counted.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from kafka.errors import KafkaError
from ray.exceptions import RayError

from tests.chaos.faults import FAULTS
from tests.chaos.stream import Progress, Stream
from tests.chaos.system import System
from tests.chaos.verify import problems
from tests.support.replicas import wait_until
from twinlens import audit
from twinlens.cli.watch import fetch
from twinlens.errors import AskUser, TwinlensError
from twinlens.monitor.view import View

RATE = 110.0  #: tweets per second
PAUSE_S = (0.0, 4.0)  #: between two faults
PATIENCE_S = 60.0  #: where a fault waits for the recovery from the one before
CATCH_UP_S = 300.0
COUNTED_S = 120.0


@dataclass
class Strike:
    """A fault on the timeline. Times are in seconds from the start; the recovery counts from `at_s`."""

    kind: str
    at_s: float
    lag: int  #: acknowledged records that were not committed
    committed: int  #: sum of the group's offsets
    detail: str = ""
    until_s: float = 0.0
    first_commit_s: float | None = None
    recovery_s: float | None = None  #: to the first new commit on every partition
    standstill_s: float = 0.0  #: the longest of a partition that began before the next fault


@dataclass
class Report:
    """What came out. `problems` must be empty."""

    seed: int
    strikes: list[Strike] = field(default_factory=list)
    tweets: int = 0
    poison: int = 0
    streamed_s: float = 0.0
    drained_s: float = 0.0  #: from the end of the stream until everything was committed
    audit: audit.Report | None = None
    view: View | None = None
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Seed, timeline, problems: all that is needed to look for the cause."""
        lines = [f"seed {self.seed}: {self.tweets:,} tweets, {self.poison:,} poison, {len(self.strikes)} faults"]
        lines += [
            f"{s.at_s:7.1f} s  {s.kind:24} {s.detail:48} lag {s.lag:6,}  committed {s.committed:8,}  "
            f"until {s.until_s:6.1f}  first commit {_s(s.first_commit_s)}  recovered {_s(s.recovery_s)}  "
            f"standstill {_s(s.standstill_s)}"
            for s in self.strikes
        ]
        if self.audit is not None:
            lines.append(f"audit: {msgspec.to_builtins(msgspec.structs.replace(self.audit, examples=[]))}")
        lines.append(f"streamed {self.streamed_s:.0f} s, drained in {self.drained_s:.0f} s")
        return "\n".join([*lines, *self.problems])


def chosen(rng: random.Random, kinds: Sequence[str]) -> Iterator[str]:
    """Kinds without end, in shuffled rounds: each occurs once before any occurs again."""
    while True:
        yield from rng.sample(kinds, len(kinds))


def experiment(system: System, seed: int, tweets: int, faults: int, kinds: Sequence[str] = tuple(FAULTS)) -> Report:
    """Run it. The report is filled also where something fails on the way: `problems` then ends with what it was."""
    report, rng, start_s = Report(seed), random.Random(seed), time.monotonic()
    stream = Stream(system.settings, RATE, tweets)
    progress = Progress(system.settings, start_s)
    try:
        wait_until(lambda: sum(progress.committed().values()) > 0, "the first commit")
        for _, kind in zip(range(faults), chosen(rng, kinds), strict=False):
            _strike(system, stream, progress, rng, kind, report, start_s)
        stream.finish()
        report.streamed_s = time.monotonic() - start_s
        wait_until(lambda: progress.committed() == stream.ends(), "everything committed", CATCH_UP_S)
        report.drained_s = time.monotonic() - start_s - report.streamed_s
    except (AssertionError, TwinlensError, KafkaError, RayError, OSError) as error:
        report.problems.append(f"{type(error).__name__}: {error}")
    finally:
        system.proxy.disarm()
        stream.finish()
        progress.finish()
    for strike in report.strikes:
        strike.first_commit_s, strike.recovery_s = progress.recovery_s(strike.at_s)
    for strike, following in itertools.zip_longest(report.strikes, report.strikes[1:]):
        until_s = report.streamed_s if following is None else following.at_s
        strike.standstill_s = progress.standstill_s(strike.at_s, until_s)
    _judge(system, stream, report)
    return report


def _strike(
    system: System,
    stream: Stream,
    progress: Progress,
    rng: random.Random,
    kind: str,
    report: Report,
    start_s: float,
) -> None:
    """One fault and the pause after it; every other one may be recovered from, the next strikes in the middle."""
    time.sleep(rng.uniform(*PAUSE_S))
    committed = sum(progress.committed().values())
    strike = Strike(kind, time.monotonic() - start_s, sum(stream.ends().values()) - committed, committed)
    report.strikes.append(strike)
    strike.detail = FAULTS[kind](system, stream, rng)
    strike.until_s = time.monotonic() - start_s
    print(strike, flush=True)
    if rng.random() < 0.5:
        end = time.monotonic() + PATIENCE_S
        while progress.recovery_s(strike.at_s)[1] is None and time.monotonic() < end:
            time.sleep(0.1)


def _judge(system: System, stream: Stream, report: Report) -> None:
    """Compare what was sent, what the topics hold, what the audit finds and what the monitor counted."""
    sent = stream.acknowledged
    report.poison = sum(reason is not None for reason in sent.values())
    report.tweets = len(sent) - report.poison
    if stream.failed:
        report.problems.append(f"{len(stream.failed)} records were not acknowledged: {stream.failed[0]!r}")
    report.problems += problems(system.settings, sent)
    found = report.audit = audit.audit(system.settings)
    if not found.clean or (found.consumed, found.published, found.dead_lettered) != (
        len(sent),
        report.tweets,
        report.poison,
    ):
        report.problems.append(f"the audit finds another number: {found}")
    try:
        wait_until(lambda: _counts(system) == _expected(found), "the monitor has counted", COUNTED_S)
        report.view = fetch(system.url)
    except (AssertionError, AskUser) as error:
        report.problems.append(f"the monitor counts {_counts(system)}, the audit {_expected(found)}: {error}")


Counts = tuple[int, int, int, int, int]


def _expected(found: audit.Report) -> Counts:
    return (found.published, found.label_divergences, found.score_divergences, found.one_sided, found.dead_lettered)


def _counts(system: System) -> Counts | None:
    """What the monitor counts; None while it does not answer or has seen something twice."""
    try:
        summary = fetch(system.url).summary
    except AskUser:
        return None
    if summary.repeated or summary.overlapping_tweets:
        return None
    whole = summary.windows["all"]
    tally = whole.tally
    return (tally.tweets, tally.label, tally.score, tally.one_sided, sum(whole.refused.values()))


def _s(seconds: float | None) -> str:
    return "   never" if seconds is None else f"{seconds:6.1f} s"
