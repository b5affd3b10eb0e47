"""`twinlens dlq`: look at the dead letters, and replay them."""

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

app = typer.Typer(help="Look at the dead letters, and replay them.", no_args_is_help=True)

ReasonOption = Annotated[
    list[RefusalReason] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help=f"Only letters of this reason; may be given more than once. One of {', '.join(RefusalReason)}.",
    ),
]


@app.command("list")
def list_letters(
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Show this many, the newest.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per letter and line.")] = False,
) -> None:
    """List the newest dead letters of the application, newest last, and count all of them by reason.

    Values are not shown: `twinlens dlq show` does.

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
    letter: Annotated[str, typer.Argument(metavar="PARTITION/OFFSET", help="Where it lies, as `list` writes it.")],
    config: ConfigOption = None,
    bootstrap_servers: BrokersOption = None,
    app_name: AppOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write the value's bytes, and nothing else.")] = False,
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
    limit: Annotated[int | None, typer.Option(min=1, help="Replay this many, the oldest, and stop.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start at the first letter instead of where the last replay ended.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be replayed, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Put dead letters back on the input topic, each once, as they were before they were refused.

    A replay goes on where the last one ended, also where that was interrupted. Letters that are passed over (another
    reason, or a value that was cut) are behind it then; --from-beginning goes back to them.

    Example: twinlens dlq replay -c deploy/serve.yaml --dry-run

    Example: twinlens dlq replay -c deploy/serve.yaml --reason text_too_long --limit 10

    Example: twinlens dlq replay -c deploy/serve.yaml --from-beginning --reason not_json --yes
    """
    terminate_like_ctrl_c()
    settings = load_settings(config, bootstrap_servers, app_name)
    if not (yes or dry_run or can_ask()):
        raise AskUser(
            "Nobody can be asked, since standard input is no terminal. Give --yes, or --dry-run to look first."
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
        _say(settings, plan, "are to be replayed", json=False)
        typer.confirm("Replay them?", abort=True, err=True)
    try:
        with _progress(console, f"replaying to {settings.topics.input}", count) as advance:
            replaying.run(advance)
    except KeyboardInterrupt:
        console.print("interrupted: the next replay goes on from here")
        raise
    finally:
        _say(settings, replaying.outcome, "replayed", json=json)


def can_ask() -> bool:
    """Whether somebody can answer a question."""
    return sys.stdin.isatty()


def _say(settings: Settings, outcome: Outcome, what: str, *, json: bool) -> None:
    """The outcome in one line on standard output, and a warning where letters are lost to a replay."""
    if json:
        typer.echo(msgspec.json.encode(outcome))
    else:
        passed, foreign = outcome.passed_over, outcome.foreign
        typer.echo(
            f"{outcome.replayed.total():,} letters {what} to {settings.topics.input}{by_reason(outcome.replayed)}"
            + (f"; {passed.total():,} passed over{by_reason(passed)}" if passed else "")
            + (f"; {foreign:,} other records left alone" if foreign else "")
        )
    if outcome.cut:
        typer.echo(
            f"warning: {outcome.cut:,} letters cannot be replayed, since their values were cut to fit into "
            "kafka.max_request_bytes; `twinlens dlq show` names their source",
            err=True,
        )


def _coordinates(letter: str, topic: str) -> tuple[int, int]:
    """`3/1043`, or with the topic before it, as the header `twinlens.replayed_from` has it."""
    *named, partition, offset = letter.removeprefix(f"{topic}/").split("/") if letter.count("/") else ("", "", "")
    if named or not (partition.isdecimal() and offset.isdecimal()):
        raise AskUser(f"{letter!r} is not PARTITION/OFFSET on {topic}, such as 3/1043; `twinlens dlq list` shows them.")
    return int(partition), int(offset)


def _console(*, stderr: bool = False) -> Console:
    """Without markup: what is printed came over Kafka."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
