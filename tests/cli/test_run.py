"""run, plan, report and diff on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import attar as package
from cli.calling import Attar, plain_recipe


def test_run_shows_the_table_and_says_where_everything_is(
    attar: Attar, recipe: Path, ran: Path
) -> None:
    done = attar("run", recipe, "--home", ran)  # all of it is in the store
    assert done.code == 0
    assert "perplexity" in done.out
    assert "cached" in done.out
    folder = ran / "runs" / "small"
    for name in ("report.html", "report.json", "model"):
        assert str(folder / name) in done.out
        assert (folder / name).exists()
    assert "<html" in (folder / "report.html").read_text("utf-8")
    assert "What it came to" in (folder / "README.md").read_text("utf-8")


def test_the_home_may_come_from_the_environment(
    attar: Attar, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTAR_HOME", str(ran))
    assert "small" in attar("report", "small").out


def test_run_under_another_name_and_in_chinese(attar: Attar, recipe: Path, ran: Path) -> None:
    done = attar("run", recipe, "--home", ran, "--name", "12", "--language", "zh")
    assert done.code == 0
    assert "困惑度" in done.out
    assert (ran / "runs" / "12" / "report.json").exists()


def test_the_guard_refuses_loudly(
    attar: Attar, recipe: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = attar(
        "run", recipe, "--home", ran, "--name", "refused", "--set", "guard.perplexity=0.01"
    )
    assert done.code == 3
    assert "rounded" in done.out
    assert "OUTSIDE" in done.out
    assert str(ran / "runs" / "refused" / "report.html") in done.out
    assert done.err.splitlines()[-1].startswith("error: stage 'rounded' is outside its bound")


def test_plan_reads_no_weights_and_writes_nothing(
    attar: Attar, recipe: Path, ran: Path, tmp_path: Path
) -> None:
    done = attar("plan", recipe)
    assert done.code == 0
    assert "to be made" in done.out
    assert "?" in done.out
    assert "float → quantized" in done.out
    assert not list(tmp_path.iterdir())
    assert "0 of 1 stages to be made" in attar("plan", recipe, "--home", ran).out


def test_plan_reports_every_mistake_with_its_line(
    attar: Attar, model: Path, data: Path, tmp_path: Path
) -> None:
    plain = plain_recipe(
        model, data, modle=1, steps=[{"quantize/gtpq": {}}, {"quantize/rtn": {"gird": 1}}]
    )
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")
    done = attar("plan", "wrong.yaml")
    assert done.code == 2
    assert "3 things are wrong" in done.err
    for said in ("did you mean 'model'", "did you mean 'quantize/gptq'", "did you mean 'grid'"):
        assert said in done.err
    assert done.err.count("wrong.yaml:") == 3


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),  # W01
        (["RECIPE", "--set", "sede=3"], "did you mean 'seed'"),  # W32
        (["RECIPE", "--set", "seed"], "key=value"),  # W33
        (["RECIPE", "--set", "steps.9.grid=q4_0"], "there is no step '9'"),
    ],
)
def test_wrong_recipes(
    attar: Attar, recipe: Path, command: str, words: list[str], said: str, tmp_path: Path
) -> None:
    done = attar(command, *(str(recipe) if word == "RECIPE" else word for word in words))
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / ".attar").exists()


def test_report_as_table_page_and_json(attar: Attar, ran: Path, tmp_path: Path) -> None:
    home = ("--home", ran)
    assert "perplexity" in attar("report", "small", *home).out
    assert "perplexity" in attar("report", ran / "runs" / "small").out
    assert json.loads(attar("report", "small", "--json", *home).out)["name"] == "small"
    done = attar("report", "small", "--html", "page.html", "--language", "zh", *home)
    assert str(tmp_path / "page.html") in done.out
    assert "困惑度" in (tmp_path / "page.html").read_text("utf-8")


def test_report_says_what_is_wrong(attar: Attar, ran: Path, tmp_path: Path) -> None:  # W85
    done = attar("report", "smal", "--home", ran)
    assert done.code == 2
    assert "did you mean 'small'" in done.err
    assert str(ran) in done.err
    assert attar("report", "small").code == 2  # no run in this home at all
    for place in ("away/page.html", "."):
        assert attar("report", "small", "--home", ran, "--html", place).code == 2
    damaged = tmp_path / ".attar" / "runs" / "cut"
    damaged.mkdir(parents=True)
    (damaged / "report.json").write_text("{", "utf-8")
    done = attar("report", "cut")
    assert done.code == 1
    assert "damaged" in done.err


def test_diff(attar: Attar, recipe: Path, ran: Path) -> None:
    home = ("--home", ran)
    assert (
        attar("run", recipe, *home, "--name", "other", "--set", "steps.0.grid=int4-g32").code == 0
    )
    done = attar("diff", "small", "other", *home)
    assert done.code == 0
    assert "int4-g32" in done.out
    assert attar("diff", "small", "oter", *home).code == 2


def test_load_takes_a_run_a_model_and_a_name(ran: Path, model: Path) -> None:
    folder = ran / "runs" / "small"
    for place in (folder, folder / "model", str(model)):
        assert package.load(place).task == "causal-lm"
    with pytest.raises(package.AttarError, match="pip install --no-deps not-there-at-all"):
        package.load("package:not-there-at-all")


def test_plan_and_techniques_in_python(recipe: Path, ran: Path) -> None:
    plan = package.plan(recipe, home=ran)
    assert [stage.id for stage in plan.stages] == ["original", "rounded"]
    assert "quantize/rtn" in [entry.kind for entry in package.list_techniques()]
