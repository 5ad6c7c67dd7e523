"""Recipes: shorthands, names of stages, and YAML that reads back equal."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attar.core.recipe import Recipe, expand_data
from attar.core.recipe_file import build, parse
from attar.errors import MissingPackage, Problem, RecipeError

pytestmark = pytest.mark.usefixtures("techniques")

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
WORD = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,8}\Z")
STEP = st.one_of(
    st.just("quantize/rtn"),
    st.fixed_dictionaries({"quantize/rtn": st.fixed_dictionaries(
        {}, optional={"grid": st.sampled_from(["q4_0", "int3-g64", "int8-channel"]),
                      "scope": st.lists(st.sampled_from(["linears", "mlp & blocks[2:]", "!*.o"]))}
    )}),
    st.fixed_dictionaries({"prune/depth": st.fixed_dictionaries({"keep": st.integers(1, 99)})}),
    st.fixed_dictionaries({"distill/logits": st.fixed_dictionaries(
        {"data": st.just("train")},
        optional={"temperature": st.floats(0, exclude_min=True, allow_infinity=False),
                  "teacher": st.just("original"), "share": st.floats(-1e9, 1e9) | st.integers(),
                  "mix": st.dictionaries(TEXT, st.floats(-1e300, 1e300), max_size=2)},
    )}),
)  # fmt: skip
PLAIN = st.fixed_dictionaries(
    {"model": TEXT, "data": st.fixed_dictionaries({"train": st.just("a"), "test": st.just("b")})},
    optional={
        "name": WORD,
        "seed": st.integers(0),
        "task": st.sampled_from(["causal-lm", "masked-lm", None]),
        "memory": st.floats(1e-300, 1e300),
        "steps": st.lists(STEP, max_size=4),
        "measures": st.fixed_dictionaries(
            {}, optional={"prompts": st.lists(TEXT, max_size=2), "speed": st.booleans()}
        ),
        "guard": st.fixed_dictionaries({}, optional={"perplexity": st.none() | st.floats(1, 1e9)}),
    },
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PLAIN)
@example({"model": "\x85", "data": {"train": "a\u2028b", "test": "c\u2029\r"}})
def test_yaml_reads_back_equal(plain):
    recipe = build(plain)
    assert parse(recipe.to_yaml(), "again.yaml") == recipe
    assert build(recipe.plain()) == recipe


def test_a_path_stands_for_three_datasets():
    recipe = build({"model": "x", "data": {"path": "texts", "text": "body"}})
    assert [(name, source.split) for name, source in recipe.data.items()] == [
        ("train", "train"), ("dev", "dev"), ("test", "test"),
    ]  # fmt: skip
    assert {source.text for source in recipe.data.values()} == {"body"}
    named = {"path": {"path": "a"}, "test": {"path": "b"}}
    assert expand_data(named) == named  # a dataset may be called path


def test_plain_leaves_defaults_out():
    recipe = build({"model": "x", "steps": ["quantize/rtn"], "measures": {"batch": 8}})
    assert recipe.plain() == {"model": {"path": "x"}, "steps": [{"quantize/rtn": {}}]}


def test_the_written_default_is_the_default(techniques):
    gptq = techniques["quantize/gptq"]
    assert gptq() == gptq(grid="q4_0") == gptq(grid="int4-g32")


def test_stage_ids_are_unique():
    steps = ["quantize/rtn", {"quantize/rtn": {"id": "rtn-2"}}, "quantize/rtn", "prune/rtn"]
    plain = {"model": "x", "steps": [*steps[:3], {"quantize/rtn": {"id": "own"}}]}
    assert build(plain).stage_ids() == ["rtn", "rtn-2", "rtn-3", "own"]


def test_recipes_and_errors_travel_between_processes():
    recipe = build({"model": "x", "steps": ["quantize/rtn"]})
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    error = RecipeError([Problem("wrong", "r.yaml", 3), Problem("too", path=("steps", 1, "grid"))])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "r.yaml:3: wrong\nsteps[1].grid: too"
    assert again.problems == error.problems
    missing = pickle.loads(
        pickle.dumps(MissingPackage("Reading GGUF", "pip install 'attar[gguf]'"))
    )
    assert str(missing).startswith("Reading GGUF needs a package")


def test_recipes_are_frozen():
    recipe = Recipe(model="x")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
