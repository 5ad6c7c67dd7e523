"""Two steps in either order: what cannot follow is refused by the plan, and not in the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attar.core.recipe import Recipe
from attar.core.registry import find
from attar.engine.fold import fold
from attar.models import Files, Model, load, save
from attar.models.traits import traits_of
from conformance.test_every_kind import SMALL, press, tiny

# what leaves a module of Attar's own, or another shape than the config's, of each kind one
LEAVE = (
    "adapt/tasks",
    "lowrank/residual",
    "lowrank/svd",
    "prompt/soft",
    "prune/early-exit",
    "prune/heads",
    "prune/magnitude",
    "prune/neurons",
    "prune/share",
    "quantize/kv",
    "quantize/rtn",
)
THEN = (*LEAVE, "prune/depth", "prune/width", "quantize/gptq", "heal/blockwise")
CLOSED = ("prompt/soft", "prune/share")  # after which none of these may come
PLACES = (("llama", "causal-lm"), ("bert", "classification"))


def refused(model: Model, *kinds: str) -> list[str]:
    """What the plan has against these steps, in this order."""
    names = ("train", "mood")
    steps = [{kind: {**SMALL[kind], "id": f"s{n}"}} for n, kind in enumerate(kinds)]
    recipe = Recipe.model_validate(
        {"model": "m", "data": dict.fromkeys(names, "t.txt"), "steps": steps, "task": model.task}
    )
    facts, inputs = model.facts(), SimpleNamespace(task=model.task, config=model.config)
    traits = traits_of(model.module, facts)
    return fold(recipe, inputs, facts, traits, 16.0).problems  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "model_type", "task"),
    [(kind, *place) for place in PLACES for kind in LEAVE if place[1] in find(kind).tasks],
)
def test_what_cannot_follow_is_refused_by_the_plan(
    first: str, model_type: str, task: Any, tmp_path: Path
) -> None:
    model = tiny(model_type, task)
    follow = [k for k in THEN if task in find(k).tasks and not refused(model, first, k)]
    save(press(first, tiny(model_type, task), tmp_path / "first"), tmp_path / "made")
    for kind in follow:  # none of them raises
        press(kind, load(Files(tmp_path / "made"), task), tmp_path / kind.replace("/", "-"))
    assert follow or first in CLOSED


def test_a_cache_on_a_grid_is_told_by_the_plan_and_not_blamed_for_others() -> None:
    (problem,) = refused(tiny("llama", "causal-lm"), "quantize/kv", "prune/width")
    assert "needs weights that are not cached, but step 1 (quantize/kv) left" in problem
    (problem,) = refused(tiny("llama", "causal-lm"), "quantize/rtn", "quantize/kv", "prune/wanda")
    assert "step 3 (prune/wanda) needs float weights, but step 1 (quantize/rtn) left" in problem


def test_heads_of_further_tasks_are_told_by_the_plan() -> None:
    for kind in ("prune/width", "adapt/tasks"):
        problems = refused(tiny("bert", "classification"), "adapt/tasks", kind)
        assert any("not headed, but step 1 (adapt/tasks) left" in each for each in problems), kind
