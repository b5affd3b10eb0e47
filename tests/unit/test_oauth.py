"""Tokens: asked for once, renewed before they end, clear words where there is none. The server is a scripted one."""

from __future__ import annotations

import base64
import json
import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError

from tests.support.token_server import TokenServer
from twinlens.broker.oauth import ClientCredentials, FileToken, TokenUnavailableError
from twinlens.settings.kafka import KafkaSettings

SECRET = "hunter2+and/more"
CONTEXT = ssl.create_default_context()


@pytest.fixture(autouse=True)
def one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the system's authorities takes a tenth of a second, and these tests speak http."""
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: CONTEXT)


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def provider(server: TokenServer, clock: Clock | None = None, **kafka: Any) -> ClientCredentials:
    settings = KafkaSettings(
        sasl_oauth_token_url=server.url, sasl_oauth_client_id="me:and you", sasl_oauth_client_secret=SECRET, **kafka
    )
    return ClientCredentials(settings, clock or Clock())


def granted(token: str, expires_in: Any = 100) -> tuple[int, dict[str, Any]]:
    return 200, {"access_token": token, "token_type": "Bearer", "expires_in": expires_in}


def test_the_request_is_that_of_the_standard(server: TokenServer) -> None:
    server.answers = [granted("a.b-c")]
    assert provider(server, sasl_oauth_scope="read write").token() == "a.b-c"
    ((headers, body),) = server.requests
    assert parse_qs(body) == {"grant_type": ["client_credentials"], "scope": ["read write"]}
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    method, credentials = headers["Authorization"].split()
    # RFC 6749, 2.3.1: each of the two is form-encoded first, else the colon could not be found.
    assert (method, base64.b64decode(credentials)) == ("Basic", b"me%3Aand+you:hunter2%2Band%2Fmore")


def test_a_token_serves_until_four_fifths_of_its_life(server: TokenServer) -> None:
    server.answers = [granted("first"), granted("second", "50")]
    clock = Clock()
    tokens = provider(server, clock)
    assert tokens.token() == "first"
    clock.now += 79
    assert tokens.token() == "first"
    clock.now += 1
    assert [tokens.token(), tokens.token()] == ["second", "second"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("trouble", [(503, {}), (401, {"error": "invalid_client"}), (200, "<html>")])
def test_an_ageing_token_serves_while_the_server_is_in_trouble(server: TokenServer, trouble: Any) -> None:
    server.answers = [granted("first")]
    clock = Clock()
    tokens = provider(server, clock)
    assert tokens.token() == "first"
    server.answers = [trouble] * 10
    clock.now += 99
    assert tokens.token() == "first"
    clock.now += 1
    with pytest.raises((SaslAuthenticationFailedError, TokenUnavailableError)):
        tokens.token()
    server.answers = [granted("second")]
    assert tokens.token() == "second"


def test_trouble_is_tried_again_once(server: TokenServer) -> None:
    server.answers = [(503, {}), granted("second")]
    assert provider(server).token() == "second"
    server.answers = [(503, {}), (503, {}), granted("third")]
    with pytest.raises(TokenUnavailableError, match="answered 503"):
        provider(server).token()
    assert len(server.requests) == 4


@pytest.mark.parametrize("code", [400, 401, 403])
def test_a_refusal_is_not_tried_again_and_names_the_reason(server: TokenServer, code: int) -> None:
    server.answers = [(code, {"error": "invalid_client", "error_description": f"no {SECRET}"}), granted("late")]
    with pytest.raises(SaslAuthenticationFailedError, match=f"{server.url} refused: {code} invalid_client") as caught:
        provider(server).token()
    assert len(server.requests) == 1
    assert SECRET not in "".join(traceback.format_exception(caught.value))


ODD = {
    "a list": (200, []),
    "no token": (200, {"expires_in": 5}),
    "a token of null": (200, {"access_token": None}),
    "no legal token": (200, {"access_token": "a\x01auth=b"}),
    "an empty token": (200, {"access_token": ""}),
    "no number": granted("a", "soon"),
    "no JSON": (200, "<html>"),
    "a refusal without a reason": (500, "oh"),
    "a reason that is a sentence": (500, {"error": f"no {SECRET}"}),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_is_no_token(server: TokenServer, odd: str) -> None:
    server.answers = [ODD[odd]] * 2
    with pytest.raises(TokenUnavailableError, match="the token server at") as caught:
        provider(server).token()
    assert SECRET not in str(caught.value)


def test_a_token_without_a_stated_life_is_kept_for_a_minute(server: TokenServer) -> None:
    server.answers = [(200, {"access_token": "a"}), granted("b")]
    clock = Clock()
    tokens = provider(server, clock)
    assert tokens.token() == tokens.token() == "a"
    clock.now += 48
    assert tokens.token() == "b"


def test_the_credentials_do_not_follow_a_redirect(server: TokenServer) -> None:
    with TokenServer() as other:
        server.answers = [(307, {"Location": other.url}), (302, {"Location": other.url})]
        with pytest.raises(TokenUnavailableError, match="answered 302"):
            provider(server).token()
        assert other.requests == []


def test_a_server_that_is_not_there_is_named_with_the_reason() -> None:
    with TokenServer() as server:
        tokens = provider(server)
    with pytest.raises(TokenUnavailableError, match=f"{server.url} does not answer: .*refused"):
        tokens.token()
    assert issubclass(TokenUnavailableError, KafkaConnectionError), "so that clients try again"


def test_a_file_is_read_at_every_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    tokens = FileToken(str(file))
    with pytest.raises(TokenUnavailableError, match=r"token_file .*token cannot be used: No such file"):
        tokens.token()
    for content in ("first", "second"):
        file.write_text(f"{content}\n")
        assert tokens.token() == content
    for content in (b"", b"two words", b"\xff", json.dumps({"access_token": "a"}).encode()):
        file.write_bytes(content)
        with pytest.raises(TokenUnavailableError, match="it holds no token"):
            tokens.token()
