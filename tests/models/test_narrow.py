"""Fewer heads, neurons and channels: what must compute the same does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from attar.errors import UserError
from attar.models import save
from attar.models.resize import narrow
from tiny_models import ENCODERS, PAIRS, assert_ordinary, logits, press, shuffled, tiny

every = pytest.mark.parametrize(("family", "task"), PAIRS)
close = {"atol": 2e-5, "rtol": 2e-4}


def permuted_heads(model, seed: int) -> list[int]:
    """Key heads in another order, each with its queries in another order."""
    group = model.sizes.queries // model.sizes.keys
    return [
        key * group + query
        for key in shuffled(model.sizes.keys, seed)
        for query in shuffled(group, seed + 1)
    ]


@every
def test_keeping_everything_is_bit_equal(family, task, tmp_path) -> None:
    model = tiny(family, task)
    sizes = model.sizes
    same = narrow(
        model,
        [list(range(sizes.queries))] * 3,
        [list(range(sizes.neurons))] * 3,
        list(range(sizes.hidden)),
    )
    assert torch.equal(logits(same), logits(model))
    assert same.module is not model.module
    assert_ordinary(same, tmp_path)


@every
@pytest.mark.parametrize("what", ["heads", "neurons", "channels"])
def test_another_order_computes_the_same(family, task, what) -> None:
    model = tiny(family, task)
    orders = {
        "heads": [permuted_heads(model, block) for block in range(3)],
        "neurons": [shuffled(model.sizes.neurons, block) for block in range(3)],
        "channels": shuffled(model.sizes.hidden, 0),
    }
    other = narrow(model, **{what: orders[what]})
    expected = logits(model)
    torch.testing.assert_close(logits(other), expected, **close)


@every
def test_neurons_that_add_nothing_can_go(family, task, tmp_path) -> None:
    model = tiny(family, task)
    kept = [sorted(shuffled(64, block)[:40]) for block in range(3)]
    for block, indices in enumerate(kept):
        gone = [index for index in range(64) if index not in indices]
        down = model.blocks[block].get_submodule(model.family.down)
        with torch.no_grad():
            (down.weight if family == "gpt2" else down.weight.t())[gone] = 0
    small = narrow(model, neurons=kept)
    assert small.sizes.neurons == 40
    torch.testing.assert_close(logits(small), logits(model), **close)
    assert_ordinary(small, tmp_path)


FREE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


@pytest.mark.parametrize("family", FREE)
@pytest.mark.parametrize("kept", [[0, 1], [2, 3], [1, 3], [3, 0]])
def test_heads_that_add_nothing_can_go(family, kept, tmp_path) -> None:
    model = tiny(family)
    size = model.sizes.head
    for block in model.blocks:
        out = block.get_submodule(model.family.out)
        for head in set(range(4)) - set(kept):
            with torch.no_grad():
                out.weight[:, head * size : (head + 1) * size] = 0
    small = narrow(model, heads=[kept] * 3)
    assert small.sizes.queries == 2
    assert small.sizes.keys == len({head // 2 for head in kept})
    assert small.sizes.head == size
    torch.testing.assert_close(logits(small), logits(model), **close)
    assert_ordinary(small, tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_channels_that_are_zero_can_go_once_norms_are_rescaled(family) -> None:
    """A root mean square over fewer channels is larger: by the root of old / new."""
    bias = {"mlp_bias": False} if family == "llama" else {}
    model = tiny(family, rms_norm_eps=1e-12, **bias)
    kept = sorted(shuffled(32, 0)[:24])
    gone = [index for index in range(32) if index not in kept]
    with torch.no_grad():
        for fact in model.facts():
            module = model.module.get_submodule(fact.name)
            if fact.axes[0] == "hidden" and fact.linear:
                module.weight[gone] = 0
            elif fact.role == "embedding":
                module.weight[:, gone] = 0
    small = narrow(model, channels=kept)
    with torch.no_grad():
        for fact in small.facts():
            if fact.role == "norm" and fact.axes == ("hidden",):
                small.module.get_submodule(fact.name).weight *= (32 / 24) ** 0.5
    torch.testing.assert_close(logits(small), logits(model), **close)


@every
def test_all_three_at_once(family, task, tmp_path) -> None:
    model = tiny(family, task, **({"embedding_size": 12} if family == "electra" else {}))
    rule = next(fact.heads.rule for fact in model.facts() if fact.heads)
    group = model.sizes.queries // model.sizes.keys
    heads = list(range(2, 4))
    hidden = 2 * model.sizes.head if rule == "fill" else 24
    small = narrow(model, [heads] * 3, [list(range(8, 40))] * 3, sorted(shuffled(32, 1)[:hidden]))
    sizes = small.sizes
    assert (sizes.hidden, sizes.queries, sizes.neurons) == (hidden, 2, 32)
    assert sizes.keys == 2 // group
    assert sizes.head == model.sizes.head
    assert small.parameters_count() < model.parameters_count()
    assert small.tokenizer is model.tokenizer
    assert small.labels == model.labels
    assert logits(small).isfinite().all()
    assert_ordinary(small, tmp_path)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemmas_embedding_keeps_its_scale(family) -> None:
    model = tiny(family)
    kept = list(range(20))
    small = narrow(model, channels=kept)
    ids = torch.arange(100)
    torch.testing.assert_close(
        small.module.get_input_embeddings()(ids), model.module.get_input_embeddings()(ids)[:, kept]
    )
    logit = model.module.lm_head.weight[:, kept] @ (1 + model.base.norm.weight[kept])
    new = small.module.lm_head.weight @ (1 + small.base.norm.weight)
    torch.testing.assert_close(new, logit)


def test_an_electra_whose_tables_are_as_wide_as_its_blocks(tmp_path) -> None:
    model = tiny("electra", embedding_size=32)
    small = narrow(model, [[0, 2]] * 3, None, list(range(16)))
    assert small.config.embedding_size == 16
    assert_ordinary(small, tmp_path)
    torch.testing.assert_close(
        logits(narrow(model, channels=shuffled(32, 0))), logits(model), **close
    )


def test_an_electra_needs_its_projection() -> None:
    with pytest.raises(
        UserError, match=r"hidden size of 16, that of its embeddings, .* no linear between"
    ):
        narrow(tiny("electra"), [[0, 2]] * 3, None, list(range(16)))


@pytest.mark.parametrize("family", [*ENCODERS, "gpt2", "phi"])
def test_heads_that_make_up_the_hidden_size_go_with_it(family) -> None:
    with pytest.raises(UserError, match=r"2 heads of 8 are 16, .* heads: 2 and hidden: 16"):
        narrow(tiny(family), heads=[[0, 1]] * 3)
    with pytest.raises(UserError, match=r"hidden size would be 16\. Ask for both together"):
        narrow(tiny(family), channels=list(range(16)))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_heads_that_must_divide_the_hidden_size(family) -> None:
    with pytest.raises(UserError, match=r"cannot have 4 heads at a hidden size of 30.*hidden: 32"):
        narrow(tiny(family), channels=list(range(30)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": [[0, 1, 2]] * 3}, "4 heads share 2 heads of keys and values, 2 each"),
        ({"heads": [[0, 2, 1, 3]] * 3}, "as many must share each, side by side"),
        ({"heads": [[0, 1], [0, 2], [2, 3]]}, "the same number of key and value heads"),
        ({"heads": [[0, 1]] * 2}, "heads are given for 2 blocks; the model has 3"),
        ({"heads": [[0, 1], [0, 1], [0]]}, "the same number of heads"),
        ({"neurons": [[0, 64]] * 3}, "kept neurons must be different numbers below 64"),
        ({"neurons": [[1, 1]] * 3}, "kept neurons must be different numbers"),
        ({"channels": [-1, 0, 1, 2]}, "kept channels must be different numbers below 32"),
    ],
)
def test_what_cannot_be_kept(settings, words) -> None:
    with pytest.raises(UserError, match=words):
        narrow(tiny("llama"), **settings)


def test_a_quantized_model_is_not_narrowed() -> None:
    with pytest.raises(UserError, match=r"model\.embed_tokens is no plain module"):
        narrow(press(tiny("llama")), channels=list(range(16)))


def test_a_tied_head_stays_tied(tmp_path) -> None:
    small = narrow(tiny("llama"), channels=list(range(16)))
    assert small.module.lm_head.weight is small.module.model.embed_tokens.weight
    save(small, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_dtype_and_generation_settings_stay() -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    model.module.generation_config.temperature = 0.3
    small = narrow(model, neurons=[list(range(32))] * 3)
    assert {p.dtype for p in small.module.parameters()} == {torch.bfloat16}
    assert small.module.generation_config.temperature == 0.3
