from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import tiny_media
from attar.cli.settings import settings_of
from attar.core.recipe_file import parse, read
from attar.core.registry import find, kinds
from attar.models import save
from attar.models.uneven import keep_groups, keep_neurons
from cli.calling import Attar
from tiny_models import tiny


@pytest.mark.parametrize("kind", kinds())
def test_every_technique(attar: Attar, kind: str) -> None:
    done = attar("show", kind)
    assert done.code == 0
    for name in find(kind).model_fields:
        assert name in done.out


@pytest.mark.parametrize("kind", kinds())
def test_every_setting_has_a_type_and_says_what_it_does(kind: str) -> None:
    for row in settings_of(find(kind)):
        assert row.description, row.name
        assert row.type, row.name
        assert not {"<", "[", "typing"} & set(row.type), row


def test_settings_in_words() -> None:
    rows = {row.name: row for row in settings_of(find("quantize/gptq"))}
    assert rows["grid"].type == "grid"
    assert rows["grid"].default == "int4-g64"
    assert rows["embeddings"].type == "grid or nothing"
    assert rows["data"].type == "a dataset's name"
    assert rows["sequences"].type == "integer, at least 1"
    assert rows["scope"].default == "linears"


def test_a_run(attar: Attar, ran: Path) -> None:
    done = attar("show", "small", "--home", ran)
    assert done.code == 0
    assert "perplexity" in done.out


def test_an_artifact(attar: Attar, ran: Path) -> None:
    key = (ran / "runs" / "small" / "model").resolve().name
    for prefix in (key, key[:5]):
        done = attar("show", prefix, "--home", ran)
        assert done.code == 0
        assert key in done.out
        assert "quantize/rtn, version" in done.out
        assert "grid: int8-channel" in done.out
        assert str(ran / "store" / key) in done.out


def test_the_beginning_of_several_keys(attar: Attar, ran: Path, tmp_path: Path) -> None:  # W86
    store = tmp_path / ".attar" / "store"
    one = (ran / "runs" / "small" / "model").resolve()
    for key in ("abcd1", "abcd2"):
        shutil.copytree(one, store / key)
    done = attar("show", "abcd")
    assert done.code == 2
    assert "abcd1, abcd2" in done.err
    done = attar("show", "abcd3")
    assert done.code == 2
    assert "did you mean 'abcd" in done.err


def test_a_recipe_with_its_defaults(attar: Attar, recipe: Path) -> None:
    done = attar("show", recipe)
    assert done.code == 0
    plain = yaml.safe_load(done.out)
    assert plain["steps"][0]["quantize/rtn"]["id"] == "rounded"
    assert plain["guard"]["perplexity"] == 1.5
    assert parse(done.out, "shown") == read(recipe)
    assert attar("show", "nowhere.yaml").code == 2


def test_a_model(attar: Attar, model: Path, ran: Path) -> None:
    done = attar("show", model)
    assert done.code == 0
    for said in ("llama", "causal-lm", "model.layers.*.mlp.down_proj", "32 × 64", "attention"):
        assert said in done.out
    done = attar("show", ran / "runs" / "small" / "model")
    assert "int8-channel" in done.out
    assert "tied" in done.out


def test_a_model_of_uneven_blocks(attar: Attar, tmp_path: Path) -> None:
    model = tiny("llama")
    keep_groups(model, 1, [0])
    keep_neurons(model, 2, list(range(24)))
    save(model, tmp_path / "uneven")
    done = attar("show", tmp_path / "uneven")
    assert done.code == 0
    assert "2 to 4, 1 to 2 of keys and values" in done.out
    assert "24 × 32" in done.out


def test_a_model_that_is_none(attar: Attar, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert attar("show", "empty").code == 2
    done = attar("show", "package:not-there-at-all")
    assert done.code == 2
    assert "pip install --no-deps not-there-at-all" in done.err


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("quantize/gtpq", "did you mean 'quantize/gptq'"),
        ("smal", "did you mean 'small'"),
        ("nothing-like-it", "`attar list`"),
    ],
)
def test_what_is_not_there(attar: Attar, ran: Path, thing: str, said: str) -> None:
    done = attar("show", thing, "--home", ran)
    assert done.code == 2
    assert said in done.err
    assert str(ran) in done.err


def test_doctor(attar: Attar, ran: Path) -> None:
    done = attar("doctor", "--home", ran)
    assert done.code == 0
    for said in ("torch", "bf16", "GFLOP/s", "artifacts", "small", "ready"):
        assert said in done.out


def test_doctor_finds_what_is_broken(attar: Attar, tmp_path: Path) -> None:
    (tmp_path / ".attar").mkdir()
    (tmp_path / ".attar" / "FORMAT").write_text("999\n", "utf-8")
    done = attar("doctor")
    assert done.code == 1
    assert "999" in done.out


@pytest.mark.parametrize(("model_type", "task"), tiny_media.MODELS)
def test_a_model_that_sees_or_hears(attar: Attar, model_type: str, task: str, tmp_path: Path):
    save(tiny_media.tiny(model_type), tmp_path)
    done = attar("show", str(tmp_path))
    assert done.code == 0
    assert task in done.out
    assert ("32, 32 of images" in done.out) == (model_type == "clip")
    assert ("vocabulary" in done.out) == (model_type == "clip")
