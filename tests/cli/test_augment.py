"""attar augment: a recipe of one step, and its rows in a file that is never lost unasked."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import data_steps
import tiny_models
from attar.cli.augment import SETTINGS, augment
from attar.core import registry
from attar.core.recipe_file import parse
from attar.models import save
from cli.calling import Attar
from loopback import serving


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    save(tiny_models.tiny("bert", "classification"), folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.tsv"
    rows = data_steps.rows().examples
    path.write_text("".join(f"{row.text}\t{row.label}\n" for row in rows), "utf-8")
    return path


def test_options_are_the_steps_settings() -> None:
    """Each setting but those of the data has an option, and each option is a setting."""
    fields = {name for kind in data_steps.kinds() for name in registry.find(kind).model_fields} - {
        "id",
        "data",
        "beside",
    }
    assert set(SETTINGS) == fields
    assert fields <= inspect.signature(augment).parameters.keys()


def test_it_prints_the_recipe_that_it_stands_for(attar: Attar, bert: Path, table: Path) -> None:
    words = str(data_steps.synonyms(table.parent))
    done = attar(
        *("augment", "synonyms", bert, "--data", table, "--out", "more.jsonl", "--words", words),
        *("--variants", 2, "--teacher", "original", "--no-originals", "--dry-run"),
    )
    assert done.code == 0, done.err
    plain = yaml.safe_load(done.out)
    assert plain["data"] == {"rows": {"path": str(table)}}
    assert plain["steps"] == [
        {
            "data/synonyms": {
                "id": "augmented",
                "words": words,
                "teacher": "original",
                "variants": 2,
                "originals": False,
                "data": "rows",
            }
        }
    ]
    assert parse(done.out, "printed").steps
    assert not (table.parent / "more.jsonl").exists()


@pytest.mark.parametrize("name", ["more.jsonl", "more.tsv", "more.csv"])
def test_the_rows_are_written(attar: Attar, bert: Path, table: Path, name: str) -> None:
    words = str(data_steps.synonyms(table.parent))
    call: tuple[Any, ...] = ("augment", "synonyms", bert, "--data", table, "--words", words)
    done = attar(*call, "--out", name)
    assert done.code == 0, done.err
    lines = (table.parent / name).read_text("utf-8").splitlines()
    said = done.out.splitlines()[-1]
    count = int(said.rpartition("(")[2].split()[0])
    assert said.startswith(f"Data: {table.parent / name} (")
    assert count == len(lines) - (not name.endswith("jsonl")) > 24
    if name.endswith("jsonl"):
        assert json.loads(lines[0]) == {
            "text": data_steps.rows().examples[0].text,
            "label": data_steps.rows().examples[0].label,
        }


def test_a_file_is_never_written_over_unasked(attar: Attar, bert: Path, table: Path) -> None:
    out = table.parent / "more.jsonl"
    out.write_text("mine", "utf-8")
    call = ("augment", "label", bert, "--data", table, "--out", out)
    done = attar(*call)
    assert done.code == 2
    assert "is there already" in done.err
    assert out.read_text() == "mine"
    assert not (table.parent / ".attar").exists()
    assert attar(*call, "--overwrite").code == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == [row.text for row in data_steps.rows().examples]
    assert {row["label"] for row in rows} <= set(tiny_models.LABELS)


def test_from_nothing(attar: Attar, model: Path, tmp_path: Path) -> None:
    call = ("augment", "generate", model, "--out", "texts.jsonl", "--texts", 4, "--new-tokens", 4)
    done = attar(*call, "--set", "precision=float32")
    assert done.code == 0, done.err
    assert (tmp_path / "texts.jsonl").read_text("utf-8").count('{"text"') >= 1


def test_a_teacher_behind_an_address(attar: Attar, model: Path, table: Path) -> None:
    with serving() as server:
        server.reply = lambda path, asked: (200, {"choices": [{"text": f" {asked['prompt']}!"}]})
        call = ("augment", "generate", model, "--data", table, "--out", "a.jsonl")
        done = attar(*call, "--teacher", server.url, "--server", "{at_once: 2}")
    assert done.code == 0, done.err
    rows = data_steps.rows().examples
    found = [json.loads(line)["text"] for line in (table.parent / "a.jsonl").open()]
    assert found == [f"{row.text} {row.text}!" for row in rows]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["synonims", "m", "--out", "a.jsonl"], "did you mean 'synonyms'?"),
        (["mlm", "m", "--out", "a.txt"], "one of these endings"),
        (["mlm", "m", "--out", "nowhere/a.tsv"], "no folder"),
        (["mlm", "m"], "--out"),
        (["synonyms", "m", "--out", "a.tsv", "--data", "d"], "the key `words` is missing"),
        (["mlm", "m", "--out", "a.tsv", "--data", "d", "--texts", "3"], "unknown key 'texts'"),
        (
            ["generate", "m", "--out", "a.tsv", "--data", "d", "--server", "{key: [}"],
            "--server:1",
        ),
        (["mlm", "m", "--out", "a.tsv"], "reads the data 'train', which is not there"),
    ],
)
def test_wrong_words(attar: Attar, words: list[str], said: str, tmp_path: Path) -> None:
    done = attar("augment", *words)
    assert done.code == 2
    assert said in done.err, done.err
    assert not list(tmp_path.iterdir())


def test_what_was_made_is_shown(attar: Attar, bert: Path, table: Path) -> None:
    assert attar("augment", "label", bert, "--data", table, "--out", "a.jsonl").code == 0
    report = json.loads((table.parent / ".attar/runs/augment-bert/report.json").read_text("utf-8"))
    (made,) = [stage for stage in report["stages"] if stage["id"] == "augmented"]
    done = attar("show", made["key"][:12])
    assert done.code == 0, done.err
    assert re.search(r"^rows +12$", done.out, re.MULTILINE)
    assert re.search(r"^technique +data/label, version 3$", done.out, re.MULTILINE)
    assert not re.search(r"^weights", done.out, re.MULTILINE)
