from __future__ import annotations

import pytest
import torch

from attar.core.grid import Grid
from attar.data.batches import Batch
from attar.layers import DynamicLinear, QuantizedLinear, StaticLinear, swap
from attar.measure import samples
from attar.measure.samples import dense, looping, looping_share, write
from attar.models.model import Model
from attar.ops.rounding import Codes
from tiny_models import DECODERS, tiny, tokenizer


def _greedy(model: Model, ids: list[int], count: int) -> list[int]:
    """One token at a time, without a cache."""
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            rows = torch.tensor([found])
            logits = model.logits(Batch(rows, torch.ones_like(rows), rows))
            found.append(int(logits[0, -1].argmax()))
            if found[-1] == 5:
                break
    return found[len(ids) :]


@pytest.mark.parametrize("family", DECODERS)
def test_writes_the_likeliest_tokens_whatever_else_is_in_the_batch(family: str) -> None:
    model = tiny(family)
    prompts = ["w1 w2 w3", "w9 w8 w7 w6 w5 w4 w3"]
    wanted = [_greedy(model, model.tokenizer(prompt).input_ids, 8) for prompt in prompts]
    decoded = [tokenizer().decode(ids, skip_special_tokens=True) for ids in wanted]
    assert write(model, prompts, 8) == decoded


def test_a_chat_prompt_goes_through_the_template() -> None:
    model = tiny("llama")
    before = model.tokenizer.chat_template
    try:
        model.tokenizer.chat_template = "w5 {{ messages[0]['content'] }} w6"
        assert write(model, ["w1"], 6, chat=True) == write_ids(model, "w5 w1 w6", 6)
        assert samples._encode(model, "w1", chat=False) == model.tokenizer("w1").input_ids
    finally:
        model.tokenizer.chat_template = before


def write_ids(model: Model, text: str, count: int) -> list[str]:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return [tokenizer().decode(_greedy(model, ids, count), skip_special_tokens=True)]


def test_no_prompt_and_an_empty_one_and_one_too_long() -> None:
    model = tiny("gpt2")  # has no place for a 65th token
    assert write(model, [], 4) == []
    assert len(write(model, ["", " ".join(["w1"] * 200)], 4)) == 2


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1] * 12, True),
        ([1] * 11, False),
        ([9, 8, 7, *[1, 2, 3] * 4], True),
        ([9, 8, *[1, 2, 3] * 3], False),
        ([*[1, 2, 3] * 4, 1], True),  # cut off within a cycle
        ([*[1, 2, 3] * 4, 9], False),  # it got out again
        ([*range(16)] * 4, True),
        ([*range(17)] * 4, False),
        (list(range(60)), False),
        ([], False),
    ],
)
def test_looping(ids: list[int], wanted: bool) -> None:
    assert looping(ids) is wanted


def _held_out(length: int = 20) -> list[Batch]:
    ids = torch.randint(6, 100, (4, length), generator=torch.Generator().manual_seed(0))
    return [Batch(part, torch.ones_like(part), part) for part in ids.split(2)]


def test_looping_share_counts_continuations(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [[1] * 48, list(range(10, 58)), [7, 8] * 24, [*[1] * 40, 5]]
    monkeypatch.setattr(samples, "continued", lambda *_: written)
    assert looping_share(tiny("llama"), _held_out()) == 0.5


def test_a_model_that_says_one_thing_loops() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.base.norm.weight.zero_()  # all logits are 0: the first token, for ever
    assert looping_share(model, _held_out()) == 1.0


def test_short_and_padded_texts() -> None:
    model = tiny("llama")
    assert 0.0 <= looping_share(model, _held_out(length=8)) <= 1.0
    padded = _held_out()[0]
    padded.attention_mask[:, 10:] = 0
    assert looping_share(model, [padded]) == 0.0
    assert looping_share(model, []) == 0.0


def _quantized(kind: type[QuantizedLinear]) -> Model:
    model = tiny("llama")
    generator = torch.Generator().manual_seed(0)
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        old = model.module.get_submodule(name)
        rows, width = old.weight.shape
        codes = torch.randint(-8, 8, (rows, width), dtype=torch.int16, generator=generator)
        layer = kind(rows, width, Grid.parse("int4-g32"), old.bias)
        groups = -(-width // layer.group)
        layer.fill(Codes(codes, torch.full((rows, groups), 0.05), None))
        swap(model.module, name, layer)
    return model


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", [QuantizedLinear, DynamicLinear, StaticLinear])
def test_unpacked_weights_compute_the_same_numbers(
    kind: type[QuantizedLinear], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _quantized(kind)
    batch = _held_out()[0]

    def logits() -> torch.Tensor:
        with torch.no_grad(), samples.autocast("cpu", precision):
            return model.logits(batch)

    def kept() -> list[bool]:
        linears = [m for m in model.module.modules() if isinstance(m, QuantizedLinear)]
        return [linear.floats is not None for linear in linears]

    packed = logits()
    with dense(model, precision):
        assert kept() == [True, True]
        assert torch.equal(logits(), packed)
    assert kept() == [False, False]
    monkeypatch.setattr(samples, "free_memory", lambda: 0)
    with dense(model, precision):
        assert kept() == [False, False]
