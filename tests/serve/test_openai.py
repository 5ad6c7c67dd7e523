"""OpenAI's own client, unchanged, against tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from attar.core.recipe import ModelSource
from attar.models import load
from serve.fakes import Running

MESSAGES: Any = [
    {"role": "system", "content": "w3 w4"},
    {"role": "user", "content": [{"type": "text", "text": "w1 w2"}]},
]


@pytest.fixture(scope="module")
def client(real: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def writer(folders: dict[str, Path]) -> Any:
    return load(ModelSource(path=str(folders["writer"])))


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """By the whole module, without any cache."""
    written: list[int] = []
    while len(written) < count and (not written or written[-1] != 5):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


def chat_ids(model: Any) -> list[int]:
    turns = [{"role": "system", "content": "w3 w4"}, {"role": "user", "content": "w1 w2"}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_models_are_listed(client: openai.OpenAI):
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["writer", "kinds", "vectors"]
    assert client.models.retrieve("kinds").id == "kinds"
    with pytest.raises(openai.NotFoundError, match="there is no model 'none'"):
        client.models.retrieve("none")


def test_a_chat_is_answered_as_the_model_answers(client: openai.OpenAI, writer: Any):
    answer = client.chat.completions.create(
        model="writer", messages=MESSAGES, max_tokens=12, temperature=0
    )
    ids = chat_ids(writer)
    expected = greedy(writer, ids, 12)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == writer.tokenizer.decode(expected, skip_special_tokens=True)
    assert choice.finish_reason == ("stop" if expected[-1] == 5 else "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(expected)
    assert answer.usage.total_tokens == len(ids) + len(expected)


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI):
    asked: Any = {"model": "writer", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert len([text for text in texts if text]) > 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_prompts_at_once_whole_and_streamed(client: openai.OpenAI, writer: Any):
    prompts = ["w1 w2 w3", "w40", "w7 w8"]
    asked: Any = {"model": "writer", "prompt": prompts, "max_tokens": 8, "temperature": 0}
    answer = client.completions.create(**asked)
    texts: dict[int, str] = {}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    for index, prompt in enumerate(prompts):
        ids = writer.tokenizer(prompt)["input_ids"]
        whole = [*ids, *greedy(writer, ids, 8)]
        before, after = (
            writer.tokenizer.decode(each, skip_special_tokens=True) for each in (ids, whole)
        )
        text = after.removeprefix(before)
        assert text.startswith(" ")  # it goes on where the prompt ends
        assert answer.choices[index].text == text
        assert texts[index] == text
    ids = writer.tokenizer(prompts[1])["input_ids"]
    same = client.completions.create(**{**asked, "prompt": ids})
    assert same.choices[0].text == answer.choices[1].text


def test_stop_words_end_an_answer(client: openai.OpenAI):
    asked: Any = {"model": "writer", "prompt": "w9 w10", "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    words = whole.split()
    assert len(words) > 4
    word = f"{words[2]} {words[3]}"  # across two tokens
    cut = whole.index(word)
    answer = client.completions.create(**asked, stop=[word, "never"])
    assert answer.choices[0].text == whole[:cut]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(
        choice.text
        for chunk in client.completions.create(**asked, stop=word, stream=True)
        for choice in chunk.choices
    )
    assert streamed == whole[:cut]


def test_seeds_draw_the_same_again(client: openai.OpenAI):
    def draw(seed: int | None, **more: Any) -> str:
        return (
            client.completions.create(
                model="writer", prompt="w1", max_tokens=16, seed=seed, temperature=1.5, **more
            )
            .choices[0]
            .text
        )

    assert draw(3) == draw(3)
    assert draw(-1, top_p=0.9) == draw(-1, top_p=0.9)
    assert len({draw(seed) for seed in range(5)} | {draw(None)}) > 3
    assert draw(3, extra_body={"top_k": 1}) == draw(4, extra_body={"top_k": 1})


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI, writer: Any):
    ids = writer.tokenizer("w5 w6")["input_ids"]
    written = greedy(writer, ids, 6)
    with torch.no_grad():
        logits = writer.module(input_ids=torch.tensor([[*ids, *written]])).logits[0].double()
    exact = logits.log_softmax(-1)[len(ids) - 1 :]
    answer = client.completions.create(
        model="writer", prompt="w5 w6", max_tokens=6, temperature=0, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs == pytest.approx(
        [float(exact[at, token]) for at, token in enumerate(written)], abs=1e-4
    )
    assert found.tokens == [writer.tokenizer.decode([token]) for token in written]
    assert found.text_offset is not None
    assert found.text_offset[0] == 0
    assert [len(top) for top in found.top_logprobs or ()] == [3] * len(written)
    for at, top in enumerate(found.top_logprobs or ()):
        wanted = exact[at].topk(3)
        names = [writer.tokenizer.decode([int(token)]) for token in wanted.indices]
        assert top == pytest.approx(dict(zip(names, wanted.values.tolist(), strict=True)), abs=1e-4)


def test_chats_tell_log_probabilities_too(client: openai.OpenAI):
    asked: Any = {"model": "writer", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for each in logprobs.content:
        assert bytes(each.bytes or ()).decode() == each.token
        assert each.logprob == each.top_logprobs[0].logprob
        assert each.logprob <= 0
    streamed = [
        each
        for chunk in client.chat.completions.create(**asked, logprobs=True, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content or ()
    ]
    assert [each.token for each in streamed] == [each.token for each in logprobs.content]


@pytest.mark.parametrize("coded", ["float", "base64"])
def test_embeddings(client: openai.OpenAI, folders: dict[str, Path], coded: Any):
    texts = ["w1 w2", "w3", "w1 w2 w3 w4 w5 w6 w7 w8 w9"]
    answer = client.embeddings.create(model="vectors", input=texts, encoding_format=coded)
    model = load(ModelSource(path=str(folders["vectors"])))
    for text, found in zip(texts, answer.data, strict=True):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            mean = model.base(input_ids=ids).last_hidden_state[0].mean(0)
        expected = (mean / mean.norm()).numpy()
        vector: Any = found.embedding
        if isinstance(vector, str):
            import base64

            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        assert np.abs(np.array(vector) - expected).max() < 1e-5
    assert answer.usage.prompt_tokens == 4 + 3 + 11


def test_classes(client: openai.OpenAI, folders: dict[str, Path]):
    model = load(ModelSource(path=str(folders["kinds"])))
    texts = ["w1 w2 w3", "w50", "w9 w9 w9 w9 w9"]
    answer: Any = client.post(
        "../classify", body={"model": "kinds", "input": texts}, cast_to=object
    )
    assert answer["labels"] == ["bad", "good", "mixed"]
    for text, found in zip(texts, answer["data"], strict=True):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            chances = model.module(input_ids=ids).logits[0].softmax(-1)
        assert found["probs"] == pytest.approx(chances.tolist(), abs=1e-5)
        assert found["label"] == model.labels[int(chances.argmax())]
        assert math.isclose(sum(found["probs"]), 1, abs_tol=1e-5)


def test_what_cannot_be_done_is_said(client: openai.OpenAI):
    def refused(**asked: Any) -> str:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{"model": "writer", "prompt": "w1", **asked})
        assert error.value.status_code == 400
        return error.value.message

    assert "n: Input should be 1" in refused(n=2)
    assert "presence_penalty" in refused(presence_penalty=0.5)
    assert "no parameter 'best'" in refused(extra_body={"best": 2})
    assert "1 of the answer" in refused(prompt="w1 " * 62)
    assert "more than the 64" in refused(prompt="w1 " * 80)
    assert "may have 1024 tokens" in refused(max_tokens=2000)
    assert "and 63 of the answer" in refused(max_tokens=63)
    assert "beyond the 100 there are" in refused(prompt=[100])
    assert "is no language model" in refused(model="kinds")
    with pytest.raises(openai.BadRequestError, match="is for causal-lm, not for embedding"):
        client.embeddings.create(model="writer", input="w1")
    with pytest.raises(openai.NotFoundError, match="there are writer, kinds, vectors"):
        client.completions.create(model="none", prompt="w1")
    # harmless parameters are taken
    client.completions.create(
        model="writer", prompt="w1", user="me", n=1, presence_penalty=0.0, logit_bias={}
    )
