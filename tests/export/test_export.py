"""Exporting as a user does: names, refusals, drafts, records, cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import attar
from attar.errors import AttarError, ExportError, UserError
from attar.export import export as room
from attar.export.artifact import find_artifact
from attar.export.card import card
from attar.export.everything import export_all
from attar.export.export import RECORD, Wanted, exports_of
from attar.export.licence import licence_of
from attar.export.push import push
from attar.models import Files, save
from attar.runtimes.torch import Torch
from export.decoders import decoder
from tiny_models import press

pytest.importorskip("gguf")
QUICK = Wanted(speed=False, verify=False)


@pytest.fixture(name="model")
def saved(tmp_path: Path) -> Path:
    save(press(decoder(), "int4-g32", "int8-g32"), tmp_path / "pressed")
    return tmp_path / "pressed"


def test_an_export_is_whole(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    done = attar.export(model, "gguf", home=tmp_path, wanted=Wanted(speed=False, threads=1))
    assert done.folder == tmp_path / "exports" / "pressed" / "gguf"
    names = {path.name for path in done.folder.iterdir()}
    assert {"model.gguf", RECORD, "README.md", "tokenizer.json"} <= names
    record = json.loads((done.folder / RECORD).read_text())
    assert record["verified"]["codes"]["layers"] == 22
    assert record["verified"]["outputs"]["agreement"] > 0.8
    assert record["grids"]["model.embed_tokens"] == "int8-g32"
    assert exports_of("pressed", tmp_path) == [record]
    assert not list((tmp_path / "exports" / "pressed").glob("*draft*"))
    text = card(find_artifact(str(model), tmp_path), [record])
    assert text.startswith("---\nbase_model:")
    assert "exactly equal" in text


def test_an_earlier_export_is_replaced_and_nothing_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert attar.export(model, "hf", out, wanted=QUICK).folder == out
    (out / RECORD).unlink()
    with pytest.raises(UserError, match="is no export"):
        attar.export(model, "hf", out, wanted=QUICK)


def test_what_a_killed_export_left_is_removed(model: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.999999999.draft"
    left.mkdir()
    (tmp_path / "out.notes.draft").mkdir()
    attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    assert not left.exists()
    assert (tmp_path / "out.notes.draft").exists()


def test_licences_are_read_where_files_tell(tmp_path: Path) -> None:
    def told() -> str | None:
        return licence_of(str(tmp_path), Files(tmp_path))

    assert told() is None
    (tmp_path / "LICENSE").write_text("                 Apache License\n     Version 2.0")
    assert told() == "apache-2.0"
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: 'MIT'\n---\n# A model\n")
    assert told() == "mit"
    assert licence_of("package:torch", None) is not None


def test_refused_before_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(press(decoder(), "nf4-g64", "int8-g32"), tmp_path / "pressed")

    def never(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("attar.export.export.load", never)
    with pytest.raises(ExportError, match=r"nf4-g64.*--allow-rounding"):
        attar.export(tmp_path / "pressed", "gguf", tmp_path / "out", wanted=QUICK)
    assert not (tmp_path / "out").exists()


def test_rounding_is_told(tmp_path: Path) -> None:
    save(press(decoder(), "nf4-g64", "int8-g32"), tmp_path / "pressed")
    wanted = Wanted(allow_rounding=True, speed=False, verify=False)
    done = attar.export(tmp_path / "pressed", "gguf", tmp_path / "out", wanted=wanted)
    rounded = done.record["rounded"]["model.layers.0.mlp.up_proj"]
    assert (rounded["from"], rounded["to"]) == ("nf4-g64", "int4-g64-min")
    assert 0 < rounded["relative_error"] < 0.2
    assert "rounded a second time" in (done.folder / "README.md").read_text()


def test_codes_that_do_not_come_back_are_not_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Torch.read_back

    def wrong(self: Torch, folder: Path) -> Any:
        found = dict(true(self, folder))
        found["model.layers.1.mlp.up_proj"].codes[3, 4] += 1
        return found

    monkeypatch.setattr(Torch, "read_back", wrong)
    with pytest.raises(AttarError, match=r"layers.1.mlp.up_proj: 1 of \d+ codes differ"):
        attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    assert list(tmp_path.iterdir()) == [model]


def test_every_target_that_fits(model: Path, tmp_path: Path) -> None:
    done = export_all(model, home=tmp_path, wanted=QUICK)
    assert {"gguf", "hf"} <= {one.target for one in done.exports} | done.skipped.keys()
    assert {one.target for one in done.exports} >= {"gguf", "hf"}


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is called 'pres'"):
        attar.export("pres", "hf", home=tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'gguf'"):
        attar.export(tmp_path, "ggu", home=tmp_path)


def test_a_push_copies_whole(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    assert push(done.folder, str(tmp_path / "there")) == str(tmp_path / "there")
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {path.name for path in done.folder.iterdir()}
    with pytest.raises(UserError, match="hub:OWNER/NAME"):
        push(done.folder, "hub:nobody")
    with pytest.raises(UserError, match="is no export"):
        push(model, str(tmp_path / "elsewhere"))


def test_the_room_is_the_function() -> None:
    assert callable(attar.export)
    assert room.__name__ == "attar.export.export"
