"""What a benchmark ran on, and where the CPU time went while it ran: read from /proc."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CPUS = len(os.sched_getaffinity(0))
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PERIOD_S = 0.5


def description() -> str:
    """CPU model, cores, Python, torch."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{model}, {CPUS} cores, Python {platform.python_version()}, torch {torch.__version__}"


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds up to a moment."""

    at_s: float  #: wall clock, since published records tell wall-clock times
    busy_s: float  #: of the whole machine, whoever used them
    stolen_s: float  #: taken by the hypervisor: the machine was slower than it says
    of_process: dict[int, tuple[str, float]]  #: what it is, and its seconds; this process and its descendants

    @classmethod
    def now(cls) -> Self:
        busy_s, stolen_s = _machine()
        return cls(time.time(), busy_s, stolen_s, _processes())


@dataclass(frozen=True)
class CpuUse:
    """Cores in use between two moments, on average."""

    busy: float  #: of the whole machine
    stolen: float
    by_kind: dict[str, float]  #: `other` is what this process and its descendants did not use

    @classmethod
    def between(cls, first: CpuTimes, last: CpuTimes) -> Self:
        seconds = max(last.at_s - first.at_s, 1e-9)
        busy = (last.busy_s - first.busy_s) / seconds
        kinds: dict[str, float] = {}
        for process, (kind, spent_s) in last.of_process.items():
            before_s = first.of_process.get(process, (kind, 0.0))[1]
            kinds[kind] = kinds.get(kind, 0.0) + max(0.0, spent_s - before_s) / seconds
        kinds["other"] = max(0.0, busy - sum(kinds.values()))
        return cls(busy, (last.stolen_s - first.stolen_s) / seconds, kinds)

    @property
    def own(self) -> float:
        """Of this process and its descendants."""
        return sum(cores for kind, cores in self.by_kind.items() if kind != "other")

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {cores:.2f}" for kind, cores in sorted(self.by_kind.items()) if cores >= 0.005)
        stolen = f"; {self.stolen:.2f} stolen" if self.stolen >= 0.005 else ""
        return f"{self.busy:.2f} of {CPUS} cores ({parts}{stolen})"


class CpuSampler:
    """Takes the times twice a second within a `with` block, for intervals that are known only afterwards."""

    def __init__(self) -> None:
        self._samples = [CpuTimes.now()]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def between(self, first_s: float, last_s: float) -> CpuUse:
        """Of the samples that are next to these moments."""
        first, last = (min(self._samples, key=lambda sample: abs(sample.at_s - at_s)) for at_s in (first_s, last_s))
        return CpuUse.between(first, last)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._samples.append(CpuTimes.now())


def _machine() -> tuple[float, float]:
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S


def _processes() -> dict[int, tuple[str, float]]:
    """This process and its descendants (Ray, the broker and the load are among them)."""
    found: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            found[int(folder.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S)
    own = os.getpid()
    return {
        process: (_kind(process), spent_s) for process, (_, spent_s) in found.items() if _descends(process, own, found)
    }


def _descends(process: int, ancestor: int, found: dict[int, tuple[int, float]]) -> bool:
    while process != ancestor:
        if process not in found:
            return False
        process = found[process][0]
    return True


def _kind(process: int) -> str:
    if process == os.getpid():
        return "benchmark"
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"
    if named := NAMES.get(process):
        return named
    if command.startswith("ray::ServeReplica:"):
        return {"Replica": "replicas", "Monitor": "monitor"}.get(command.split(":")[4].split(".")[0].strip(), "Ray")
    if "kafka.Kafka" in command:
        return "broker"
    return "Ray"


NAMES: dict[int, str] = {}  #: processes of the benchmark's own, by their id
