"""The terminal view shows what the monitor knows, also when it knows nothing."""

from __future__ import annotations

import io

from rich.console import Console

from twinlens.dashboard.terminal import render
from twinlens.monitor.state import Alert, State
from twinlens.monitor.statistics import RateDetector
from twinlens.monitor.summary import summary
from twinlens.monitor.view import SnapshotStatus, View
from twinlens.records import (
    Cause,
    Certainty,
    ComparisonRecord,
    DivergenceRecord,
    ModelId,
    PathError,
    PathView,
    SourceCoordinates,
    Tally,
    Verdict,
)

MODEL = ModelId("m", "1")


def text_of(state: State, *recent: DivergenceRecord, lag: dict[int, int] | None = None) -> str:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(
        render(View(summary=summary(state, 10_000), lag=lag, recent=list(recent), caught_up=True, unreadable=0), "now")
    )
    console.file.close()
    return console.export_text()


def test_what_endangers_the_counts_is_said() -> None:
    seen = View(
        summary=summary(state(), 10_000), lag=None, recent=[], caught_up=True, unreadable=0,
        snapshot=SnapshotStatus(lost_offsets=1_234, error="too large"),
    )  # fmt: skip
    with Console(record=True, width=160, file=io.StringIO()) as console:
        console.print(render(seen))
    shown = console.export_text()
    assert "up to 1,234 comparisons were removed before they were counted" in shown
    assert "no snapshot is written: too large" in shown


def state() -> State:
    return State(application="shop", detector=RateDetector(baseline_rate=0.01, run_length_tweets=1000))


def test_an_application_that_has_seen_nothing() -> None:
    shown = text_of(state())
    assert "shop" in shown
    assert "no diverging tweet yet" in shown
    assert "nan" not in shown.lower()
    assert "None" not in shown


def test_a_sample_is_shown_as_one() -> None:
    folded = state()
    fields = {"application": "shop", "replica": "r", "window": "r-1", "source_topic": "t", "source_partition": 0,
              "published_at_ms": 9_000, "raw_model": MODEL, "predict_model": MODEL}  # fmt: skip
    folded.fold(ComparisonRecord(**fields, first_offset=0, last_offset=199, tally=Tally(tweets=200)))
    assert "compared:" not in text_of(folded)
    folded.fold(ComparisonRecord(**fields, first_offset=200, last_offset=3_999, tally=Tally(), derived=3_800))
    shown = text_of(folded)
    assert "compared: 200 of 4,000 tweets (5.0 %)" in shown
    rows = {line.split()[0]: line.split()[1:5] for line in shown.splitlines() if line.strip()}
    assert (rows["tweets"], rows["compared"]) == (["4,000"] * 4, ["200"] * 4)


def test_numbers_alerts_and_both_sides_of_a_tweet() -> None:
    folded = state()
    folded.fold(
        ComparisonRecord(
            application="shop", replica="r", window="r-1", source_topic="t", source_partition=0, first_offset=0,
            last_offset=199, published_at_ms=9_000, raw_model=MODEL, predict_model=MODEL,
            tally=Tally(tweets=200, label=50), labels={"yes": {"yes": 150, "no": 50}}, causes={"precision": 50},
        )
    )  # fmt: skip
    divergence = DivergenceRecord(
        id="7", source=SourceCoordinates("t", 0, 7), application="shop", verdict=Verdict.LABEL, cause=Cause.PRECISION,
        certainty=Certainty.CONSISTENT, raw=PathView(label="yes", score=0.51), tolerance=0.005,
        text="two\nlines [bold]x",
        predict=PathView(error=PathError(type="IndexError", message="")),
    )  # fmt: skip
    assert isinstance(folded.alerts[0], Alert)
    shown = text_of(folded, divergence, lag={0: 40, 1: 2})
    for expected in (
        "75.00 %",
        "25.00 %",
        "lag 42",
        "ALERT",
        "two lines [bold]x",
        "yes 0.5100",
        "IndexError",
        "cause: precision",
    ):
        assert expected in shown
