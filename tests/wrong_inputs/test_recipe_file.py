"""W01 to W09: the recipe's file."""

from __future__ import annotations

import pytest

from wrong_inputs.harness import Bench, Row, row


@pytest.mark.parametrize("command", ["run", "plan"])
def test_w01_no_such_file(bench: Bench, command: str) -> None:
    bench.write("nowhere-else.yaml", "")
    said = (str(bench.folder / "nowhere.yaml"), "no such file", "did you mean 'nowhere-else.yaml'")
    bench.refused(command, "nowhere.yaml", said=said)


def test_w02_a_folder(bench: Bench) -> None:
    bench.write("recipes/one.yaml", "")
    said = (str(bench.folder / "recipes"), "a folder", "one.yaml")
    bench.refused("run", "recipes/", said=said)


FILES = [
    row("W03", "", "recipe.yaml", "empty", "model", "steps"),
    row("W03-comments", "# soon\n# more\n", "recipe.yaml", "empty", "model", "steps"),
    row("W04", "model: a\nsteps:\n\t- quantize/rtn\n", "recipe.yaml:3", "column", "tab", "spaces"),
    row("W05", "model: a\nsteps: [quantize/rtn\n", "recipe.yaml:3", "column", "not closed"),
    row("W05-indent", "model: a\n steps: []\n", "recipe.yaml:2", "column", "indentation"),
    row("W06", "# a list\n- quantize/rtn\n", "recipe.yaml:2", "got a list", "model", "steps"),
    row("W07", "seed: 1\nmodel: a\nseed: 2\n", "recipe.yaml:3", "'seed'", "line 1", "remove one"),
    row("W08", "model: a\n# 模型\n".encode("gbk"), "recipe.yaml:2", "UTF-8", "byte 0x"),
    row("W08-16", "model: a\n".encode("utf-16"), "recipe.yaml:1", "byte 0xff", "Save", "UTF-8"),
]


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_recipe(bench: Bench, case: Row) -> None:
    bench.write("recipe.yaml", case.what)
    bench.refused("run", "recipe.yaml", said=case.said)


def test_w09_a_tag_that_makes_an_object(bench: Bench) -> None:
    bench.lines(
        "model: MODEL",
        "steps: []",
        "name: !!python/object/apply:os.system ['touch executed']",
    )
    said = ("recipe.yaml:3", "python/object/apply:os.system", "nothing was executed", "plain YAML")
    bench.refused("run", "recipe.yaml", said=said)
    assert not (bench.folder / "executed").exists()
