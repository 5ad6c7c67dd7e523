"""Statuses, errors of one shape, keys, limits, health, counts and logs."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from attar.errors import UserError
from attar.serve import encoding, run
from attar.serve.auth import check_host, read_keys
from attar.serve.gathering import Bounds, Gatherer
from attar.serve.log import _Lines
from attar.serve.opening import Loaded
from attar.serve.schemas import Chat, Classification, Completion, Embedding
from attar.serve.settings import Settings, Source
from serve.fakes import Echo, Running, lengths, opener, running, settings, tokenizer

STRANGE = {f"k{number}": 1 for number in range(1000)}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    plain = answer.json()
    assert set(plain) == {"error"}
    assert set(plain["error"]) == {"message", "type", "param", "code"}
    return plain["error"]


def post(server: Running, path: str, **more: Any) -> httpx.Response:
    return httpx.post(server.url + path, timeout=60, **more)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "required"),
        (b"{", "no JSON"),
        (b"[1]", "valid dictionary"),
        (b"\xff", "body"),
        (b'{"messages": []}', "at least 1 item"),
        (b'{"messages": [{"role": "user"}]}', "messages.0.content"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite"),
        (b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}', "unicode"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "unicode"),
        (b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}', "seed"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": [{}]}', "tools: "),
        (b'{"messages": [{"role": "user", "content": "x"}], "tool": []}', "no parameter 'tool'"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "5"}', "valid integer"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream_options": {}}', "stream: true"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}', "none of them empty"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}', "logprobs: true"),
        (b'{"a":' * 50_000, ""),
    ],
)
def test_nonsense_is_refused_in_openais_shape(echo: Running, body: bytes, said: str):
    answer = post(
        echo,
        "/v1/chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
    )
    assert said.lower() in error(answer, 400)["message"].lower()


def test_paths_and_methods_that_are_not_there(echo: Running):
    error(httpx.get(f"{echo.url}/v2"), 404)
    refused = httpx.get(f"{echo.url}/v1/chat/completions")
    error(refused, 405)
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Embedding, {"input": [[]] * 1000}),
        (Classification, {"input": [{}] * 1000}),
        (Completion, {"prompt": ["a", *[[]] * 1000]}),
        (Completion, {"prompt": "a", "stop": [1] * 1000}),
        (Chat, {"messages": [{}] * 1000}),
        (Chat, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
        (Classification, {"input": "a", **STRANGE}),
        (Chat, {"messages": [{"role": "user", "content": "a", **STRANGE}]}),
        (Chat, {"messages": [{"role": "user", "content": [{"type": "text", **STRANGE}]}]}),
        (Chat, {"messages": [{"role": "user", "content": "a"}], "stream_options": STRANGE}),
        (Chat, {"messages": [{"role": "user", "content": "a"}], "response_format": STRANGE}),
    ],
)
def test_of_many_mistakes_few_are_kept(kind: Any, body: Any):
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() < 10


def test_the_first_strange_field_is_told_and_formats_are(echo: Running):
    told = error(post(echo, "/v1/chat/completions", json={**CHAT, **STRANGE}), 400)
    assert (told["message"], told["param"]) == ("there is no parameter 'k0'", "k0")
    for given, status in (({"type": "text"}, 200), ({"type": "json_object"}, 400)):
        asked = {**CHAT, "response_format": given}
        assert post(echo, "/v1/chat/completions", json=asked).status_code == status


def test_every_answer_has_an_id(echo: Running):
    given = httpx.get(f"{echo.url}/healthz", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = httpx.get(f"{echo.url}/healthz", headers={"X-Request-Id": "not mine"})
    assert len(made.headers["x-request-id"]) == 32


def test_a_body_that_is_too_large_is_not_read(echo: Running):
    answer = post(echo, "/classify", content=b"x" * 2_000_000)
    assert error(answer, 413)["code"] == "body_too_large"
    chunked = post(echo, "/classify", content=iter([b"x" * 600_000] * 2))
    error(chunked, 413)


def test_a_hundred_megabytes_harm_nobody(echo: Running):
    with socket.create_connection(("127.0.0.1", echo.port)) as client:
        head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {10**8}\r\n\r\n"
        client.sendall(head.encode())
        sent = 0
        try:
            while sent < 10**8:
                sent += client.send(b"x" * 65536)
        except OSError:
            pass  # it hung up, as it should
        assert sent < 10**8
    assert post(echo, "/classify", json={"model": "kinds", "input": "even"}).status_code == 200


def test_a_body_that_does_not_come_is_given_up():
    given = settings(limits={"body_seconds": 0.3})
    with running(given) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
        client.settimeout(60)
        told = b""
        while more := client.recv(65536):
            told += more
        assert told.startswith(b"HTTP/1.1 408")
        assert b'"slow_body"' in told


def test_keys():
    given = settings("echo", keys=("first-key", "second-key"))
    with running(given) as server:
        url = server.url
        for path in ("/healthz", "/readyz", "/"):
            assert httpx.get(url + path).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert error(httpx.get(url + path), 401)["code"] == "invalid_api_key"
        for sent in ("Bearer wrong-key", "Basic first-key", "first-key", "Bearer", "Bearer é"):
            answer = httpx.get(url + "/v1/models", headers={"Authorization": sent.encode()})
            error(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in given.keys:
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(url + "/v1/models", headers=headers).status_code == 200
        # an unknown client does not get to send a body
        refused = post(server, "/v1/chat/completions", content=b"x" * 10**7)
        error(refused, 401)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "127.0.0.1.elsewhere.example"}, 403),
        ({"Host": "127.0.0.1]"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8001"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_pages_from_elsewhere_are_refused(echo: Running, headers: dict[str, str], status: int):
    answer = httpx.get(f"{echo.url}/v1/models", headers=headers)
    assert answer.status_code == status
    assert httpx.get(f"{echo.url}/healthz", headers=headers).status_code == 200


def test_keys_and_anyone_let_other_names_in():
    for more in ({"keys": ("a-long-key",)}, {"anyone": True}):
        with running(settings("echo", **more)) as server:
            headers = {"Host": "elsewhere.example", "Authorization": "Bearer a-long-key"}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_a_connection_without_a_whole_request_is_closed():
    with running(settings(), idle=1) as server:
        for part in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET", b"POST /classify HT"):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(part)
                client.settimeout(60)
                while client.recv(65536):
                    pass


def test_connections_beyond_the_bound_are_told_and_closed(monkeypatch: pytest.MonkeyPatch):
    def come_to(count: int) -> None:
        end = time.monotonic() + 60
        while len(server.server.server_state.connections) != count:
            assert time.monotonic() < end
            time.sleep(0.01)

    monkeypatch.setattr(run, "_SPARE", 1)
    with running(settings(limits={"connections": 2})) as server, httpx.Client() as first:
        url, address = f"{server.url}/v1/models", ("127.0.0.1", server.port)
        assert first.get(url).status_code == 200
        with socket.create_connection(address):
            come_to(2)
            refused = httpx.get(url)
            assert error(refused, 503)["code"] == "connections"
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            for path in ("/healthz", "/readyz"):
                come_to(2)
                assert httpx.get(server.url + path).status_code == 200
            assert first.get(url).status_code == 200  # it was there before
            come_to(2)
            with socket.create_connection(address):
                come_to(3)
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{server.url}/healthz")
        come_to(1)
        assert httpx.get(url).status_code == 200


def test_keys_are_read_line_by_line():
    assert read_keys(["# ours", "", " abcdefgh ", "12345678"]) == ("abcdefgh", "12345678")
    for bad in ("short", "with a space", "schlüssel-eins"):
        with pytest.raises(UserError, match="at least 8 characters"):
            read_keys([bad])


def test_others_are_let_in_with_keys_only():
    check_host("127.0.0.1", (), False)
    check_host("::1", (), False)
    check_host("LOCALHOST", (), False)
    check_host("0.0.0.0", ("some-key-1",), False)
    check_host("0.0.0.0", (), True)
    for host in ("0.0.0.0", "", "127.elsewhere.example"):
        with pytest.raises(UserError, match="no API keys"):
            check_host(host, (), False)


def test_a_full_queue_says_when_to_come_back():
    limits = {"batch": 1, "queue": 1, "context": 400}
    with running(settings(limits=limits), opener(lambda: Echo(0.2))) as server:
        long = {"prompt": "x" * 190, "stream": True, "max_tokens": 190, "temperature": 0}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=60) as one:
            lines = one.iter_lines()  # kept, for a reader that is let go of hangs up
            next(lines)  # it has left the queue
            with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=60) as two:
                assert one.status_code == two.status_code == 200
                for stream in (False, True):
                    short = {"prompt": "y", "stream": stream}
                    refused = post(server, "/v1/completions", json=short)
                    assert error(refused, 429)["code"] == "queue_full"
                    assert refused.headers["retry-after"] == "1"
        many = post(server, "/v1/completions", json={"prompt": ["y"] * 2})
        assert "more than 1" in error(many, 400)["message"]
        assert server.idle()


def test_answers_that_take_too_long():
    limits = {"batch": 1, "seconds": 0.5, "queue_seconds": 0.5, "context": 400}
    with running(settings(limits=limits), opener(lambda: Echo(0.02))) as server:
        late = post(server, "/v1/completions", json={"prompt": "x" * 200, "max_tokens": 200})
        assert error(late, 504)["code"] == "timeout"
        events = post(
            server,
            "/v1/completions",
            json={"prompt": "x" * 200, "max_tokens": 200, "stream": True},
        ).text.strip()
        assert json.loads(events.split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == (
            "timeout"
        )
        assert server.idle()


def test_prompts_that_wait_too_long():
    limits = {"batch": 1, "seconds": 60, "queue_seconds": 2.5, "context": 800}
    with running(settings(limits=limits), opener(lambda: Echo(0.1))) as server:
        long = {"prompt": "x" * 390, "stream": True, "max_tokens": 390}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=60) as one:
            lines = one.iter_lines()  # kept: without it the stream is closed
            next(lines)
            refused = post(server, "/v1/completions", json={"prompt": "y"})
            assert error(refused, 503)["code"] == "queue_timeout"
            assert refused.headers["retry-after"]
        assert server.idle()


def test_a_model_that_fails_is_our_fault_and_the_next_request_is_answered(
    caplog: pytest.LogCaptureFixture,
):
    with running(settings(), opener(lambda: Echo(fails_on="poison"))) as server:
        with caplog.at_level(logging.ERROR, "attar.serve"):
            failed = post(server, "/v1/completions", json={"prompt": "a poison"})
        assert "poison" not in error(failed, 500)["message"]
        assert "this prompt is poison" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.ERROR, "attar.serve"):
            streamed = post(server, "/v1/completions", json={"prompt": "a poison", "stream": True})
        assert "the model failed on this prompt" in streamed.text
        assert "this prompt is poison" in caplog.text
        fine = post(server, "/v1/completions", json={"prompt": "fine", "temperature": 0})
        assert fine.json()["choices"][0]["text"] == "fine"


class Nowhere(Echo):
    """Logits that are no numbers for prompts with an x in them."""

    def extend(self, given: Any) -> Any:
        found = super().extend(given)
        for row, prompt in self.prompts.items():
            if row in found and tokenizer()("x")["input_ids"][0] in prompt:
                found[row][3] = np.nan
        return found


def test_numbers_that_are_none_are_no_answer():
    def nowhere(ids: Any, mask: Any) -> Any:
        return np.where(mask.sum(1, keepdims=True) == 3, np.nan, lengths(ids, mask))

    made = opener(Nowhere)

    def open_(source: Source, given: Settings) -> Loaded:
        loaded = made(source, given)
        if source.name == "vectors":
            loaded.load = Gatherer(nowhere, Bounds(4, 100, 0.05), 0)
        return loaded

    with running(settings("echo", "vectors"), open_) as server:
        for more in ({"temperature": 0}, {"temperature": 1}, {"logprobs": 2}):
            bad = {"prompt": "an x", **more}
            assert error(post(server, "/v1/completions", json=bad), 500)["code"] == "model_error"
        several = {"prompt": ["an x", "fine"], "temperature": 0}
        assert error(post(server, "/v1/completions", json=several), 500)["code"] == "model_error"
        fine = post(server, "/v1/completions", json={"prompt": "fine", "temperature": 0})
        assert fine.json()["choices"][0]["text"] == "fine"
        for form in ("float", "base64"):
            asked = {"input": "abc", "model": "vectors", "encoding_format": form}
            assert error(post(server, "/v1/embeddings", json=asked), 500)["code"] == "model_error"
            assert post(server, "/v1/embeddings", json={**asked, "input": "ab"}).status_code == 200


def test_a_stream_that_fails_is_in_the_log_and_in_the_counts(caplog: pytest.LogCaptureFixture):
    with running(settings(), opener(lambda: Echo(fails_on="poison"))) as server:
        with caplog.at_level(logging.INFO, "attar.serve"):
            post(server, "/v1/completions", json={"prompt": "a poison", "stream": True})
            line = _request_line(caplog)
        assert json.loads(line)["error"] == "the model failed on this prompt"
        assert "traceback" not in line
        assert _sample(server, "attar_broken_total") == 1
        assert _sample(server, "attar_canceled_total") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_counted_once(stream: bool):
    echo = Echo(0.05)
    with running(settings(limits={"context": 400}), opener(lambda: echo)) as server:
        asked = {"prompt": ["x" * 90, "y" * 90], "max_tokens": 90, "stream": stream}
        asks = httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=0.5)
        with suppress(httpx.ReadTimeout), asks as answer:
            next(answer.iter_lines())
        end = time.monotonic() + 60
        while not _sample(server, "attar_canceled_total") and time.monotonic() < end:
            time.sleep(0.01)
        assert server.idle()
        assert _sample(server, "attar_canceled_total") == 1


def test_a_template_that_is_broken_is_told_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    asked = {"messages": [{"role": "user", "content": "x"}]}
    with running(settings()) as server:
        own = "{{ raise_exception('after you') }}"
        for template, said, logged in (
            (own, "refuses these messages: after you", False),
            ("{{ nothing_of_this_name() }}", "fails on these messages", True),
        ):
            caplog.clear()
            monkeypatch.setattr(tokenizer(), "chat_template", template)
            with caplog.at_level(logging.ERROR, "attar.serve"):
                told = error(post(server, "/v1/chat/completions", json=asked), 400)
            assert said in told["message"]
            assert ("nothing_of_this_name" in caplog.text) == logged


def test_parts_of_a_character_are_told_by_their_bytes(echo: Running):
    asked = {"prompt": "\u4e2d", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    told = post(echo, "/v1/completions", json=asked).json()["choices"][0]["logprobs"]
    assert told["tokens"] == [r"bytes:\xe4", r"bytes:\xb8", r"bytes:\xad"]
    assert all(len(top) == 2 for top in told["top_logprobs"])
    chat = {"messages": [{"role": "user", "content": "\u4e2d"}], "max_tokens": 12}
    more = {"temperature": 0, "logprobs": True, "top_logprobs": 1}
    found = post(echo, "/v1/chat/completions", json=chat | more).json()["choices"][0]
    tokens = found["logprobs"]["content"]
    known = b"".join(bytes(token["bytes"]) for token in tokens)
    assert known.decode() == found["message"]["content"]
    assert [token["bytes"] for token in tokens][6:9] == [[0xE4], [0xB8], [0xAD]]


def test_an_answer_may_be_sent_back_as_it_came(echo: Running):
    nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **nothing},
        {"role": "user", "content": "c", "name": "me"},
    ]
    asked = {"messages": turns, "top_p": 0, "tools": [], "tool_choice": "none", "max_tokens": 2}
    assert post(echo, "/v1/chat/completions", json=asked).status_code == 200


def test_a_stream_that_tells_counts_tells_none_before_its_end(echo: Running):
    asked = {"prompt": "four", "stream": True, "stream_options": {"include_usage": True}}
    lines = post(echo, "/v1/completions", json=asked).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["prompt_tokens"] == 4


def test_draining_lets_nothing_new_in():
    echo = Echo(0.01)
    with running(settings(limits={"context": 400}), opener(lambda: echo)) as server:
        long = {"prompt": "x" * 100, "stream": True, "max_tokens": 200, "temperature": 0}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=60) as one:
            lines = one.iter_lines()
            next(lines)
            echo.seconds = 0.2  # a token, until all is asked
            server.server.handle_exit(15, None)
            ready = httpx.get(f"{server.url}/readyz")
            assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            assert error(post(server, "/classify", json={"input": "x"}), 503)["code"] == "draining"
            echo.seconds = 0.0
            rest = [line for line in lines if line.startswith("data: {")]
            assert json.loads(rest[-1][6:])["choices"][0]["finish_reason"] == "stop"


def test_counts(echo: Running):
    before = _sample(echo, 'attar_tokens_total{kind="prompt",model="echo"}')
    post(echo, "/v1/completions", json={"prompt": "four", "model": "echo", "temperature": 0})
    post(echo, "/classify", json={"input": ["a", "b"], "model": "kinds"})
    assert _sample(echo, 'attar_tokens_total{kind="prompt",model="echo"}') == before + 4
    assert _sample(echo, 'attar_texts_total{model="kinds"}') >= 2
    assert _sample(echo, 'attar_requests_total{path="/v1/completions",status="200"}') >= 1
    assert _sample(echo, 'attar_running{model="echo"}') == 0
    assert _sample(echo, "process_resident_memory_bytes") > 0


def _sample(server: Running, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines()]
    return next((float(value) for key, _, value in lines if key == name), 0.0)


def _request_line(caplog: pytest.LogCaptureFixture) -> str:
    """The line of a request, which is written once the answer is sent."""
    records: list[logging.LogRecord] = []
    end = time.monotonic() + 60
    while not records and time.monotonic() < end:
        time.sleep(0.01)
        records = [each for each in caplog.records if each.getMessage() == "request"]
    return _Lines().format(records[-1])


def test_the_log_tells_facts_and_no_words(echo: Running, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "attar.serve"):
        post(
            echo,
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "my secret"}], "model": "echo"},
            headers={"Authorization": "Bearer hidden-key"},
        )
        line = _request_line(caplog)
    facts = json.loads(line)
    assert facts["status"] == 200
    assert facts["path"] == "/v1/chat/completions"
    assert facts["model"] == "echo"
    assert facts["prompt_tokens"] > 0
    assert "secret" not in line
    assert "hidden-key" not in line


def test_too_many_texts_and_texts_that_are_too_long(echo: Running):
    def asked(**body: Any) -> dict[str, Any]:
        return error(post(echo, "/v1/embeddings", json={"model": "vectors", **body}), 400)

    assert "more than 8" in asked(input=["x"] * 9)["message"]
    assert asked(input="x" * 401)["code"] == "context_length_exceeded"
    assert asked(input="")["param"].startswith("input")
    assert "beyond the 257" in asked(input=[[257]])["message"]


def test_many_numbers_are_written_down_while_others_are_served(
    echo: Running, monkeypatch: pytest.MonkeyPatch
):
    class Seen(JSONResponse):
        def render(self, content: Any) -> bytes:
            threads.append(threading.current_thread())
            return super().render(content)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(encoding, "JSONResponse", Seen)
    loops = {thread for thread in threading.enumerate() if thread.name.startswith("Thread-")}
    vectors = post(echo, "/v1/embeddings", json={"model": "vectors", "input": ["ab", "c"]}).json()
    assert [each["embedding"][0] for each in vectors["data"]] == [2, 1]
    kinds = post(echo, "/classify", json={"model": "kinds", "input": ["ab", "c"]}).json()
    assert [each["label"] for each in kinds["data"]] == ["even", "odd"]
    assert len(threads) == 2
    assert not loops & {*threads}
