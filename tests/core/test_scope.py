"""Scopes: what each pattern selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attar.core.scope import ModuleFact, Scope

BLOCKS = 4


def _model() -> list[ModuleFact]:
    facts = [ModuleFact("embed", "embedding", False, None, (100, 8))]
    for block in range(BLOCKS):
        facts += [
            ModuleFact(f"layers.{block}.norm", "norm", False, block, (8,)),
            ModuleFact(f"layers.{block}.attn.q_proj", "attention", True, block, (8, 8)),
            ModuleFact(f"layers.{block}.mlp.up_proj", "mlp", True, block, (16, 8)),
            ModuleFact(f"layers.{block}.mlp.act", "mlp", False, block, ()),
        ]
    return [*facts, ModuleFact("lm_head", "head", True, None, (100, 8))]


MODEL = _model()
LINEARS = [m.name for m in MODEL if m.linear and m.block is not None]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("all", [m.name for m in MODEL]),
        ("linears", LINEARS),
        ("attention", [name for name in LINEARS if "attn" in name]),
        ("mlp", [name for name in LINEARS if "mlp" in name]),
        ("embedding", ["embed"]),
        ("head", ["lm_head"]),
        (["linears", "head"], [*LINEARS, "lm_head"]),
        (["head", "linears"], [*LINEARS, "lm_head"]),
        (["linears", "!mlp"], [name for name in LINEARS if "attn" in name]),
        (["linears", "!*.up_proj", "!blocks[1:]"], ["layers.0.attn.q_proj"]),
        ("linears & blocks[0]", LINEARS[:2]),
        ("linears&blocks[-1]", LINEARS[-2:]),
        ("linears & blocks[1:3]", LINEARS[2:6]),
        ("mlp & blocks[:-3]", ["layers.0.mlp.up_proj"]),
        ("linears & blocks[:]", LINEARS),
        ("blocks[4]", []),
        ("blocks[-5]", []),
        ("layers.?.norm & blocks[2]", ["layers.2.norm"]),
        ([], []),
        ("nothing", []),
    ],
)
def test_selection(patterns, expected):
    assert Scope.model_validate(patterns).select(MODEL) == expected


@pytest.mark.parametrize("index", range(-2 * BLOCKS, 2 * BLOCKS))
def test_an_index_is_a_python_index(index):
    chosen = Scope.of(f"linears & blocks[{index}]").select(MODEL)
    try:
        block = range(BLOCKS)[index]
    except IndexError:
        assert chosen == []
    else:
        assert chosen == LINEARS[2 * block : 2 * block + 2]


ENDS = st.none() | st.integers(-6, 6)


@given(ENDS, ENDS)
def test_a_range_is_a_python_slice(start, stop):
    text = ":".join("" if end is None else str(end) for end in (start, stop))
    chosen = Scope.of(f"attention & blocks[{text}]").select(MODEL)
    assert chosen == [f"layers.{i}.attn.q_proj" for i in range(BLOCKS)[start:stop]]


@given(st.lists(st.sampled_from(["linears", "mlp", "!head", "all", "!*.norm", "blocks[1:]"])))
def test_what_is_excluded_stays_out_and_the_order_is_the_models(patterns):
    chosen = Scope(patterns=tuple(patterns)).select(MODEL)
    assert chosen == [m.name for m in MODEL if m.name in chosen]
    assert not ("!head" in patterns and "lm_head" in chosen)
    assert chosen == Scope(patterns=tuple(reversed(patterns))).select(MODEL)


@pytest.mark.parametrize("pattern", ["", " ", "!", "mlp &", "& mlp"])
def test_an_empty_pattern_is_refused(pattern):
    with pytest.raises(ValidationError, match="an empty pattern names no module"):
        Scope.of(pattern)


def test_shorthands_and_plain():
    assert Scope.model_validate("mlp") == Scope.model_validate(["mlp"]) == Scope.of("mlp")
    assert Scope.of("mlp", "!head").model_dump() == ["mlp", "!head"]
    assert Scope() == Scope.linears()
    assert Scope.linears().select([]) == []
