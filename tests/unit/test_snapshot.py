"""A snapshot loses nothing, stays small, and going on from it gives what an uninterrupted fold gives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.comparisons import (
    NOW,
    comparison,
    folded,
    interleaved,
    new_state,
    topics,
    unhurried,
    without_alerts,
)
from twinlens.monitor.snapshot import VERSION, Snapshot, pack, to_msgpack, unpack
from twinlens.monitor.state import BUCKET_MS, KEPT_MS, State
from twinlens.monitor.statistics import RateDetector
from twinlens.monitor.summary import summary
from twinlens.records import ComparisonRecord, Tally
from twinlens.settings import KafkaSettings
from twinlens.sketch import histogram

SAME_SETTINGS = new_state().detector


def snapshot_of(state: State, positions: dict[int, int] | None = None, **changes: Any) -> Snapshot:
    fields: dict[str, Any] = {"topic": "tweets.comparisons", "topic_id": "1", "written_at_ms": NOW, **changes}
    return Snapshot(state=state, positions=positions or {0: 0}, **fields)


def stored(snapshot: Snapshot) -> Snapshot:
    return unpack(pack(to_msgpack(snapshot)))


class TestGoingOn:
    @unhurried
    @given(st.data())
    def test_from_any_cuts_is_the_uninterrupted_fold(self, data: st.DataObject) -> None:
        records = data.draw(interleaved(data.draw(topics())))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), min_size=1, max_size=3)))
        state = new_state()
        for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
            snapshot = snapshot_of(folded(records[start:end], state))
            assert stored(snapshot) == snapshot
            state = stored(snapshot).state_for(SAME_SETTINGS)
        straight = folded(records)
        assert state == straight
        assert msgspec.json.encode(summary(state, NOW)) == msgspec.json.encode(summary(straight, NOW))

    @unhurried
    @given(st.data())
    def test_from_its_positions_counts_every_record_once_in_whatever_order(self, data: st.DataObject) -> None:
        """As a monitor does: the partitions of the topic are read on from the positions, one ahead of the other."""
        partitions = data.draw(topics())
        read = [data.draw(st.integers(0, len(records))) for records in partitions]
        before = [records[:count] for records, count in zip(partitions, read, strict=True)]
        snapshot = stored(snapshot_of(folded(data.draw(interleaved(before))), dict(enumerate(read))))
        positions, lost = snapshot.start(dict.fromkeys(range(len(partitions)), 0))
        rest = [records[positions[number] :] for number, records in enumerate(partitions)]
        resumed = folded(data.draw(interleaved(rest)), snapshot.state_for(SAME_SETTINGS))
        straight = folded(data.draw(interleaved(partitions)))
        assert lost == 0
        assert resumed.repeated == straight.repeated
        assert resumed.buckets == straight.buckets
        assert without_alerts(summary(resumed, NOW)) == without_alerts(summary(straight, NOW))

    def test_offsets_that_retention_removed_are_told(self) -> None:
        snapshot = snapshot_of(new_state(), {0: 10, 1: 10})
        assert snapshot.start({0: 4, 1: 13, 2: 5}) == ({0: 10, 1: 13, 2: 5}, 3)

    def test_other_alert_settings_restart_the_detector_and_keep_the_counts(self) -> None:
        bad = [comparison(n * 10, n * 10 + 9, tally=Tally(tweets=10, label=5)) for n in range(5)]
        snapshot = snapshot_of(folded(bad))
        assert stored(snapshot).state_for(SAME_SETTINGS).detector == folded(bad).detector
        for other in (
            RateDetector(baseline_rate=0.5, run_length_tweets=SAME_SETTINGS.run_length_tweets),
            RateDetector(baseline_rate=SAME_SETTINGS.baseline_rate, run_length_tweets=10**9),
        ):
            state = stored(snapshot).state_for(other)
            assert state.detector == other
            assert state.total == folded(bad).total
            state.fold(comparison(100, 109))
            assert len(state.alerts) == 1
            assert not summary(state, NOW).alert_active, "an alert by settings of the past is over"


class TestWhatCannotBeUsed:
    @pytest.mark.parametrize(
        "value",
        [b"", b"{}", zlib.compress(b""), zlib.compress(b"\xc1"), zlib.compress(b"\x93\x01\x02\x03")]
        + [zlib.compress(msgspec.msgpack.encode(body)) for body in ([], {}, {"version": VERSION}, {"version": "1"})],
    )
    def test_is_a_value_error(self, value: bytes) -> None:
        with pytest.raises(ValueError, match="it cannot be read"):
            unpack(value)

    @given(st.binary(max_size=20), st.integers(0, 400))
    def test_is_a_value_error_whatever_is_broken(self, junk: bytes, at: int) -> None:
        good = pack(to_msgpack(snapshot_of(folded([comparison()]))))
        broken = good[:at] + junk + good[at + len(junk) + 1 :]
        plain = zlib.decompress(good)
        for value in (broken, zlib.compress(plain[:at] + junk + plain[at + len(junk) + 1 :])):
            with contextlib.suppress(ValueError):
                assert isinstance(unpack(value), Snapshot)

    def test_another_version_says_so(self) -> None:
        later = pack(to_msgpack(snapshot_of(new_state(), version=VERSION + 1)))
        with pytest.raises(ValueError, match=f"version {VERSION + 1}, not {VERSION}"):
            unpack(later)

    def test_what_is_stored_has_not_changed_under_the_same_version(self) -> None:
        """A field with a default may be added: then only the digest changes. Whatever else changes needs a VERSION."""
        shape = msgspec.json.schema(Snapshot)
        text = json.dumps(_without_descriptions(shape), sort_keys=True)
        assert (VERSION, hashlib.blake2b(text.encode(), digest_size=6).hexdigest()) == (1, "7ca392e2bedd")


def _without_descriptions(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_descriptions(inner) for name, inner in node.items() if name != "description"}
    return [_without_descriptions(inner) for inner in node] if isinstance(node, list) else node


def busy_hour(tweets_per_s: int, partitions: int, replicas: int) -> Sequence[ComparisonRecord]:
    """An hour in every bucket of which all partitions publish; score differences over six decades, three labels."""
    random = np.random.default_rng(0)
    labels = ("negative", "neutral", "positive")
    tweets = tweets_per_s * BUCKET_MS // 1_000 // partitions
    records = []
    for bucket in range(KEPT_MS // BUCKET_MS + 1):
        for partition in range(partitions):
            deltas = np.abs(random.normal(size=tweets)) * 10 ** random.uniform(-7, -1, tweets)
            matrix = random.multinomial(tweets, [0.3, 0.01, 0.01, 0.01, 0.3, 0.01, 0.01, 0.01, 0.34]).reshape(3, 3)
            records.append(
                comparison(
                    bucket * tweets,
                    bucket * tweets + tweets - 1,
                    source_partition=partition,
                    replica=f"twinlens-replica-{partition % replicas}",
                    published_at_ms=NOW + bucket * BUCKET_MS,
                    tally=Tally(tweets=tweets, label=tweets // 50, score=tweets // 20),
                    labels={
                        raw: dict(zip(labels, row, strict=True))
                        for raw, row in zip(labels, matrix.tolist(), strict=True)
                    },
                    by_length={bound: Tally(tweets=tweets // 4) for bound in ("<=16", "<=32", "<=64", "<=128")},
                    causes={"precision": tweets // 20, "truncation": 3},
                    score_delta=histogram(deltas),
                    latency_s=histogram(random.lognormal(-1, 0.7, tweets)),
                    batch_sizes=dict.fromkeys(random.integers(1, 64, 8).tolist(), 1),
                )
            )
    return records


def test_an_hour_of_a_busy_application_fits_in_a_record() -> None:
    state = folded(busy_hour(tweets_per_s=1_000, partitions=4, replicas=4))
    snapshot = snapshot_of(state)
    value = pack(to_msgpack(snapshot))
    assert len(state.buckets) == KEPT_MS // BUCKET_MS + 1
    assert unpack(value) == snapshot
    assert len(value) < KafkaSettings().max_request_bytes // 2, f"{len(value):,} bytes"
    assert len(value) < len(msgspec.json.encode(state)) / 5
