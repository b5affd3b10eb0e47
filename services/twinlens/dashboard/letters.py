"""Shows dead letters on a terminal. The text comes from Kafka, so nothing in it may control the terminal."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from twinlens.deadletter import DeadLetter

DUMPED_BYTES = 256  #: shown of a value that is not text
KEY_CHARS = 24  #: shown of a key in the list
JOINER = "\u200d"  #: joins the parts of an emoji


def table_of(letters: Sequence[DeadLetter]) -> Table:
    """A row per letter, without values."""
    table = Table("letter", "refused (UTC)", "reason", "source", "key", "bytes", "detail")
    for column in table.columns[:3]:
        column.no_wrap = True
    for letter in letters:
        source = f"{printable(letter.source.topic)} {letter.source.partition}/{letter.source.offset}"
        size = f"{len(letter.value or b''):,}" + (" cut" if letter.cut_from_bytes is not None else "")
        key = readable(letter.key)
        key = key if len(key) <= KEY_CHARS else f"{key[: KEY_CHARS - 1]}…"
        when, reason = _time(letter.refused_at_ms), printable(letter.reason)
        table.add_row(letter.at, when, reason, source, key, size, printable(letter.detail))
    return table


def facts_of(letter: DeadLetter) -> Table:
    """Everything about one letter except its value."""
    size = "null" if letter.value is None else f"{len(letter.value):,} bytes"
    if letter.cut_from_bytes is not None:
        size += f", cut from {letter.cut_from_bytes:,}: it cannot be replayed"
    rows = {
        "letter": f"{letter.topic} {letter.at}",
        "refused": f"{_time(letter.refused_at_ms)} UTC by {letter.application}",
        "reason": letter.reason,
        "detail": letter.detail,
        "source": f"{letter.source.topic} {letter.source.partition}/{letter.source.offset}, "
        f"{_time(letter.source_timestamp_ms)} UTC",
    }
    if letter.replayed_from is not None:
        rows["replayed from"] = letter.replayed_from
    rows["key"] = readable(letter.key)
    table = Table(show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(name, printable(text))
    for name, value in letter.headers:
        table.add_row("header", f"{printable(name)}: {readable(value)}")
    table.add_row("value", size)
    return table


def readable_value(letter: DeadLetter) -> str:
    """The value as text, or its first bytes in hexadecimal if it is not text."""
    value = letter.value or b""
    try:
        return printable(value.decode(), keep="\n\t")
    except UnicodeDecodeError as error:
        if letter.cut_from_bytes is not None and error.end == len(value):  # the cut is in the middle of a character
            return printable(value[: error.start].decode(), keep="\n\t")
    more = len(value) - DUMPED_BYTES
    return hex_dump(value[:DUMPED_BYTES]) + (f"\n{more:,} bytes more; --raw writes all" if more > 0 else "")


def json_of(letter: DeadLetter) -> dict[str, Any]:
    """Everything except value and headers. A key that is not UTF-8 is given as `key_base64`."""
    key = letter.key
    try:
        shown = {"key": None if key is None else key.decode()}
    except UnicodeDecodeError:
        shown = {"key_base64": base64.b64encode(key or b"").decode()}
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "refused_at_ms": letter.refused_at_ms,
        "reason": letter.reason,
        "detail": letter.detail,
        "source": letter.source,
        "source_timestamp_ms": letter.source_timestamp_ms,
        **shown,
        "bytes": len(letter.value or b""),
        "cut_from_bytes": letter.cut_from_bytes,
        "replayed_from": letter.replayed_from,
    }


def by_reason(counts: Mapping[str, int]) -> str:
    """The counts as text, the most frequent first: `: not_json 10, not_utf8 2`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f": {', '.join(f'{printable(reason)} {count:,}' for reason, count in ordered)}" if ordered else ""


def readable(value: bytes | None) -> str:
    """A key or a header on one line: its text, or its bytes in hexadecimal if it is not text."""
    if value is None:
        return "null"
    try:
        return printable(value.decode())
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def printable(text: str, keep: str = "") -> str:
    """`text` with all characters that control the terminal (escape sequences, direction marks) as escapes.

    Characters in `keep` are left unchanged.

    >>> printable("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() or c in keep + JOINER else c.encode("unicode_escape").decode() for c in text)


def hex_dump(value: bytes) -> str:
    """Sixteen bytes per line: position, hexadecimal, ASCII.

    >>> hex_dump(b"caf\\xe9")
    '00000000  63 61 66 e9                                      |caf.|'
    """
    lines = []
    for start in range(0, len(value), 16):
        row = value[start : start + 16]
        ascii_ = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):47}  |{ascii_}|")
    return "\n".join(lines)


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a header may hold any number
        return str(milliseconds)
