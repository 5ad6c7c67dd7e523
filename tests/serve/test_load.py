"""Many clients at once, and clients that behave badly."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from serve.fakes import Echo, Running, opener, running, settings

CLIENTS = 50
LIMITS = {"context": 600, "tokens": 500, "batch": 16, "queue": 200}


@pytest.fixture(scope="module")
def busy() -> Any:
    with running(settings(limits=LIMITS), opener(lambda: Echo(0.001))) as server:
        yield server


def ask(client: httpx.Client, marker: str, stream: bool) -> str:
    """What comes back for a chat with this marker in it."""
    body = {
        "messages": [{"role": "user", "content": marker}],
        "temperature": 0,
        "stream": stream,
    }
    if not stream:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]
    text = ""
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content", "")
    return text


def head(length: int) -> bytes:
    """The beginning of a request for a completion."""
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",  # or the body is not even read as one
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def expected(marker: str) -> str:
    return f"user: {marker}\nassistant: "


def test_fifty_clients_each_get_their_own_answer(busy: Running):
    def client(number: int) -> int:
        draw = random.Random(number)
        with httpx.Client(base_url=busy.url, timeout=60) as session:
            for turn in range(4):
                marker = f"client {number} turn {turn} é中 " + "x" * draw.randrange(60)
                assert ask(session, marker, draw.random() < 0.5) == expected(marker)
        return 4

    with ThreadPoolExecutor(CLIENTS) as threads:
        assert sum(threads.map(client, range(CLIENTS))) == 4 * CLIENTS
    assert busy.idle()


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_vanish_stop_their_answers(stream: bool):
    echo = Echo(0.05)
    with running(settings(limits=LIMITS), opener(lambda: echo)) as server:
        body = {"prompt": "x" * 280, "max_tokens": 280, "temperature": 0, "stream": stream}
        text, sockets = json.dumps(body).encode(), []
        for _ in range(20):
            one = socket.create_connection(("127.0.0.1", server.port))
            one.sendall(head(len(text)) + text)
            sockets.append(one)
        end = time.monotonic() + 60
        while not echo.tokens and time.monotonic() < end:
            time.sleep(0.01)
        assert echo.tokens
        for one in sockets:
            one.close()
        with httpx.Client(base_url=server.url, timeout=60) as session:
            assert ask(session, "me", True) == expected("me")
        assert server.idle()
        assert echo.tokens < 20 * 280 / 2
        entries = server.pool._entries.values()
        end = time.monotonic() + 60
        while any(entry.users for entry in entries) and time.monotonic() < end:
            time.sleep(0.01)
        assert [entry.users for entry in entries] == [0]


def test_readers_that_do_not_read_hold_nobody(busy: Running):
    """They never take a byte of an answer that is larger than what sockets hold."""
    text = json.dumps({"prompt": "x" * 290, "max_tokens": 290, "stream": True, "logprobs": 5})
    hung = []
    for _ in range(16):  # as many as write at once
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", busy.port))
        one.sendall(head(len(text)) + text.encode())
        hung.append(one)
    with httpx.Client(base_url=busy.url, timeout=30) as session:
        for turn in range(5):
            assert ask(session, f"quick {turn}", True) == expected(f"quick {turn}")
    assert busy.idle()  # all that they asked for is written, whether they read it or not
    for one in hung:
        one.close()


def test_clients_that_send_nothing_hold_nobody(busy: Running):
    hung = [socket.create_connection(("127.0.0.1", busy.port)) for _ in range(50)]
    for number, one in enumerate(hung):
        if number % 2:
            one.sendall(head(10) + b"{")
    with httpx.Client(base_url=busy.url, timeout=30) as session:
        assert ask(session, "quick", False) == expected("quick")
    for one in hung:
        one.close()


def test_good_and_bad_clients_together(busy: Running):
    stop = threading.Event()

    def bad(number: int) -> None:
        draw = random.Random(number)
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", busy.port)) as one:
                junk = [b"\x00" * 100, b"GET / HTTP/9\r\n\r\n", b"POST /classify HTTP/1.1\r\n"]
                one.sendall(draw.choice(junk))
                time.sleep(0.01)

    def good(number: int) -> None:
        with httpx.Client(base_url=busy.url, timeout=60) as session:
            for turn in range(5):
                marker = f"good {number} {turn}"
                assert ask(session, marker, True) == expected(marker)

    with ThreadPoolExecutor(16) as threads:
        bads = [threads.submit(bad, number) for number in range(4)]
        for done in [threads.submit(good, number) for number in range(12)]:
            done.result()
        stop.set()
        for each in bads:
            each.result()
    assert busy.idle()
