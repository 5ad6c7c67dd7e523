"""Steps and the registry: references, and summaries read without importing."""

from __future__ import annotations

import sys
from typing import Annotated

import pytest
from pydantic import ValidationError

from attar.core import registry
from attar.core.step import DataRef, ModelRef, Reads, Step, Unkeyed
from attar.errors import UserError


class Many(Step, kind="test/many"):
    one: DataRef = "train"
    maybe: DataRef | None = None
    several: tuple[DataRef, ...] = ()
    teacher: ModelRef | None = None
    judge: ModelRef = "original"
    text: str = "not a reference"
    every: Annotated[int, Unkeyed()] = 100


def test_references_are_found_inside_unions_and_lists():
    assert Many.reading("data") == ["one", "maybe", "several"]
    assert Many.reading("model") == ["teacher", "judge"]
    assert list(Many().references("data")) == [("one", "train")]
    step = Many(maybe="dev", several=("a", "b"), teacher="first")
    assert list(step.references("data")) == [
        ("one", "train"), ("maybe", "dev"), ("several", "a"), ("several", "b"),
    ]  # fmt: skip
    assert list(step.references("model")) == [("teacher", "first"), ("judge", "original")]
    assert Reads("data") != Reads("model")


def test_settings_are_frozen_and_closed():
    step = Many(id="a")
    assert "id" not in step.settings()
    assert step.settings()["scope"] == ["all"]
    with pytest.raises(ValidationError, match="frozen"):
        step.one = "dev"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Many(two="dev")
    with pytest.raises(ValidationError):
        Many(id="../x")


def test_what_does_not_change_the_result_is_in_no_key():
    step = Many(every=7)
    assert step.settings().keys() - step.keyed_settings().keys() == {"every"}
    assert step.keyed_settings() == Many(id="a").keyed_settings()


def test_a_step_without_apply_says_so():
    with pytest.raises(NotImplementedError):
        Many().apply(None, None)
    assert list(Many().check([])) == []
    assert Many().reshape([]) == []


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree of techniques that cannot be imported."""
    for kind, text in {
        "quantize/rtn": '"""Round to nearest.\n\nMore."""\nraise RuntimeError("imported")\n',
        "quantize/_shared": '"""Not a technique."""\n',
        "prune/depth": "raise RuntimeError('imported')\n",
    }.items():
        path = tmp_path / f"{kind}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    monkeypatch.setattr(registry, "_ROOT", tmp_path)
    registry.find.cache_clear()
    yield tmp_path
    registry.find.cache_clear()


def test_entries_are_read_and_not_imported(tree):
    before = set(sys.modules)
    assert registry.kinds() == ["prune/depth", "quantize/rtn"]
    assert [(e.kind, e.summary) for e in registry.entries()] == [
        ("prune/depth", ""),
        ("quantize/rtn", "Round to nearest."),
    ]
    assert not [name for name in set(sys.modules) - before if name.startswith("attar.techniques")]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("quantize/rtm", "no technique is called 'quantize/rtm'; did you mean 'quantize/rtn'\\? `"),
        ("rtn", "did you mean 'quantize/rtn'\\?"),
        ("zzz", "no technique is called 'zzz'. `attar list` shows them all"),
        ("quantize/_shared", "no technique is called"),
        ("../../etc/passwd", "no technique is called"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_an_unknown_kind(kind, said):
    with pytest.raises(UserError, match=said):
        registry.find(kind)


def test_the_real_tree_lists_a_summary_for_every_technique():
    for entry in registry.entries():
        assert entry.summary, entry.kind


def test_nearest():
    assert registry.nearest("lenght", ["length", "batch"]) == "; did you mean 'length'?"
    assert registry.nearest("other/rtn", ["quantize/rtn"]) == "; did you mean 'quantize/rtn'?"
    assert registry.nearest("zzz", ["length"]) == ""
