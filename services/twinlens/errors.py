"""Every error twinlens raises on purpose, named by the reaction it asks for.

    TwinlensError
    ├── AskUser          the person who started it must change something; exit code 2, one sentence, no traceback
    ├── RefuseRecord     this record cannot be read; dead letter with the reason, the stream goes on
    ├── RedoWindow       this window was not committed; abort it and read it again from the committed offsets
    └── ReplaceReplica   this process cannot go on; fail the health check so that Ray Serve starts another

Errors of libraries are translated where the library is called, or left alone: an unknown exception in a
background thread ends that thread, and so the replica (see `twinlens.threads`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class TwinlensError(Exception):
    """Base of all deliberate errors."""


class AskUser(TwinlensError):
    """Wrong settings, an unreachable broker, a missing topic or model. The text says what to do."""


class RefusalReason(StrEnum):
    """Why a record went to the dead-letter topic (header `twinlens.reason`)."""

    TOMBSTONE = "tombstone"
    EMPTY_VALUE = "empty_value"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_TEXT_FIELD = "no_text_field"
    TEXT_NOT_A_STRING = "text_not_a_string"
    LONE_SURROGATE = "lone_surrogate"
    TEXT_TOO_LONG = "text_too_long"


class RefuseRecord(TwinlensError):
    """A record that cannot be turned into a tweet.

    `reason` is machine-readable, `detail` is for people and never quotes the tweet.
    """

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RedoWindow(TwinlensError):
    """The window was not committed, or nobody knows whether it was; its records will be read again."""


class ReplaceReplica(TwinlensError):
    """This process cannot go on: a thread died, a device failed, Kafka does not answer. Another one is to try."""


def without_frames(error: E) -> E:
    """Remove the traceback and context of an error that is kept: they would keep texts alive."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
