"""`twinlens dlq`: list, show and replay dead letters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from twinlens.broker import topics
from twinlens.broker.dlq import letter_at, read_letters
from twinlens.broker.replay import Outcome, Replay
from twinlens.cli.options import (
    AppOption,
    BrokersOption,
    ConfigOption,
    JsonOption,
    load_settings,
)
from twinlens.dashboard.letters import by_reason, facts_of, json_of, readable_value, table_of
from twinlens.deadletter import overview
from twinlens.errors import AskUser, RefusalReason
from twinlens.serving.cluster import terminate_like_ctrl_c
from twinlens.settings import Settings

app = typer.Typer(help="List, show and replay dead letters.", no_args_is_help=True)

ReasonOption = Annotated[
    list[RefusalReason] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help=f"Only letters with this reason; can be given several times. One of {', '.join(RefusalReason)}.",
    ),
]


@app.command("list")
def list_letters(
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many, the newest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per letter, one per line.")] = False,
) -> None:
    """List the newest dead letters of the application, newest last, and count all of them by reason.

    Values are not shown; `twinlens dlq show` shows them.

    Example: twinlens dlq list -c deploy/serve.yaml --reason not_json --reason not_utf8

    Example: twinlens dlq list -b kafka:9092 --json --limit 1000 | jq -r .source.offset
    """
    settings = load_settings(config, bootstrap_servers, app_name)
    topics.check_allowed(settings.kafka, settings.topics.dlq, "Read")
    console = _console(stderr=json)
    with _console(stderr=True).status(f"reading {settings.topics.dlq}"):
        found = overview(read_letters(settings), settings.application, reason or (), limit)
    if json:
        for letter in found.newest:
            typer.echo(msgspec.json.encode(json_of(letter)))
    elif found.newest:
        console.print(table_of(found.newest))
    foreign = f"; {found.foreign:,} other records" if found.foreign else ""
    console.print(
        f"{found.reasons.total():,} dead letters of {settings.application} on {settings.topics.dlq}"
        f"{by_reason(found.reasons)}; {len(found.newest):,} shown{foreign}",
        soft_wrap=True,
    )


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="PARTITION/OFFSET", help="The letter, as `list` shows it.")],
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write only the bytes of the value.")] = False,
) -> None:
    """Show one dead letter: reason, source, headers and value.

    Example: twinlens dlq show 3/1043 -c deploy/serve.yaml

    Example: twinlens dlq show 3/1043 --raw | jq -c '.text = .body' | twinlens produce -
    """
    settings = load_settings(config, bootstrap_servers, app_name)
    partition, offset = _coordinates(letter, settings.topics.dlq)
    topics.check_allowed(settings.kafka, settings.topics.dlq, "Read")
    found = letter_at(settings, partition, offset)
    if raw:
        sys.stdout.buffer.write(found.value or b"")
        sys.stdout.buffer.flush()
        return
    _console().print(facts_of(found))
    typer.echo(f"\n{readable_value(found)}")


@app.command()
def replay(
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Replay at most this many, the oldest.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start at the first letter instead of where the last replay ended.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be replayed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    json: JsonOption = False,
) -> None:
    """Put each dead letter back on the input topic once, as it was before it was refused.

    A replay continues where the last one ended, even if that one was interrupted. Letters that it skips (another
    reason, or a value that was cut) are not read again by the next replay, unless you give --from-beginning.

    Example: twinlens dlq replay -c deploy/serve.yaml --dry-run

    Example: twinlens dlq replay -c deploy/serve.yaml --reason text_too_long --limit 10

    Example: twinlens dlq replay -c deploy/serve.yaml --from-beginning --reason not_json --yes
    """
    terminate_like_ctrl_c()
    settings = load_settings(config, bootstrap_servers, app_name)
    if not (yes or dry_run or can_ask()):
        raise AskUser(
            "Replay asks before it starts, but standard input is no terminal. Give --yes, or --dry-run to look first."
        )
    topics.check_allowed(settings.kafka, settings.topics.dlq, "Read")
    topics.check_allowed(settings.kafka, settings.topics.input, "Write")
    console = _console(stderr=True)
    with console.status(f"reading {settings.topics.dlq}"):
        replaying = Replay(settings, reasons=reason or (), limit=limit, from_beginning=from_beginning)
        plan = replaying.plan()
    count = plan.replayed.total()
    if dry_run or not count:
        _say(settings, plan, "would be replayed" if dry_run else "replayed", json=json)
        return
    if not yes:
        _say(settings, plan, "will be replayed", json=False)
        typer.confirm("Replay them?", abort=True, err=True)
    try:
        with _progress(console, f"replaying to {settings.topics.input}", count) as advance:
            replaying.run(advance)
    except KeyboardInterrupt:
        console.print("interrupted: the next replay continues from here")
        raise
    finally:
        _say(settings, replaying.outcome, "replayed", json=json)


def can_ask() -> bool:
    """Whether a person can answer a question."""
    return sys.stdin.isatty()


def _say(settings: Settings, outcome: Outcome, what: str, *, json: bool) -> None:
    """Print the outcome as one line on standard output, and warn about letters that cannot be replayed."""
    if json:
        typer.echo(msgspec.json.encode(outcome))
    else:
        passed, foreign = outcome.passed_over, outcome.foreign
        typer.echo(
            f"{outcome.replayed.total():,} letters {what} to {settings.topics.input}{by_reason(outcome.replayed)}"
            + (f"; {passed.total():,} skipped{by_reason(passed)}" if passed else "")
            + (f"; {foreign:,} other records ignored" if foreign else "")
        )
    if outcome.cut:
        typer.echo(
            f"warning: {outcome.cut:,} letters cannot be replayed, because their values were cut to fit into "
            "kafka.max_request_bytes; `twinlens dlq show` names their source",
            err=True,
        )


def _coordinates(letter: str, topic: str) -> tuple[int, int]:
    """Parse `3/1043`. The topic may come before it, as in the header `twinlens.replayed_from`."""
    *named, partition, offset = letter.removeprefix(f"{topic}/").split("/") if letter.count("/") else ("", "", "")
    if named or not (partition.isdecimal() and offset.isdecimal()):
        raise AskUser(f"{letter!r} is not PARTITION/OFFSET on {topic}, such as 3/1043; `twinlens dlq list` shows them.")
    return int(partition), int(offset)


def _console(*, stderr: bool = False) -> Console:
    """A console without markup, because the text comes from Kafka."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
