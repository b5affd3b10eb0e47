"""Records that no producer should send, made from real tweets; and a reference for what must become of each.

A mutator makes a value from a `Random`, so that a kind and a seed name a record. The reference shares nothing with
`replica.decode` but the contract.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from twinlens.demo.application import TWEETS as FILE

TWEETS = FILE.read_bytes().splitlines()
SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "##ing", "▁")
ODD_CHARACTERS = "\x00\x07\x1b\x7f\u0085\u200b\u200d\u202e\u2028\ufeff\ufffe\uffff\U0001f600\U0010ffffé中ا"
ODD_NUMBERS = ("7", "-0", "-0.0", "1e5", "1e999", "-1E400", "01", "1.", ".5", "9" * 40, "9" * 5_000, "0." + "3" * 400)
ODD_STRINGS = (
    *('""', '"[SEP]"', '"\\u0000"', '"\\/"', '"\\x"', '"a\tb"', '"a\nb"', '"\ufeff"', "'a'"),
    *('"\\ud800"', '"\\udc00\\ud83d"', '"\\ud83d\\ude00"'),
)
NESTED = ("[]", "{}", '["a"]', '{"text": "a"}', "[" * 150 + "]" * 150, '{"text":' * 150 + "1" + "}" * 150)
TOO_DEEP = ("[" * 5_000, "[" * 5_000 + "]" * 5_000)
CONSTANTS = ("null", "true", "NaN", "Infinity", "-Infinity", "undefined")
ODD_VALUES = (*ODD_NUMBERS, *ODD_STRINGS, *NESTED, *TOO_DEEP, *CONSTANTS)
ODD_NAMES = ('""', '"\\u0074ext"', '"Text"', '"\\ud800"', '"text\\u0000"', '"[SEP]"', "text", "null")
FRAMES = ("{}", "{}", "{}", "{}", " {}\n", "\ufeff{}", "[{}]", "{} {}", "{},", "\x0b{}", "/* a */ {}")
OUR_HEADERS = ("reason", "source.partition", "source.offset", "application", "cut_from_bytes", "replayed_from", "else")


def noise(random: Random) -> bytes:
    return random.randbytes(random.randrange(120))


def flipped(random: Random) -> bytes:
    mutated = bytearray(tweet(random))
    for _ in range(random.randint(1, 4)):
        mutated[random.randrange(len(mutated))] ^= 1 << random.randrange(8)
    return bytes(mutated)


def cut(random: Random) -> bytes:
    whole = tweet(random)
    start, end = sorted(random.choices(range(len(whole) + 1), k=2))
    return random.choice((whole[:end], whole[start:], whole[:start] + whole[end:]))


def duplicated(random: Random) -> bytes:
    whole = tweet(random)
    start, end = sorted(random.choices(range(len(whole) + 1), k=2))
    return whole[:end] + whole[start:] * random.randint(1, 3)


def spliced(random: Random) -> bytes:
    one, other = random.sample(TWEETS, 2)
    return one[: random.randrange(len(one))] + other[random.randrange(len(other)) :]


def tweet(random: Random) -> bytes:
    return random.choice(TWEETS)


def odd_text(random: Random) -> bytes:
    """A tweet of special tokens, odd characters and pieces of tweets."""
    pieces = [
        random.choice(SPECIAL),
        "".join(random.choices(ODD_CHARACTERS, k=random.randint(1, 8))),
        chr(random.choice((random.randrange(0x80), random.randrange(0xE000, 0x110000)))),
        json.loads(tweet(random))["text"][: random.randrange(60)],
    ]
    text = "".join(random.choices(pieces, k=random.randint(0, 12)))
    return json.dumps({"text": text}, ensure_ascii=random.random() < 0.5).encode()


def odd_json(random: Random) -> bytes:
    """An object, or nearly one, with odd values, odd names, and names that come twice."""
    fields = []
    for _ in range(random.randint(0, 4)):
        name = random.choices(('"text"', '"id"', random.choice(ODD_NAMES)), weights=(6, 3, 2))[0]
        good = name == '"text"' and random.random() < 0.7
        value = json.dumps(json.loads(tweet(random))["text"]) if good else random.choice(ODD_VALUES)
        fields.append(name + random.choice((":", " : ", ":\r\n\t")) + value)
    body = "{" + random.choice((",", ",", ",", " , ", ";")).join(fields) + "}"
    return random.choice(FRAMES).replace("{}", body).encode()


def odd_value(random: Random) -> bytes:
    return random.choice(ODD_VALUES).encode()


def nothing(random: Random) -> bytes | None:
    return random.choice((None, b"", b" "))


def long(random: Random) -> bytes:
    """A text of around 5,000 characters, or of many more."""
    count = random.choice((4_999, 5_000, 5_001, 50_000))
    return json.dumps({"text": "".join(random.choices(("x", "x", "é", " ", "\U0001f600"), k=count))}).encode()


MUTATORS: dict[str, Callable[[Random], bytes | None]] = {
    mutator.__name__: mutator
    for mutator in (tweet, noise, flipped, cut, duplicated, spliced, odd_text, odd_json, odd_value, nothing, long)
}


class Sent(NamedTuple):
    """A record as it is sent."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def make(kind: str, seed: int) -> Sent:
    random = Random(seed)
    return Sent(key(random), MUTATORS[kind](random), headers(random))


def key(random: Random) -> bytes | None:
    keys = (None, b"", b"\x00\xff", random.randbytes(16), b"key", random.randbytes(random.choice((300, 20_000))))
    return random.choices(keys, weights=(6, 2, 2, 4, 4, 1))[0]


def headers(random: Random) -> list[tuple[str, bytes | None]]:
    names = ("h", "", "traceparent", "näme \U0001f600", "\x00", "a" * 300, *(f"twinlens.{n}" for n in OUR_HEADERS))
    values = (None, b"", b"0", b"\xff\x00", b"not_json", random.randbytes(random.choice((8, 5_000))))
    count = random.choices((0, 1, 3, 8, 400), weights=(80, 60, 40, 20, 2))[0]
    return [(random.choice(names), random.choices(values, weights=(2, 2, 4, 4, 2, 1))[0]) for _ in range(count)]


class Expected(NamedTuple):
    """What must become of a record: results under this id (None: it names none), or a dead letter."""

    accepted: bool
    id: str | None = None


def expected(value: bytes | None, max_text_chars: int) -> Expected:
    """By Python's own decoder, kept to the standard and to text that has a UTF-8 form."""
    if not value:
        return Expected(accepted=False)
    try:
        body = json.loads(value.decode(), object_pairs_hook=_sound, parse_constant=_refuse, parse_float=_finite)
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return Expected(accepted=False)
    text = body.get("text") if isinstance(body, dict) else None
    if not isinstance(text, str) or len(text) > max_text_chars:
        return Expected(accepted=False)
    name = body.get("id")
    return Expected(True, str(name) if type(name) in (str, int, float) else None)


def _sound(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A value that a later one of the same name hides must have a UTF-8 form, too."""
    json.dumps(pairs, ensure_ascii=False).encode()
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    if (number := float(digits)) in (float("inf"), float("-inf")):
        raise ValueError(digits)
    return number
