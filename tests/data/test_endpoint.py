"""A server behind an address: every way of telling, every way of failing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from attar.data.endpoint import Endpoint, Patience, Refused, Said
from attar.errors import Unreachable, UserError
from loopback import Reply, Server, serving

SECRET = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def endpoint(server: Server, **more: Any) -> Endpoint:
    patience = Patience(**{"timeout": 2.0, "tries": 3, "at_once": 4, "pause": 0.01, **more})
    return Endpoint(server.url, SECRET, patience)


def logs(prefix: list[int]) -> dict[int, float]:
    """What the pretended model finds after a prefix: ten tokens, by the last one."""
    return {(prefix[-1] * 7 + k) % 90: -1.0 - k / 4 for k in range(10)}


def best(prefix: list[int], count: int) -> list[tuple[int, float]]:
    return sorted(logs(prefix).items(), key=lambda item: -item[1])[:count]


def vllm(path: str, asked: dict[str, Any]) -> Reply:
    row, count = asked["prompt"], asked["prompt_logprobs"]
    told: list[Any] = [None]
    for place in range(1, len(row)):
        found = dict(best(row[:place], count)) | {row[place]: -9.0}  # the prompt's own token too
        told.append({str(key): {"logprob": log, "rank": 1} for key, log in found.items()})
    return 200, {"choices": [{"text": "x", "prompt_logprobs": told}]}


def echo(path: str, asked: dict[str, Any]) -> Reply:
    if "prompt_logprobs" in asked:
        return 400, {"error": "unknown field prompt_logprobs"}
    row, count = asked["prompt"], asked["logprobs"]
    told: list[Any] = [None]
    for place in range(1, len(row) + 1):  # and of the token that it writes
        found = best(row[:place], count)
        told.append({f"token_id:{key}": log for key, log in found})
    return 200, {"choices": [{"text": "x", "logprobs": {"top_logprobs": told}}]}


def llama_cpp(path: str, asked: dict[str, Any]) -> Reply:
    if "n_probs" not in asked:
        return 200, {"choices": [{"text": "x", "logprobs": None}]}
    told = [
        {"id": key, "token": "t", "logprob": log}
        for key, log in best(asked["prompt"], asked["n_probs"])
    ]
    content = [{"id": told[0]["id"], "token": "t", "logprob": -1.0, "top_logprobs": told}]
    return 200, {"choices": [{"text": "x", "logprobs": {"content": content}}]}


@pytest.mark.parametrize("kind", [vllm, echo, llama_cpp])
def test_tells_the_likeliest_tokens(kind: Any, server: Server) -> None:
    server.reply = kind
    rows = [[3, 4, 5, 6], [80, 2], [9, 8, 7]]
    found = endpoint(server).likeliest(rows, 6)
    for row, told in zip(rows, found, strict=True):
        wanted = [best(row[:place], 6) for place in range(1, len(row))]
        assert [list(zip(one.ids, one.logs, strict=True)) for one in told] == wanted
    assert all(asked["model"] == "tiny" for asked in server.asked)
    assert all(head["authorization"] == f"Bearer {SECRET}" for head in server.headers)


def test_texts_are_gone_on_from_and_chats_are_answered(server: Server) -> None:
    def reply(path: str, asked: dict[str, Any]) -> Reply:
        if path == "/v1/chat/completions":
            said = {"role": "assistant", "content": f"<{asked['messages'][-1]['content']}>"}
            return 200, {"choices": [{"message": said, "finish_reason": "stop"}]}
        assert path == "/v1/completions"
        return 200, {"choices": [{"text": f" {asked['prompt']}!", "finish_reason": "length"}]}

    server.reply = reply
    served = endpoint(server)
    assert served.write("a", 5, 0.5, 0.9, seed=4) == Said(" a!", "length")
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "b"}]
    assert served.write(chat, 7) == Said("<b>", "stop")
    how = {"temperature": 0.5, "top_p": 0.9, "seed": 4}
    assert server.asked == [
        {"model": "tiny", "prompt": "a", "max_tokens": 5, **how},
        {"model": "tiny", "messages": chat, "max_tokens": 7, "temperature": 0.0, "seed": 0},
    ]


@pytest.mark.parametrize(
    "message",
    [{"content": None, "refusal": "no"}, {"reasoning_content": "hm"}, {"content": ""}],
    ids=str,
)
def test_an_answer_of_nothing(message: Any, server: Server) -> None:
    server.reply = lambda path, asked: (200, {"choices": [{"message": message}]})
    assert endpoint(server).write([{"role": "user", "content": "a"}], 3) == Said("", "")


@pytest.mark.parametrize(
    "failing",
    [(429, {}), (500, {"error": "x"}), (503, b"busy"), (200, b"<html>"), (200, {"choices": []})],
    ids=str,
)
def test_asks_again_where_that_may_help(failing: Reply, server: Server) -> None:
    count = 0

    def reply(path: str, asked: dict[str, Any]) -> Reply:
        nonlocal count
        count += 1
        return failing if count < 3 else (200, {"choices": [{"text": "good"}]})

    server.reply = reply
    assert endpoint(server).write("a", 3) == Said("good", "")
    assert count == 3
    count = -10
    with pytest.raises(Unreachable, match="was asked 3 times"):
        endpoint(server).write("a", 3)
    assert count == -7


def test_a_slow_server_is_given_up(server: Server) -> None:
    def reply(path: str, asked: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return 200, {"choices": [{"text": "late"}]}

    server.reply = reply
    with pytest.raises(Unreachable, match="asked 2 times: timed out"):
        endpoint(server, timeout=0.05, tries=2).write("a", 3)


def test_nobody_there() -> None:
    gone = Endpoint("http://127.0.0.1:9/v1#m", None, Patience(1.0, 2, 1, 0.01))
    with pytest.raises(Unreachable, match="was asked 2 times"):
        gone.write("a", 3)


def test_a_refusal_is_told_once_and_without_the_key(server: Server) -> None:
    server.reply = lambda path, asked: (401, {"error": f"Incorrect API key: {SECRET}"})
    with pytest.raises(Refused, match="refuses with 401") as error:
        endpoint(server).write("a", 3)
    assert len(server.asked) == 1
    assert SECRET not in str(error.value)
    assert "server: {key: NAME}" in str(error.value)
    assert SECRET not in repr(endpoint(server))


@pytest.mark.parametrize("told", [["x"], [{"1": 2}], {"a": 1}, [{"a": {"logprob": 1}}]], ids=str)
def test_garbage_for_log_probabilities(told: Any, server: Server) -> None:
    server.reply = lambda path, asked: (
        200,
        {"choices": [{"text": "x", "prompt_logprobs": [None, *told] if told else told}]},
    )
    with pytest.raises((Unreachable, UserError)):
        endpoint(server).likeliest([[1, 2, 3]], 2)


def test_a_server_that_names_tokens_by_their_text(server: Server) -> None:
    def reply(path: str, asked: dict[str, Any]) -> Reply:
        if not asked.get("echo"):
            return 200, {"choices": [{"text": "x"}]}
        told = [None, *({" a": -1.0, " b": -2.0} for _ in asked["prompt"])]
        return 200, {"choices": [{"text": "x", "logprobs": {"top_logprobs": told}}]}

    server.reply = reply
    with pytest.raises(UserError, match="with the numbers of the tokens"):
        endpoint(server).likeliest([[1, 2, 3]], 2)


def test_fewer_tokens_than_asked_for(server: Server) -> None:
    server.reply = vllm
    with pytest.raises(UserError, match=r"write cache: \{top: 11\}|Write cache: \{top: 1[01]\}"):
        endpoint(server).likeliest([[1, 2, 3]], 64)


def test_no_model_named() -> None:
    with pytest.raises(UserError, match="names no model"):
        Endpoint("http://127.0.0.1:9/v1")


def test_tokens(server: Server) -> None:
    def reply(path: str, asked: dict[str, Any]) -> Reply:
        if path == "/tokenize":
            return 200, {"tokens": [len(word) for word in asked["prompt"].split()]}
        return 404, {}

    server.reply = reply
    assert endpoint(server).tokens("a bb ccc") == [1, 2, 3]
    server.reply = lambda path, asked: (404, {})
    assert endpoint(server).tokens("a bb ccc") is None


@pytest.mark.parametrize("key", [f"{SECRET}\n", f" {SECRET} "])
def test_space_around_a_key_is_no_part_of_it(server: Server, key: str) -> None:
    server.reply = lambda path, asked: (200, {"choices": [{"text": "x", "finish_reason": "stop"}]})
    Endpoint(server.url, key, Patience(2.0, 1, 1, 0.01)).write("a", 3)
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("key", ["sk-s\u00e9cret", "sk-se\ncret"])
def test_a_key_that_no_header_holds_is_refused_unseen(server: Server, key: str) -> None:
    with pytest.raises(UserError, match="no HTTP header may have") as error:
        Endpoint(server.url, key)
    assert "cret" not in str(error.value)


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match="is no address"):
        Endpoint("http://[::1/v1#m")
