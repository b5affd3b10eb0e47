"""Comparison records made by hand and by hypothesis, and states folded from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from twinlens.monitor.state import State
from twinlens.monitor.statistics import RateDetector
from twinlens.monitor.summary import Summary
from twinlens.records import ComparisonRecord, ModelId, Tally
from twinlens.sketch import histogram

NOW = 1_700_000_000_000
MINUTE = 60_000
MODEL = ModelId("demo", "1")
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine


def comparison(first: int = 0, last: int = 9, **changes: Any) -> ComparisonRecord:
    fields: dict[str, Any] = {
        "application": "twinlens",
        "replica": "r0",
        "window": f"r0-{first}",
        "source_topic": "tweets",
        "source_partition": 0,
        "first_offset": first,
        "last_offset": last,
        "published_at_ms": NOW,
        "raw_model": MODEL,
        "predict_model": MODEL,
        "tally": Tally(tweets=last - first + 1),
    }
    return ComparisonRecord(**{**fields, **changes})


def new_state(run_length: int = 50) -> State:
    return State(application="twinlens", detector=RateDetector(baseline_rate=0.05, run_length_tweets=run_length))


def folded(records: Sequence[ComparisonRecord], state: State | None = None) -> State:
    state = state or new_state()
    for record in records:
        state.fold(record)
    return state


def through_json(state: State) -> State:
    return msgspec.json.decode(msgspec.json.encode(state), type=State)


small = st.integers(0, 20)
sketches = st.lists(st.floats(0, 100), max_size=4).map(histogram)
names = st.sampled_from(["a", "b", "c"])
tallies = st.builds(Tally, tweets=st.integers(60, 80), label=small, score=small, one_sided=small, both_failed=small)


@st.composite
def one_partition(draw: st.DrawFn, partition: int) -> list[ComparisonRecord]:
    """Records of a partition in order; some windows are redone, wholly or from the middle on."""
    records, position = [], 0
    for number in range(draw(st.integers(0, 6))):
        first = max(0, position - draw(st.sampled_from([0, 0, 0, 50, 200])))
        last = first + draw(st.integers(60, 120))
        position = max(position, last + 1)
        replica = draw(names)
        records.append(
            comparison(
                first,
                last,
                replica=replica,
                window=f"{replica}-{number}",
                source_partition=partition,
                published_at_ms=NOW + draw(st.integers(-70 * MINUTE, MINUTE)),
                raw_model=ModelId("demo", draw(names)),
                tally=draw(tallies),
                derived=draw(small),
                refused=draw(st.dictionaries(names, small)),
                labels=draw(st.dictionaries(names, st.dictionaries(names, small, max_size=2), max_size=2)),
                by_length=draw(st.dictionaries(st.sampled_from(["16", "128"]), tallies)),
                causes=draw(st.dictionaries(names, small)),
                score_delta=draw(sketches),
                latency_s=draw(sketches),
                batch_sizes=draw(st.dictionaries(st.integers(1, 64), small, max_size=2)),
                tokens=draw(small),
                padded_tokens=draw(st.integers(20, 40)),
                compute_s=draw(st.floats(0, 10)),
            )
        )
    return records


@st.composite
def topics(draw: st.DrawFn) -> list[list[ComparisonRecord]]:
    return [draw(one_partition(partition)) for partition in range(draw(st.integers(1, 3)))]


@st.composite
def interleaved(draw: st.DrawFn, partitions: list[list[ComparisonRecord]]) -> list[ComparisonRecord]:
    """One order in which a reader may see the partitions: each by itself keeps its own."""
    owners = [owner for owner, records in enumerate(partitions) for _ in records]
    rest = [iter(records) for records in partitions]
    return [next(rest[owner]) for owner in draw(st.permutations(owners))]


def without_alerts(seen: Summary) -> Summary:
    return msgspec.structs.replace(seen, alerts=[], alert_active=False)
