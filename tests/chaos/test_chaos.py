"""Whatever dies and whenever: every acknowledged record comes out once, and the monitor counts what the audit finds.

By the environment: `TWINLENS_CHAOS_SEED` repeats a run, `TWINLENS_CHAOS_TWEETS` and `TWINLENS_CHAOS_FAULTS` make it
longer, `TWINLENS_CHAOS_KINDS` (names of `tests.chaos.faults`, by commas) restricts the faults, `TWINLENS_CHAOS_LOGS`
names a folder for the logs of Ray's processes, `TWINLENS_CHAOS_REPORT` a file for the report in Markdown.
"""

from __future__ import annotations

import gc
import logging
import os
import random
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.markdown import markdown
from tests.chaos.run import experiment
from tests.chaos.system import running_system
from tests.conftest import ModelFolder
from tests.support.apache_kafka import kafka_home

TWEETS = int(os.environ.get("TWINLENS_CHAOS_TWEETS") or 20_000)
STRIKES = int(os.environ.get("TWINLENS_CHAOS_FAULTS") or 20)


@pytest.mark.chaos
@pytest.mark.kafka
@pytest.mark.timeout(600 + 15 * STRIKES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed.*socket:ResourceWarning")  # kafka-python's, of brokers that were away
def test_every_tweet_comes_out_once_whatever_dies(model_folder: ModelFolder) -> None:
    home = kafka_home()
    if home is None:
        reason = "no KAFKA_HOME with java: brokers of our own are to be killed"
        pytest.fail(reason) if os.environ.get("TWINLENS_REQUIRE_KAFKA") == "1" else pytest.skip(reason)
    seed = int(os.environ.get("TWINLENS_CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    kinds = [name for name in os.environ.get("TWINLENS_CHAOS_KINDS", "").split(",") if name] or list(FAULTS)
    logs = os.environ.get("TWINLENS_CHAOS_LOGS")
    # Of brokers that are away it says much; and tracebacks in the captured log would keep its sockets open.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    print(f"TWINLENS_CHAOS_SEED={seed}")
    with running_system(home, model_folder(), Path(logs) if logs else None) as system:
        report = experiment(system, seed, TWEETS, STRIKES, kinds)
        gc.collect()
    print(report.text())
    if file := os.environ.get("TWINLENS_CHAOS_REPORT"):
        Path(file).write_text(markdown(report))
    assert not report.problems
