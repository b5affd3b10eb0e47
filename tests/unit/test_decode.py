"""Every kind of record has a defined answer: a tweet, or a refusal with the right reason that quotes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from twinlens.errors import RefusalReason, RefuseRecord
from twinlens.replica.decode import Tweet, decode
from twinlens.settings import IntakeSettings

JSON = IntakeSettings()
TEXT = IntakeSettings(format="text")
HERE = "tweets/0/7"
SECRET = "zebra-4711"


def refusal(value: bytes | None, settings: IntakeSettings = JSON) -> RefuseRecord:
    with pytest.raises(RefuseRecord) as caught:
        decode(value, settings, HERE)
    return caught.value


def answer(value: bytes | None, settings: IntakeSettings) -> Tweet | RefusalReason:
    """Whatever `decode` says; any other exception than RefuseRecord fails the test."""
    try:
        return decode(value, settings, HERE)
    except RefuseRecord as error:
        error.detail.encode()  # it becomes a header of the dead letter
        return error.reason


def with_text(text: object, **more: object) -> bytes:
    return json.dumps({"text": text, **more}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, RefusalReason.TOMBSTONE, id="tombstone"),
        pytest.param(b"", RefusalReason.EMPTY_VALUE, id="empty value"),
        pytest.param(b'{"text": "\xff"}', RefusalReason.NOT_UTF8, id="bad byte in the text"),
        pytest.param(b'{"\xff": 1, "text": "a"}', RefusalReason.NOT_UTF8, id="bad byte in a name"),
        pytest.param(b'{"text": "a"}\xff', RefusalReason.NOT_UTF8, id="bad byte after the end"),
        pytest.param('{"text": "a"}'.encode("utf-16"), RefusalReason.NOT_UTF8, id="UTF-16"),
        pytest.param(b'{"text": "\xed\xa0\x80"}', RefusalReason.NOT_UTF8, id="CESU-8 half of a pair"),
        pytest.param(b'{"text": "\xed\xa0\xbd\xed\xb8\x80"}', RefusalReason.NOT_UTF8, id="CESU-8 whole pair"),
        pytest.param(b'{"text": "\xf0\x9f\x98"}', RefusalReason.NOT_UTF8, id="cut in a character"),
        pytest.param(b'{"text": "a"', RefusalReason.NOT_JSON, id="cut off"),
        pytest.param(b"hello", RefusalReason.NOT_JSON, id="no JSON at all"),
        pytest.param(b"   ", RefusalReason.NOT_JSON, id="only spaces"),
        pytest.param(b'{"text": "a"} {"text": "b"}', RefusalReason.NOT_JSON, id="two values"),
        pytest.param(b'{"text": "a\nb"}', RefusalReason.NOT_JSON, id="bare line break"),
        pytest.param(b"{'text': 'a'}", RefusalReason.NOT_JSON, id="Python, not JSON"),
        pytest.param(b'\xef\xbb\xbf{"text": "a"}', RefusalReason.NOT_JSON, id="byte order mark"),
        pytest.param(b'{"text": NaN}', RefusalReason.NOT_JSON, id="NaN as text"),
        pytest.param(b'{"text": "a", "rating": NaN}', RefusalReason.NOT_JSON, id="NaN elsewhere"),
        pytest.param(b'{"text": "a", "rating": -Infinity}', RefusalReason.NOT_JSON, id="infinity"),
        pytest.param(b'{"text": "a", "id": ' + b"9" * 5_000 + b"}", RefusalReason.NOT_JSON, id="endless number"),
        pytest.param(b"[" * 100_000, RefusalReason.NOT_JSON, id="deep and open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, RefusalReason.NOT_JSON, id="deep array"),
        pytest.param(b'{"text":"a","x":' + b'{"x":' * 50_000 + b"1" + b"}" * 50_001, RefusalReason.NOT_JSON, id="deep"),
        pytest.param(b'["text"]', RefusalReason.NOT_AN_OBJECT, id="list"),
        pytest.param(b'"text"', RefusalReason.NOT_AN_OBJECT, id="bare string"),
        pytest.param(b"null", RefusalReason.NOT_AN_OBJECT, id="JSON null"),
        pytest.param(b"{}", RefusalReason.NO_TEXT_FIELD, id="no field"),
        pytest.param(b'{"Text": "a"}', RefusalReason.NO_TEXT_FIELD, id="other case"),
        pytest.param(with_text(None), RefusalReason.NO_TEXT_FIELD, id="text is null"),
        pytest.param(with_text(7), RefusalReason.TEXT_NOT_A_STRING, id="text is a number"),
        pytest.param(with_text(["a"]), RefusalReason.TEXT_NOT_A_STRING, id="text is a list"),
        pytest.param(with_text({"a": 1}), RefusalReason.TEXT_NOT_A_STRING, id="text is an object"),
        pytest.param(with_text(False), RefusalReason.TEXT_NOT_A_STRING, id="text is a boolean"),
        pytest.param(rb'{"text": "\ud800"}', RefusalReason.LONE_SURROGATE, id="high half"),
        pytest.param(rb'{"text": "\udc00 x"}', RefusalReason.LONE_SURROGATE, id="low half"),
        pytest.param(rb'{"text": "\ude00\ud83d"}', RefusalReason.LONE_SURROGATE, id="halves in the wrong order"),
        pytest.param(rb'{"text": "a", "id": "\ud800"}', RefusalReason.LONE_SURROGATE, id="half in the id"),
        pytest.param(rb'{"text": "a", "\ud800": 1}', RefusalReason.LONE_SURROGATE, id="half in a name"),
        pytest.param(with_text("x" * 1_000_000), RefusalReason.TEXT_TOO_LONG, id="1 MB of text"),
        pytest.param(with_text("x" * 100_001), RefusalReason.TEXT_TOO_LONG, id="one too many"),
    ],
)
def test_refused(value: bytes | None, reason: RefusalReason) -> None:
    assert refusal(value).reason is reason


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("   ", id="spaces"),
        pytest.param("[SEP]", id="literal separator"),
        pytest.param("a\x00b\x07\x7f", id="control characters"),
        pytest.param("x" * 10_000, id="10,000 characters"),
        pytest.param("\N{FACE WITH TEARS OF JOY}" * 100_000, id="as long as allowed, in characters"),
        pytest.param("مرحبا 你好 \u202e", id="other scripts"),
        pytest.param('quotes " and \\ backslashes', id="escapes"),
    ],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_a_text_arrives_unchanged(text: str, escaped: bool) -> None:
    value = json.dumps({"text": text}, ensure_ascii=escaped).encode()
    assert decode(value, JSON, HERE) == Tweet(HERE, text)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert decode(rb'{"text": "\ud83d\ude00"}', JSON, HERE).text == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [
        pytest.param("abc", "abc", id="string"),
        pytest.param(7, "7", id="number"),
        pytest.param(0, "0", id="zero"),
        pytest.param(-1.5, "-1.5", id="fraction"),
        pytest.param(2**70, str(2**70), id="more than 64 bits"),
        pytest.param(None, HERE, id="null"),
        pytest.param(True, HERE, id="boolean"),
        pytest.param({"a": 1}, HERE, id="object"),
        pytest.param([1], HERE, id="list"),
    ],
)
def test_id(given_id: object, expected: str) -> None:
    assert decode(with_text("a", id=given_id), JSON, HERE).id == expected


def test_an_id_that_is_nested_almost_too_deeply_is_no_id() -> None:
    for depth in range(50, 1_100, 7):
        value = b'{"text": "a", "id": ' + b"[" * depth + b"]" * depth + b"}"
        assert answer(value, JSON) in (Tweet(HERE, "a"), RefusalReason.NOT_JSON)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"data": {"tweet": {"text": "in"}}}, "in", id="path"),
        pytest.param({"data.tweet.text": "flat"}, "flat", id="a name with dots"),
        pytest.param({"data.tweet.text": "flat", "data": {"tweet": {"text": "in"}}}, "flat", id="the name wins"),
        pytest.param({"data": {"tweet.text": "half"}}, None, id="half a path"),
        pytest.param({"data": "text"}, None, id="a string on the way"),
        pytest.param({"data": {"tweet": [{"text": "in"}]}}, None, id="a list on the way"),
        pytest.param({"text": "elsewhere"}, None, id="another field"),
    ],
)
def test_dotted_path(body: dict[str, Any], expected: str | None) -> None:
    settings = IntakeSettings(text_field="data.tweet.text", id_field="data.id")
    value = json.dumps(body).encode()
    if expected is None:
        assert refusal(value, settings).reason is RefusalReason.NO_TEXT_FIELD
    else:
        assert decode(value, settings, HERE) == Tweet(HERE, expected)


def test_dotted_path_of_the_id() -> None:
    settings = IntakeSettings(id_field="meta.id")
    assert decode(with_text("a", meta={"id": 12}), settings, HERE).id == "12"
    assert decode(with_text("a", meta=12), settings, HERE).id == HERE


class TestPlainText:
    @pytest.mark.parametrize("text", ["hello", "[SEP]", '{"text": "a"}', " ", "\x00", "\ufeffmark"])
    def test_all_of_the_value_is_the_text(self, text: str) -> None:
        assert decode(text.encode(), TEXT, HERE) == Tweet(HERE, text)

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, RefusalReason.TOMBSTONE),
            (b"", RefusalReason.EMPTY_VALUE),
            (b"caf\xe9", RefusalReason.NOT_UTF8),
            (b"\xed\xa0\x80", RefusalReason.NOT_UTF8),
            (b"x" * 1_000_000, RefusalReason.TEXT_TOO_LONG),
        ],
    )
    def test_refused(self, value: bytes | None, reason: RefusalReason) -> None:
        assert refusal(value, TEXT).reason is reason


def test_the_limit_counts_characters() -> None:
    settings = IntakeSettings(max_text_chars=3)
    assert decode(with_text("äöü"), settings, HERE).text == "äöü"
    error = refusal(with_text("äöü!"), settings)
    assert error.reason is RefusalReason.TEXT_TOO_LONG
    assert error.detail == "4 characters, intake.max_text_chars is 3"


@pytest.mark.parametrize(
    "value",
    [
        f'{{"text": "{SECRET}'.encode(),
        f'{{"text": "{SECRET}\\q"}}'.encode(),
        f'{{"text": "{SECRET}\x01"}}'.encode(),
        f'{{"text": "{SECRET}"}} {SECRET}'.encode(),
        f'{{"text": "{SECRET}", "x": NaN}}'.encode(),
        f'{{"text": "{SECRET}\\ud800"}}'.encode(),
        f'{{"text": "{SECRET}'.encode() + b'\xff"}',
        f'["{SECRET}"]'.encode(),
        f'"{SECRET}"'.encode(),
        SECRET.encode(),
        with_text([SECRET]),
        with_text({SECRET: SECRET}),
        json.dumps({"message": SECRET}).encode(),
        with_text(SECRET * 20_000),
        f'{{"text": "{SECRET}", "x": '.encode() + b"[" * 100_000,
    ],
    ids=range(15),
)
def test_a_refusal_never_quotes_the_text(value: bytes) -> None:
    error = refusal(value)
    assert "zebra" not in str(error)
    assert error.detail
    assert error.__suppress_context__ or error.__context__ is None  # nor does a traceback


# Fragments that steer the fuzzer to the border between what is JSON and what is not.
FRAGMENTS = st.sampled_from(
    [
        *(
            b'{"text":',
            b'"text"',
            b'"id":',
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b"\\",
            b"\\u",
            b"\\ud800",
            b"null",
        ),
        *(b"NaN", b"1e999", b"-0", b"9" * 400, b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"[" * 2_000, b" "),
    ]
)
# json.dumps writes lone surrogates as escapes and NaN as NaN.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(["text", "id", "a.b", "a"]), VALUES, max_size=4) | VALUES


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A JSON value with one run of bytes replaced."""
    whole = json.dumps(draw(BODIES), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    start = draw(st.integers(0, len(whole)))
    return whole[:start] + draw(st.binary(max_size=3)) + whole[start + draw(st.integers(0, 3)) :]


@given(
    value=st.none() | st.binary(max_size=60) | st.lists(FRAGMENTS, max_size=12).map(b"".join) | damaged(),
    settings=st.builds(
        IntakeSettings,
        format=st.sampled_from(["json", "text"]),
        text_field=st.sampled_from(["text", "a.b", "."]),
        id_field=st.sampled_from(["id", "a", "a.b.c"]),
        max_text_chars=st.sampled_from([1, 100_000]),
    ),
)
@example(value=b"[" * 3_000, settings=JSON)
@limits(max_examples=400, deadline=None)
def test_any_bytes_give_a_tweet_or_a_refusal(value: bytes | None, settings: IntakeSettings) -> None:
    tweet = answer(value, settings)
    if not isinstance(tweet, Tweet):
        assert tweet in RefusalReason
        return
    assert isinstance(tweet.text, str)
    assert len(tweet.text) <= settings.max_text_chars
    tweet.text.encode()
    tweet.id.encode()
