"""What a client is told of its mistakes: where they are, in its own words and none of ours."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from serve.fakes import Running
from serve.test_http import error

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/classify", {"input": []}, "input", "at least 1 item"),
        ("/classify", {"input": ""}, "input", "at least 1 item"),
        ("/classify", {"input": ["x", ""]}, "input.1", "at least 1 item"),
        ("/classify", {"input": None}, "input", "a text, token ids, or a list of either"),
        ("/classify", {"input": {"text": "x"}}, "input", "a text, token ids, or a list of either"),
        ("/classify", {}, "input", "required"),
        ("/classify", {"input": [1.5]}, "input.0", "valid integer"),
        ("/v1/embeddings", {"input": [[]]}, "input.0", "at least 1 item"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt.1", "valid string"),
        ("/v1/completions", {"prompt": [[1], [-1]]}, "prompt.1.0", "greater than or equal to 0"),
        ("/v1/completions", {"prompt": "a", "stop": 5}, "stop", "valid string"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content", "parts"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "stop": [""]}, "stop", "give up"),
    ],
)
def test_where_a_mistake_is(echo: Running, path: str, body: Any, param: str, said: str):
    told = error(httpx.post(echo.url + path, json=body), 400)
    assert told["param"] == param
    assert told["message"].startswith(f"{param}: ")
    assert said in told["message"]
    assert "function" not in told["message"]
    assert "Value error" not in told["message"]


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"", "application/json", "a body is required"),
        (b'{"input": "\xff"}', "application/json", "JSON in UTF-8"),
        (b'{"input": ' + b"9" * 5000 + b"}", "application/json", "digits"),
        (b"[" * 400_000, "application/json", "deep"),
    ],
)
def test_what_is_wrong_with_a_body(echo: Running, body: bytes, kind: str, said: str):
    answer = httpx.post(f"{echo.url}/classify", content=body, headers={"Content-Type": kind})
    assert said in error(answer, 400)["message"]


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/x-www-form-urlencoded"])
def test_a_body_that_is_said_to_be_no_json(echo: Running, kind: str):
    given = json.dumps({"input": "x"}).encode()
    answer = httpx.post(f"{echo.url}/classify", content=given, headers={"Content-Type": kind})
    assert "as application/json" in error(answer, 415)["message"]


def test_what_is_wrong_with_a_path(echo: Running):
    for path in ("/docs", "//v1/models", f"{CHAT}/", "/healthz/"):
        assert error(httpx.get(echo.url + path), 404)["message"] == f"there is no path {path}"
    told = error(httpx.put(echo.url + CHAT), 405)["message"]
    assert told == f"{CHAT} takes POST, not PUT"


def test_heads_are_answered_as_gets_are(echo: Running):
    for path in ("/", "/healthz", "/readyz", "/v1/models", "/metrics"):
        head, get = httpx.head(echo.url + path), httpx.get(echo.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert httpx.head(f"{echo.url}/v2").status_code == 404
    assert httpx.head(echo.url + CHAT).status_code == 405


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_as_json(echo: Running, sent: bytes):
    with socket.create_connection(("127.0.0.1", echo.port)) as client:
        client.sendall(sent)
        client.settimeout(60)
        told = b""
        while more := client.recv(65536):
            told += more
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/json" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"
