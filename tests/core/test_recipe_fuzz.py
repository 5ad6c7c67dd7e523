"""Whatever is in a recipe, there is a Recipe or a RecipeError, and nothing else."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.core.recipe_file import build, parse
from attar.errors import RecipeError

pytestmark = pytest.mark.usefixtures("techniques")

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_WORDS = (
    "model data steps measures guard seed name path split train test id scope grid teacher mix "
    "quantize/rtn quantize/gptq distill/logits prune/depth keep reference may_dip prompts original "
    "rtn gptq q4_0 others patterns 0 1 trackers wandb . ./x /"
)
WORDS = st.sampled_from(_WORDS.split())
SCALAR = st.none() | st.booleans() | st.integers(-2, 99) | st.floats() | WORDS | st.text(max_size=3)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
SOURCE = SCALAR | st.dictionaries(WORDS, VALUE, max_size=3)
STEP = VALUE | st.dictionaries(WORDS, SOURCE, min_size=1, max_size=1)
PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "model": SOURCE,
        "data": SOURCE,
        "steps": st.lists(STEP, max_size=4) | VALUE,
        "measures": SOURCE,
        "guard": SOURCE,
        "trackers": VALUE,
        "other": VALUE,
    },
)


def _says_so(error: RecipeError) -> None:
    for problem in error.problems:
        assert problem.message
        assert "pydantic" not in str(problem)
        assert "Value error" not in str(problem)


@QUICK
@given(PLAIN)
def test_any_plain_data(plain):
    try:
        recipe = build(plain)
    except RecipeError as error:
        _says_so(error)
    else:
        assert parse(recipe.to_yaml(), "again.yaml") == recipe


@QUICK
@given(PLAIN, st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=3), SCALAR)
def test_any_file_with_any_overrides(tmp_path_factory, plain, keys, value):
    overrides = [f"{'.'.join(key)}={value}" for key in keys]
    text = yaml.safe_dump(plain, allow_unicode=True)
    try:
        parse(text, "r.yaml", overrides, folder=tmp_path_factory.getbasetemp())
    except RecipeError as error:
        _says_so(error)


@QUICK
@given(st.text(st.sampled_from("ab:-[]{}&*!<>|'\"#%@ \n\t,?1.~="), max_size=30))
def test_any_text(text):
    try:
        parse(text, "r.yaml")
    except RecipeError as error:
        _says_so(error)
