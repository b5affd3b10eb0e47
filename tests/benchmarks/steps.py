"""CPU time of one replica by step, on a backlog. Run as a program with settings as JSON and a number of tweets, it
prints microseconds per tweet as JSON on the last line.

CPU time is that of threads, so what other processes do does not show. Within a thread, the calls of the tokenizer and
the model are timed, and the rest is the step that the thread is there for. torch has one thread, the one that calls.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 1_000  #: tweets
MEASURING = "measuring"  #: the line that says that the warm-up is over


def thread_cpu_s() -> dict[str, float]:
    """CPU seconds of every thread that Python knows, by name without what is the client's own number."""
    found: Counter[str] = Counter()
    for thread in threading.enumerate():
        name = thread.name.split("[")[0]
        text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
        found[name] += int(text.split()[0]) / 1e9
    return dict(found)


class Stopwatch:
    """CPU seconds of the calling thread within the calls that it wraps, those they call included, by name."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        real = getattr(owner, attribute)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.thread_time()
            try:
                return real(*arguments, **keywords)
            finally:
                self.spent[name] += time.thread_time() - start

        setattr(owner, attribute, timed)


def measure(arguments: str, count: int) -> dict[str, Any]:
    """Microseconds per tweet by step."""
    os.environ |= {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    import torch
    from kafka import KafkaConsumer

    from twinlens.paths.predict import ObservedPipeline
    from twinlens.paths.raw import RawPath
    from twinlens.paths.tokenize import RawTokenizer
    from twinlens.replica.decode import Decoder
    from twinlens.replica.inference import Inference
    from twinlens.replica.outputs import OutputWriter
    from twinlens.replica.replica import new_replica
    from twinlens.settings import Settings

    torch.set_num_threads(1)
    done = [0]

    def observe(report: Any) -> None:
        done[0] += report.tweets

    watch = Stopwatch()
    watch.wrap(KafkaConsumer, "poll", "poll")
    watch.wrap(RawTokenizer, "tokenize", "tokenizer")
    watch.wrap(Decoder, "__call__", "decode")
    watch.wrap(RawPath, "forward", "raw forward")
    watch.wrap(Inference, "decide", "draw")
    watch.wrap(ObservedPipeline, "__call__", "pipeline")
    watch.wrap(OutputWriter, "records", "encode")
    replica = new_replica(Settings.load(json.loads(arguments)), "measured", observe=observe)
    replica.start()
    _wait(lambda: done[0] >= WARM_UP, replica)
    print(MEASURING, flush=True)
    first, before, spent = done[0], thread_cpu_s(), watch.spent.copy()
    start = time.monotonic()
    _wait(lambda: done[0] >= count, replica)
    seconds, tweets = time.monotonic() - start, done[0] - first
    after = thread_cpu_s()
    replica.check_health()
    replica.stop()
    threads = {name: (after[name] - before.get(name, 0.0)) / tweets * 1e6 for name in after}
    calls = {name: (total - spent[name]) / tweets * 1e6 for name, total in watch.spent.items()}
    return {"tweets_per_s": tweets / seconds, "threads": threads, "calls": calls}


def _wait(condition: Callable[[], bool], replica: Any) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        replica.check_health()
        assert time.monotonic() < deadline, "the replica did not get through"
        time.sleep(0.05)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
