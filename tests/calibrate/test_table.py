"""The table of what each part costs: read as it was written, and of this model alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attar.calibrate.table import Part, parts_of, read_table, to_table, unread
from attar.core.scope import Scope
from tiny_models import tiny

WANDA = "prune/wanda"


@pytest.mark.parametrize("by", ["role", "linear"])
@pytest.mark.parametrize("scope", ["linears", "mlp", "blocks[1:] & linears"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_read_as_it_was_written(by: Any, scope: str, family: str, tmp_path: Path) -> None:
    model, table = tiny(family), tmp_path / "t.tsv"
    every = parts_of(model, Scope.linears(), by)
    found = {"a": [0.001 * at for at in range(len(every))], "b x=1": [1e-9] * len(every)}
    table.write_text(to_table(every, found, by), "utf-8")
    chosen = Scope.of(scope)
    read = read_table(str(table), model.facts(), list(model.linears(chosen)))
    assert read.parts == parts_of(model, chosen, by)
    assert set(read.parts) <= set(every)
    assert read.divergences("a") == [pytest.approx(0.001 * every.index(p)) for p in read.parts]
    assert read.divergences("b x=1") == [1e-9] * len(read.parts)


def test_a_linear_is_called_by_its_path_in_the_block() -> None:
    part = parts_of(tiny("llama"), Scope.of("blocks[1] & *.k_proj"), "linear")
    assert part == [Part(1, "self_attn.k_proj", ("model.layers.1.self_attn.k_proj",), 16 * 32)]


ROLES = parts_of(tiny("llama"), Scope.linears())
RIGHT = to_table(ROLES, {"prune/wanda sparsity=0.5": [0.5] * len(ROLES)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "is no table that"),
        ("block\trole\tweights\n0\tattention\n", "is no table that"),
        ("block\tcolor\tweights\n0\tred\t1\n", "is no table that"),
        ("block\trole\tweights\n0\tattention\t1\n", "was measured on a model of other"),
        (RIGHT.replace("\trole\t", "\tlinear\t"), "was measured on a model of other"),
        ("\n".join(RIGHT.splitlines()[:-1]), "was measured on a model of other"),
        (
            RIGHT.replace("\t0.5\n", "\tnan\n", 1),
            "no divergence of 'prune/wanda sparsity=0.5' for at",
        ),
        (RIGHT.replace("\t0.5\n", "\tmuch\n", 1), "for attention of block 0. Measure it again"),
        (RIGHT.replace("wanda", "magnitude"), "has no column of prune/wanda with a sparsity"),
    ],
)
def test_what_does_not_fit_is_told(text: str | None, said: str, tmp_path: Path) -> None:
    model, path = tiny("llama"), tmp_path / "t.tsv"
    if text is not None:
        path.write_text(text, "utf-8")
    chosen = list(model.linears(Scope.linears()))

    def read() -> object:
        return read_table(str(path), model.facts(), chosen).tried(WANDA, "sparsity")

    (problem,) = unread(str(path), read)
    assert said in problem
    assert str(path) in problem


def test_a_part_of_what_was_measured_as_a_whole_is_refused(tmp_path: Path) -> None:
    model, table = tiny("llama"), tmp_path / "t.tsv"
    table.write_text(RIGHT, "utf-8")
    with pytest.raises(ValueError, match=r"attention of block 0 as a whole.*--by linear"):
        read_table(str(table), model.facts(), list(model.linears(Scope.of("*.q_proj"))))


def test_values_tried_whatever_else_was_set(tmp_path: Path) -> None:
    labels = (
        "prune/wanda sequences=8 sparsity=0.3",
        "prune/wanda sparsity=0.6 batch=2",
        "prune/wanda pattern=2:4",
        "prune/wanda",
        "prune/wandas sparsity=0.9",
    )
    columns = {label: [float(at)] * len(ROLES) for at, label in enumerate(labels)}
    model, path = tiny("llama"), tmp_path / "t.tsv"
    chosen = list(model.linears(Scope.linears()))
    path.write_text(to_table(ROLES, columns), "utf-8")
    table = read_table(str(path), model.facts(), chosen)
    assert {value: own[0] for value, own in table.tried(WANDA, "sparsity").items()} == {
        0.3: 0,
        0.6: 1,
    }
    twice = {**columns, "prune/wanda sparsity=0.6": [0.0] * len(ROLES)}
    path.write_text(to_table(ROLES, twice), "utf-8")
    with pytest.raises(ValueError, match=re.escape("two columns of prune/wanda with sparsity=0.6")):
        read_table(str(path), model.facts(), chosen).tried(WANDA, "sparsity")
