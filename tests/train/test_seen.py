"""Weights seen through views: plain modules before and after, and the weights that were seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import tiny_models
from attar.core.context import Context
from attar.core.scope import Scope
from attar.models.model import weight_of
from attar.ops.rounding import through
from attar.ops.sparse import Pattern
from attar.techniques.adapt.full import Full
from attar.train.scoped import trained
from attar.train.seen import View, final, kept_of, renew, seen_through, views_of
from train.small import equal, weights

Contexts = Callable[..., Context]
SMALL: dict[str, Any] = {"batch": 4, "length": 16}
NAME = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}


class Halved(View):
    """Half of every weight, and the steps at which it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("looked", torch.zeros((), dtype=torch.int64))

    def seen(self, weight: Tensor) -> Tensor:
        return weight / 2

    def renew(self, weight: Tensor, step: int, steps: int) -> None:
        self.looked += 1

    def final(self, done: int, steps: int) -> bool:
        return done > 2


def classes(module: nn.Module) -> list[type[nn.Module]]:
    return [type(part) for part in module.modules()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_sees_it_and_the_end_keeps_it(family: str) -> None:
    model, plain = tiny_models.tiny(family), tiny_models.tiny(family)
    before, kinds = weights(model), classes(model.module)
    linear = plain.module.get_submodule(NAME[family])
    with torch.no_grad():
        linear.weight /= 2
    with seen_through(model, {NAME[family]: Halved()}):
        assert torch.equal(tiny_models.logits(model), tiny_models.logits(plain))
        assert list(kept_of(model.module)) == [f"{NAME[family]}.parametrizations.weight.0.looked"]
    assert list(model.module.state_dict()) == list(before)
    assert classes(model.module) == kinds
    assert equal(weights(model), weights(plain))


def test_views_are_given_outputs_first() -> None:
    shapes: list[tuple[int, ...]] = []

    class Watching(Halved):
        def seen(self, weight: Tensor) -> Tensor:
            shapes.append(tuple(weight.shape))
            return weight

        def renew(self, weight: Tensor, step: int, steps: int) -> None:
            shapes.append(tuple(weight.shape))

    model = tiny_models.tiny("gpt2")
    with seen_through(model, {NAME["gpt2"]: Watching()}):
        tiny_models.logits(model)
        renew(model.module, 0, 1)
    assert set(shapes) == {(64, 32)}


def test_an_error_leaves_plain_modules_and_dense_weights() -> None:
    model = tiny_models.tiny("llama", dtype=torch.bfloat16)
    before, kinds = weights(model), classes(model.module)
    views = {name: Halved() for name in model.linears(Scope.linears())}
    with pytest.raises(RuntimeError, match="on purpose"), seen_through(model, views):
        raise RuntimeError("on purpose")
    with pytest.raises(AttributeError), seen_through(model, {**views, "model.nowhere": Halved()}):
        pass
    assert not any(is_parametrized(part) for part in model.module.modules())
    assert classes(model.module) == kinds
    assert list(weights(model)) == list(before)
    assert equal(weights(model), before)


def test_a_tied_weight_is_seen_alike_everywhere() -> None:
    model = tiny_models.tiny("llama")
    table, head = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    before = table.weight.detach().clone()
    with seen_through(model, {"lm_head": Halved()}):
        assert torch.equal(table.weight, before / 2)
        assert len(views_of(model.module)) == 1
    assert table.weight is head.weight
    assert torch.equal(table.weight, before / 2)


def test_training_looks_at_every_step_and_ends_with_a_final_state(context: Contexts) -> None:
    views = {"model.layers.1.mlp.up_proj": Halved()}
    model, ctx = tiny_models.tiny("llama"), context()
    settings: dict[str, Any] = {**SMALL, "steps": 4, "evaluate_every": 1}
    with seen_through(model, views):
        assert not final(model.module, 2, 4)
        Full(**settings, learning_rate=1.0, clip=None).apply(model, ctx)  # the first is the best
        scores = [y for _, y in ctx.curves["loss/dev"]]
        assert scores.index(min(scores)) < 2
        assert ctx.notes["best"]["step"] == 3 + scores[2:].index(min(scores[2:]))
        # buffers are those of the state that is kept
        assert int(views["model.layers.1.mlp.up_proj"].looked) == ctx.notes["best"]["step"]


class Largest(View):
    """The larger half, as it is; what is seen is a function of the weight alone."""

    def seen(self, weight: Tensor) -> Tensor:
        return through(weight, weight * Pattern(0.5).together(weight.abs()))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_ends_in_the_model_is_what_was_judged(context: Contexts, precision: str) -> None:
    """The last evaluation's loss is that of the plain model afterwards."""
    model, ctx = tiny_models.tiny("llama"), context(precision=precision)
    views = {name: Largest() for name in model.linears(Scope.linears())}
    given: list[Tensor] = []
    with trained(model, Scope.linears()), seen_through(model, views):
        Full(**SMALL, steps=3, accumulate=2, learning_rate=0.01).apply(model, ctx)
        given.append(tiny_models.logits(model))
    assert torch.equal(tiny_models.logits(model), given[0])
    for linear in model.linears(Scope.linears()).values():
        assert (weight_of(linear) == 0).sum() == weight_of(linear).numel() // 2
