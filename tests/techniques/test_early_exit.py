"""Early exits: they learn the model's answers, which stay as they were, and leave as is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from attar.calibrate.sensitivity import divergences
from attar.calibrate.table import parts_of
from attar.core import registry
from attar.core.context import Context
from attar.core.scope import Scope
from attar.data.batches import held_out
from attar.data.example import Dataset, Example
from attar.errors import UserError
from attar.layers import all_blocks
from attar.models import Model, load, save
from attar.models.source import Files
from attar.techniques.prune.early_exit import EarlyExit
from tiny_models import DECODERS, ENCODERS, LABELS, batch, logits, texts, tiny

SMALL: dict[str, Any] = {"steps": 4, "batch": 4, "length": 16, "neurons": 8}
LEARNED: dict[str, Any] = {**SMALL, "steps": 80, "neurons": 32, "learning_rate": 1e-2}


def context(scratch: Path | None = None, names: tuple[str, ...] = ("train", "dev")) -> Context:
    """Texts without labels."""
    data = {
        name: Dataset(name, [Example(text) for text in texts(80, 14, seed)], "", LABELS)
        for seed, name in enumerate(names)
    }
    return Context("classification", data.__getitem__, lambda _: None, scratch=scratch)


def pressed(model: Model, ctx: Context | None = None, **settings: Any) -> Model:
    """The model with exits; its facts are those that the plan foresaw."""
    step, facts = EarlyExit(**settings), model.facts()
    assert list(step.check(facts)) == []
    result = step.apply(model, ctx or context())
    assert list(step.reshape(facts)) == result.facts()
    return result


def after(kind: str, model: Model, **settings: Any) -> Model:
    return registry.find(kind).model_validate(settings).apply(model, context())


def trunk(model: Model) -> dict[str, torch.Tensor]:
    state = model.module.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("exits.")}


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_every_family(family: str, tmp_path: Path) -> None:
    ctx = context()
    model = pressed(tiny(family, "classification"), ctx, **SMALL)
    plain = tiny(family, "classification")
    assert all(torch.equal(plain.module.state_dict()[name], t) for name, t in trunk(model).items())
    with all_blocks(model.module):
        assert torch.equal(logits(model), logits(plain))
    save(model, tmp_path)
    again = load(Files(tmp_path))
    assert again.module.exits.spec() == model.module.exits.spec()
    state = again.module.state_dict()
    assert all(torch.equal(state[name], t) for name, t in model.module.state_dict().items())
    assert sum(count for name, count in ctx.notes.items() if name.startswith("rows")) == 80


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_exits_learn_the_answers_of_the_model(family: str) -> None:
    untrained, trained = context(), context()
    pressed(tiny(family, "classification"), untrained, **{**LEARNED, "steps": 1})
    pressed(tiny(family, "classification"), trained, **LEARNED)
    first, last = untrained.notes["best"]["loss"], trained.notes["best"]["loss"]
    assert last < 0.8 * first


@pytest.mark.parametrize("lose", [0.0, 10.0, 30.0])
def test_the_report_says_what_happens(lose: float) -> None:
    """Agreement and blocks run, counted while the model with its exits judges the same rows."""
    ctx = context()
    model = pressed(tiny("bert", "classification"), ctx, lose=lose, **LEARNED)
    given: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: given.append(len(args[0])))
    agreed = 0
    for rows in held_out(ctx.data("dev"), model.tokenizer, model.task, 16, 4, None):
        with torch.no_grad():
            own = model.logits(rows).argmax(-1)
            counted = len(given)
            with all_blocks(model.module):
                agreed += int((own == model.logits(rows).argmax(-1)).sum())
            del given[counted:]
    assert agreed / 80 == pytest.approx(ctx.notes["agreement"])
    assert agreed / 80 >= 1 - lose / 100
    assert sum(given) / 80 == pytest.approx(ctx.notes["mean blocks run"], abs=1e-3)
    curve = ctx.curves["agreement by share of blocks run"]
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)
    assert curve[-1] == (1.0, 1.0)


def test_a_given_threshold_is_taken() -> None:
    ctx = context(names=("train",))
    model = pressed(tiny("bert", "classification"), ctx, threshold=1.0, **SMALL)
    assert model.module.exits.threshold == 1.0
    assert "agreement" not in ctx.notes
    given, seen = batch(model), []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        model.logits(given)
    assert seen == [0]
    with pytest.raises(ValidationError, match="keep one"):
        EarlyExit(threshold=0.5, lose=2.0)


def test_a_threshold_by_which_none_leaves_is_warned_of() -> None:
    ctx = context()
    pressed(tiny("bert", "classification"), ctx, threshold=0.0, **SMALL)
    assert ctx.notes["rows that leave after 3 blocks"] == 80
    assert "no text leaves early" in ctx.warnings[0]


@pytest.mark.parametrize(
    ("blocks", "settings", "wanted"),
    [
        (6, {}, [0, 1, 2, 3, 4]),
        (6, {"exits": 1}, [2]),
        (6, {"exits": 2}, [1, 3]),
        (6, {"exits": 5}, [0, 1, 2, 3, 4]),
        (12, {"exits": 3}, [2, 5, 8]),
        (6, {"scope": "blocks[3:]"}, [3, 4]),
        (6, {"scope": "blocks[:-1]", "exits": 2}, [1, 3]),
    ],
)
def test_where_the_exits_are(blocks: int, settings: dict[str, Any], wanted: list[int]) -> None:
    model = tiny("bert", "classification", num_hidden_layers=blocks)
    foreseen = EarlyExit(**settings).reshape(model.facts())
    names = [fact.name for fact in foreseen if fact.name.startswith("exits.")]
    assert names == [f"exits.{i}.{leaf}" for i in wanted for leaf in ("dense", "out")]


def test_what_cannot_work_is_refused_before_weights_load() -> None:
    model = tiny("bert", "classification")

    def told(kind: str, **settings: Any) -> str:
        return "; ".join(registry.find(kind).model_validate(settings).check(model.facts()))

    assert "names no block but the last" in told("prune/early-exit", scope="blocks[-1]")
    assert "add 3 exits, and there are 2 blocks" in told("prune/early-exit", exits=3)
    pressed(model, **SMALL)
    assert "has exits already" in told("prune/early-exit")
    assert "Move this step before the one that adds them" in told("prune/depth", remove=1)
    assert "Move this step before the one that adds them" in told("prune/width", neurons=32)
    assert "factor" not in told("prune/width", neurons=32)
    assert told("prune/magnitude") == told("quantize/gptq") == ""


def test_without_held_out_data_a_threshold_must_be_given() -> None:
    with pytest.raises(UserError, match="no data 'dev' to choose the threshold on"):
        pressed(tiny("bert", "classification"), context(names=("train",)), **SMALL)


@pytest.mark.parametrize("kind", ["quantize/gptq", "quantize/awq", "lowrank/fisher"])
def test_what_comes_after_finds_the_trunk_as_it_was(kind: str) -> None:
    settings = {"quantize/gptq": {"grid": "int4-g32"}, "quantize/awq": {"grid": "int4-g32"}}
    more = {"sequences": 8, "length": 16, **settings.get(kind, {"keep": 0.5})}
    data = Dataset(
        "train", [Example(t, LABELS[i % 3]) for i, t in enumerate(texts(40, 14))], "", LABELS
    )
    ctx = Context("classification", lambda _: data, lambda _: None)
    step = registry.find(kind).model_validate(more)
    wanted = step.apply(tiny("bert", "classification"), ctx).module.state_dict()
    with_exits = pressed(tiny("bert", "classification"), threshold=1.0, **SMALL)
    found = trunk(step.apply(with_exits, ctx))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_exits_on_a_quantized_trunk(tmp_path: Path) -> None:
    settings = {"grid": "int4-g32", "embeddings": "int8-channel"}
    plain = after("quantize/rtn", tiny("bert", "classification"), **settings)
    model = after("quantize/rtn", tiny("bert", "classification"), **settings)
    pressed(model, lose=30.0, **LEARNED)
    wanted = plain.module.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in trunk(model).items())
    save(model, tmp_path)
    again = load(Files(tmp_path))
    torch.testing.assert_close(logits(again), logits(model))


def test_exits_may_be_quantized_too(tmp_path: Path) -> None:
    model = pressed(tiny("bert", "classification"), threshold=1.0, **SMALL)
    after("quantize/rtn", model, grid="int8-channel", scope=["linears", "exits.*"])
    save(model, tmp_path)
    assert torch.equal(logits(load(Files(tmp_path))), logits(model))


def test_sensitivity_is_that_of_the_whole_model() -> None:
    def measured(model: Model) -> list[float]:
        parts = parts_of(model, Scope.linears())

        def change(names: list[str]) -> None:
            after("quantize/rtn", model, grid="int2-g32", scope=names)

        batches = held_out(context().data("train"), model.tokenizer, model.task, 16, 4, 8)
        return divergences(model, batches, parts, {"rtn": change}, context())["rtn"]

    with_exits = pressed(tiny("bert", "classification"), threshold=1.0, **SMALL)
    assert measured(with_exits) == measured(tiny("bert", "classification"))


def test_bfloat16_weights_stay_bit_equal() -> None:
    plain = tiny("bert", "classification", dtype=torch.bfloat16)
    model = pressed(tiny("bert", "classification", dtype=torch.bfloat16), **SMALL)
    wanted = plain.module.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in trunk(model).items())
    assert {tensor.dtype for tensor in model.module.exits.state_dict().values()} == {torch.bfloat16}


class Killed(BaseException):
    """Stands for the end of the process."""


def test_resumed_is_bit_equal(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SMALL, "steps": 6, "checkpoint_minutes": 0}
    undisturbed = context()
    wanted = pressed(tiny("bert", "classification"), undisturbed, **settings)
    ctx, taken = context(tmp_path), 0

    class Bar:
        def advance(self, amount: float = 1, text: str | None = None) -> None:
            nonlocal taken
            taken += 1
            if taken > 3:
                raise Killed

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    ctx.progress.bar = lambda label, total: Bar()  # type: ignore[method-assign]
    with pytest.raises(Killed):
        EarlyExit(**settings).apply(tiny("bert", "classification"), ctx)
    again = context(tmp_path)
    said: list[str] = []
    again.progress.say = said.append  # type: ignore[method-assign]
    found = pressed(tiny("bert", "classification"), again, **settings)
    assert said[0] == "goes on from the checkpoint of step 3"
    state = found.module.state_dict()
    assert all(torch.equal(state[name], t) for name, t in wanted.module.state_dict().items())
    assert found.module.exits.spec() == wanted.module.exits.spec()
    assert again.curves == undisturbed.curves
