"""Teachers that write and that are asked: against plain loops and formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.data.example import Example
from attar.train.answers import Answered, Answers, encoded
from attar.train.asking import Asked
from attar.train.parts import in_parts
from attar.train.writing import Choice, Writing, asked, prompt_of, write_after

ENDS = 5


def ctx(folder: Path | None = None, **more: Any) -> Context:
    return Context("causal-lm", data=lambda _: None, model=lambda _: None, scratch=folder, **more)


def test_parts_are_in_order_and_each_has_a_seed_of_its_own() -> None:
    seeds: list[int] = []

    def work(part: Any, seed: int) -> list[int]:
        seeds.append(seed)
        return [2 * item for item in part]

    assert in_parts(range(7), 3, work, ctx(), "doubling") == [0, 2, 4, 6, 8, 10, 12]
    assert len(set(seeds)) == 3


def test_finished_parts_are_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []

    def work(part: Any, seed: int) -> list[int]:
        if part[0] == 4:
            raise KeyboardInterrupt
        done.append(part[0])
        return list(part)

    with pytest.raises(KeyboardInterrupt):
        in_parts(range(6), 2, work, ctx(tmp_path), "some work")
    assert done == [0, 2]
    assert in_parts(range(6), 2, lambda part, _: list(part), ctx(tmp_path), "some work") == [
        *range(6)
    ]


def likeliest(model: Any, ids: list[int], count: int) -> list[int]:
    """Greedy writing, one whole forward pass a token."""
    found: list[int] = []
    while len(found) < count:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids + found])).logits[0, -1]
        found.append(int(logits.argmax()))
        if found[-1] == ENDS:
            break
    return found


def test_at_temperature_0_the_likeliest_tokens_are_written() -> None:
    model = tiny_models.tiny("llama")
    prompts = [[2, 10, 11], [2, 30], [2, 7, 8, 9, 10]]
    found = write_after(model, prompts, Writing(temperature=0, new_tokens=6), 2, ctx())
    assert found == [likeliest(model, prompt, 6) for prompt in prompts]


def test_drawn_texts_follow_the_probabilities() -> None:
    """First tokens of many texts, against the distribution; nothing outside the nucleus."""
    model, prompt = tiny_models.tiny("llama", initializer_range=0.1), [2, 10, 11]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    how = Writing(temperature=0.7, top_p=0.8, new_tokens=1)
    shares = (logits / 0.7).softmax(-1)
    order = shares.argsort(descending=True)
    before = shares[order].cumsum(0) - shares[order]
    nucleus = order[before < 0.8]
    found = write_after(model, [prompt] * 4000, how, 500, ctx())
    counts = torch.bincount(torch.tensor(found).flatten(), minlength=len(shares)).double()
    assert set(counts.nonzero().flatten().tolist()) <= set(nucleus.tolist())
    expected = torch.zeros_like(shares)
    expected[nucleus] = shares[nucleus] / shares[nucleus].sum()
    assert float((counts / 4000 - expected).abs().sum()) < 0.15


def test_beams_are_for_the_likeliest_text() -> None:
    with pytest.raises(ValueError, match="set temperature: 0"):
        Choice(beams=2)
    Choice(beams=2, temperature=0)


def test_probabilities_of_classes_are_the_models_own() -> None:
    model = tiny_models.tiny("bert", "classification")
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10"]
    asked_of = Asked(model, ctx(), 2, 32)
    for text, found in zip(texts, asked_of.classes(texts), strict=True):
        given = model.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model.module(input_ids=given.input_ids).logits[0]
        assert found.double() == pytest.approx(logits.double().softmax(-1), abs=1e-6)
    assert asked_of.classes([]).shape == (0, 3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_likelihoods_are_sums_over_the_answer(family: str) -> None:
    model = tiny_models.tiny(family)
    pairs = [([2, 10, 11], [12, 13]), ([2], [20, 21, 22, 23]), ([2, 7, 8, 9], [30])]
    found = Asked(model, ctx(), 2, 32).likelihoods(pairs)
    for (before, after), value in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([before + after])).logits[0].double()
        known = logits.log_softmax(-1)
        wanted = sum(float(known[len(before) - 1 + at, token]) for at, token in enumerate(after))
        assert value == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_nats_are_for_each_token() -> None:
    model = tiny_models.tiny("llama")
    asked_of = Asked(model, ctx(), 4, 32)
    (nats,) = asked_of.nats(["w1 w2 w3"])
    ids = model.tokenizer("w1 w2 w3", add_special_tokens=False).input_ids
    assert nats == pytest.approx(-asked_of.likelihoods([([ENDS], ids)])[0] / 3)


def test_a_chat_is_asked_up_to_its_last_answer() -> None:
    chat = tuple({"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b")])
    assert asked(Example("x", messages=chat)) == [chat[0]]
    assert prompt_of(Example("w1 w2"), tiny_models.tokenizer()) == [7, 8]


def test_answers_alone_are_judged() -> None:
    tokenizer = tiny_models.tokenizer()
    rows = [
        Answered(Example("w1 w2"), " w3 w4", ends=True),
        Answered(Example("w5"), " w6", ends=False),
    ]
    (batch,) = Answers(encoded(rows, tokenizer, 16), tokenizer, 4, seed=0).in_order()
    prompt = len(prompt_of(Example("w1 w2"), tokenizer))
    assert batch.labels[0, :prompt].eq(-100).all()
    assert batch.labels[0, prompt:].tolist() == [9, 10, ENDS]
    assert int((batch.labels[1] != -100).sum()) == 1  # cut off by the teacher, it does not end
    assert batch.attention_mask[1].sum() == len(prompt_of(Example("w5"), tokenizer)) + 1


def test_answers_come_in_epochs_whatever_the_number_of_processes() -> None:
    rows = [Answered(Example(f"w{at}"), f"w{at + 40}", ends=True) for at in range(6)]
    tokenizer = tiny_models.tokenizer()
    one = Answers(encoded(rows, tokenizer, 16), tokenizer, 4, seed=1)
    two = Answers(encoded(rows, tokenizer, 16), tokenizer, 2, seed=1)
    together = one.batch(1).input_ids
    apart = [two.batch(1, rank, 2).input_ids for rank in range(2)]
    assert torch.equal(torch.cat(apart), together)
    first = torch.cat([one.batch(0).input_ids, one.batch(1).input_ids])[:6]
    assert len({tuple(row) for row in first.tolist()}) == 6
