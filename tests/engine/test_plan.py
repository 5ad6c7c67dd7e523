"""What the plan says beforehand: traits that follow blocks to their new numbers, and memory."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest

from attar.core.context import Context
from attar.core.recipe import Recipe
from attar.core.registry import find, kinds
from attar.core.scope import Scope
from attar.core.step import Step
from attar.engine.fold import fold
from attar.engine.plan import _misfits, _over_budget, _weights
from attar.models import Model
from attar.models.traits import traits_of
from attar.techniques.prune.depth import Depth
from tiny_models import tiny

RTN = "quantize/rtn"


def told(*steps: dict[str, Any], model: Model | None = None) -> list[str]:
    """What the plan has against these steps, in this order."""
    model = model or tiny("llama")
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"train": "t.txt"}, "steps": list(steps), "task": model.task}
    )

    class Inputs:
        task = model.task
        config = model.config

    facts = model.facts()
    traits = traits_of(model.module, facts)
    return fold(recipe, Inputs(), facts, traits, 16.0).problems  # type: ignore[arg-type]


def neurons(scope: str, **settings: Any) -> dict[str, Any]:
    return {"prune/neurons": {"scope": scope, "multiple": 4, **settings}}


def rtn(scope: str) -> dict[str, Any]:
    return {RTN: {"scope": f"linears & {scope}"}}


def depth(**settings: Any) -> dict[str, Any]:
    return {"prune/depth": settings}


def test_traits_go_with_blocks_that_get_another_number() -> None:
    last = neurons("mlp & blocks[-1]", share="uneven", score="taylor", fraction=0.5)
    (problem,) = told(last, depth(blocks=[0]), {"prune/width": {"fraction": 0.5}})
    assert "step 1 (prune/neurons) left model.layers.1.mlp" in problem
    (problem,) = told(rtn("blocks[-1]"), depth(blocks=[0]), {"quantize/gptq": {}})
    assert "step 1 (quantize/rtn) left model.layers.1." in problem


def test_traits_go_with_blocks_that_go() -> None:
    assert told(rtn("blocks[0]"), depth(blocks=[0]), {"prune/wanda": {}}) == []
    (problem,) = told(rtn("blocks[0]"), depth(blocks=[1]), {"prune/wanda": {}})
    assert "step 1 (quantize/rtn) left model.layers.0." in problem


def test_blocks_that_are_not_known_yet_are_what_they_surely_are() -> None:
    first, some = rtn("blocks[0]"), depth(remove=1)
    assert told(first, some, {"prune/wanda": {"scope": "linears & blocks[-1]"}}) == []
    (problem,) = told(first, some, {"prune/wanda": {}})
    assert "float or quantized, by which blocks go" in problem
    (problem,) = told(first, some, {"heal/scales": {"scope": "linears & blocks[0]"}})
    assert "needs quantized weights" in problem
    safe = depth(remove=1, scope="blocks[1:]")  # the first one stays
    assert told(first, safe, {"heal/scales": {"scope": "linears & blocks[0]"}}) == []
    assert told(first, depth(remove=1, scope="blocks[0]"), {"prune/wanda": {}}) == []
    cut = neurons("mlp & blocks[1]", fraction=0.5)
    (problem,) = told(cut, some, {"prune/width": {"fraction": 0.5}})
    assert "needs weights that are not uneven" in problem


@pytest.mark.parametrize("scope", ["all", "blocks[:3]", "blocks[1:-1]", "blocks[2:]"])
@pytest.mark.parametrize("remove", [1, 2, 3])
def test_what_a_block_may_have_been_is_every_way_to_take_some_out(scope: str, remove: int) -> None:
    facts = tiny("llama", num_hidden_layers=5).facts()
    step = Depth.model_validate({"remove": remove, "scope": scope})
    expected: dict[str, set[str]] = {}
    for gone in combinations(sorted(step.scope.blocks(facts)), remove):
        names = Depth(blocks=gone).origin(facts)
        for new, (old,) in names.items():
            expected.setdefault(new, set()).add(old)
    assert {new: set(old) for new, old in step.origin(facts).items()} == expected


def test_two_steps_may_leave_all_blocks_alike() -> None:
    width = {"prune/width": {"fraction": 0.5, "multiple": 4}}
    parts = [neurons(f"mlp & {blocks}", fraction=0.5) for blocks in ("blocks[0]", "blocks[1:]")]
    assert told(*parts, width) == []
    (problem,) = told(parts[0], width)
    assert "step 1 (prune/neurons) left model.layers.0.mlp" in problem
    other = {"prune/heads": {"scope": "attention & blocks[0]", "fraction": 0.5}}
    (problem,) = told(other, *parts, width)
    assert "step 1 (prune/heads) left model.layers.0.self_attn" in problem


def test_a_step_asks_for_the_memory_that_it_takes() -> None:
    model = tiny("bert", "classification")
    weights = _weights(model.module, model.facts())
    assert weights == model.parameters_count()
    asked = {"prune/early-exit": 4, "heal/lora": 8, "adapt/full": 16, "prune/movement": 32}
    for kind, each in asked.items():
        for room, refused in ((0.99, True), (1.01, False)):
            recipe = Recipe.model_validate(
                {"model": "m", "data": {"train": "t.txt"}, "steps": [{kind: {}}]}
            )
            assert bool(_over_budget(recipe, weights, room * each * weights, ())) == refused
            assert not _over_budget(recipe, weights, 0.0, recipe.stage_ids())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_weights_are_counted_where_codes_stand_for_them(family: str) -> None:
    model = tiny(family)
    before = _weights(model.module, model.facts())
    context = Context(model.task, lambda _: None, lambda _: None)  # type: ignore[arg-type,return-value]
    settings = {"grid": "int4-g32", "embeddings": "int8-channel"}
    rounded = find(RTN).model_validate(settings).apply(model, context)
    found = _weights(rounded.module, rounded.facts())
    assert found == pytest.approx(before, rel=0.01)


def test_blocks_follow_the_originals_where_they_are_as_many_and_as_wide() -> None:
    """What is refused with the reason when it is planned, and what heals a model all the same."""

    def folded(family: str, task: Any, room: float, *steps: Any) -> tuple[list[str], str]:
        model = tiny(family, task)
        raw = {"model": "m", "data": {"train": "t.txt"}, "steps": [*steps]}
        inputs: Any = SimpleNamespace(task=model.task, config=model.config)
        facts = model.facts()
        found = fold(
            Recipe.model_validate(raw), inputs, facts, traits_of(model.module, facts), room
        )
        return found.problems, found.recipe.steps[-1].kind

    shallow, narrow = {"prune/depth": {"remove": 1}}, {"prune/width": {"hidden": 16}}
    for cut, left in ((shallow, "2 blocks of 32"), (narrow, "3 blocks of 16")):
        (problem,), _ = folded("llama", None, 16.0, cut, {"heal/blockwise": {}})
        assert f"its teacher has 3 blocks of 32 channels, the model by then {left}" in problem
        assert folded("llama", None, 4.0, cut, {"heal": "auto"}) == ([], "heal/lora")
    (problem,), kind = folded("bert", "embedding", 16.0, shallow, {"heal": "auto"})
    assert "distill: auto" in problem
    assert kind == "heal/blockwise"
    fewer = {"prune/neurons": {"multiple": 4}}
    assert folded("bert", "embedding", 16.0, fewer, {"heal": "auto"}) == ([], "heal/blockwise")
    other = {"heal/blockwise": {"teacher": "somewhere"}}
    assert folded("llama", None, 16.0, shallow, other)[0] == []
    tuned = {"adapt/full": {"id": "tuned"}}
    (problem,), _ = folded(
        "llama", None, 16.0, tuned, shallow, {"heal/blockwise": {"teacher": "tuned"}}
    )
    assert "its teacher has 3 blocks" in problem
    cut = {"prune/depth": {"remove": 1, "id": "cut"}}
    heals = {"heal/blockwise": {"teacher": "cut"}}
    assert folded("llama", None, 16.0, cut, {"quantize/rtn": {}}, heals)[0] == []


@pytest.mark.parametrize("kind", ["prune/depth", "prune/heads", "prune/neurons", "prune/width"])
def test_a_score_by_a_loss_wants_one(kind: str) -> None:
    settings = {"fraction": 0.5, "multiple": 4, "score": "taylor"}
    fields = find(kind).model_fields
    step = {kind: {name: value for name, value in settings.items() if name in fields}}
    told_of = [text for text in told(step, model=tiny("bert", "embedding")) if "taylor" in text]
    assert len(told_of) == 1
    assert "a model of vectors has none" in told_of[0]
    assert not [text for text in told(step, model=tiny("bert", "masked-lm")) if "taylor" in text]


def test_a_choice_left_to_the_plan_is_settled_by_memory_and_traits() -> None:
    model = tiny("llama")

    class Inputs:
        task, config = model.task, model.config

    def made(
        room: float, auto: Any = "auto", before: str = RTN
    ) -> list[tuple[str, str | None, Scope]]:
        heal = {"heal": auto} if isinstance(auto, str) else {"heal/auto": auto}
        recipe = Recipe.model_validate(
            {"model": "m", "data": {"train": "t.txt"}, "steps": [{before: {}}, heal]}
        )
        facts = model.facts()
        found = fold(recipe, Inputs(), facts, traits_of(model.module, facts), room)  # type: ignore[arg-type]
        return [(step.kind, step.id, step.scope) for step in found.recipe.steps[1:]]

    assert made(16.0, before="prune/wanda") == [("heal/lora", "auto", Scope.linears())]
    of_scales = Scope(patterns=("linears", "norm"))
    assert made(16.0) == [("heal/scales", "auto", of_scales)]
    assert made(4.0) == [("heal/blockwise", "auto", Scope.everything())]
    given = {"id": "healed", "scope": ["mlp"]}
    for room, kind in ((16.0, "heal/scales"), (4.0, "heal/blockwise")):
        assert made(room, given) == [(kind, "healed", Scope(patterns=("mlp",)))]


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [
        ("llama", "causal-lm", "distill/logits"),
        ("bert", "classification", "distill/logits"),
        ("bert", "embedding", "distill/embedding"),
    ],
)
def test_a_signal_left_to_the_plan_is_settled_by_task_and_memory(
    family: str, task: Any, kind: str
) -> None:
    model = tiny(family, task)
    facts = model.facts()
    traits = traits_of(model.module, facts)

    class Inputs:
        task, config = model.task, model.config

    def made(room: float, *before: dict[str, Any]) -> Step:
        data = {"train": "t.txt", "dev": "d.txt"}
        steps = [*before, {"distill/auto": {"tokens": 2048, "id": "taught"}}]
        recipe = Recipe.model_validate({"model": "m", "data": data, "steps": steps})
        return fold(recipe, Inputs(), facts, traits, room).recipe.steps[-1]  # type: ignore[arg-type]

    whole, short = made(16.0), made(8.0)
    assert (whole.kind, whole.id, whole.settings()["tokens"]) == (kind, "taught", 2048)
    assert whole.settings()["update"]["lora"] is None
    if task == "embedding":
        assert whole.settings()["also"]["hidden"] is not None
    assert short.kind == kind
    assert short.settings()["update"]["lora"] is not None
    sparse = made(8.0, {"prune/magnitude": {}})  # whose zeros an adapter would fill
    assert sparse.settings()["update"]["lora"] is None


def test_vectors_have_no_figure_for_each_further_dataset() -> None:
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"test": "t", "more": "m"}, "measures": {"also": ["more"]}}
    )
    (said,) = _misfits(recipe, "embedding")
    assert said.startswith("measures.also is set")
    assert not _misfits(recipe, "causal-lm")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"quantize/gptq": {"grid": "int4-g32-min"}}, ["take int4-g32-zp, which has 0"]),
        (
            {"quantize/mixed": {"grids": ["int4-g32", "int3-g32-min"]}},
            ["take int3-g32-zp, which has 0"],
        ),
        ({"lowrank/residual": {"grid": "int4-g32-min", "rank": 4}}, []),
    ],
)
def test_zeros_and_a_grid_that_has_none(step: dict[str, Any], said: list[str]) -> None:
    found = told({"prune/magnitude": {}}, step)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in kinds() if find(kind).walked])
def test_what_lies_outside_the_blocks_is_refused_by_what_walks_them(kind: str) -> None:
    few = {"rank": 4} if kind == "lowrank/residual" else {}
    (problem,) = told({kind: {**few, "scope": ["linears", "head"]}})
    assert "lm_head lies outside the blocks" in problem
    assert told({kind: few}) == []
