"""Exporting as a user does: names, refusals, drafts, records, cards."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

import attar
from attar.errors import AttarError, ExportError, StoreError, Unreachable, UserError
from attar.export import export as room
from attar.export.artifact import Artifact, find_artifact
from attar.export.card import card
from attar.export.everything import export_all
from attar.export.export import Wanted, default_folder, draft_of, exports_of, usual_folder
from attar.export.licence import licence_of
from attar.export.push import push
from attar.export.record import RECORD, read_record
from attar.models import Files, save
from attar.runtimes.torch import Torch, TorchDecoder
from export.decoders import decoder
from tiny_models import logits, press

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
    assert done.record == record
    assert done.outputs["agreement"] > 0.8
    assert record["grids"]["model.embed_tokens"] == "int8-g32"
    artifact = find_artifact(str(model), tmp_path)
    assert exports_of(artifact, tmp_path) == {done.folder: record}
    assert not list((tmp_path / "exports" / "pressed").glob("*draft*"))
    text = card(artifact, [record])
    assert text.startswith("---\npipeline_tag:")
    assert "exactly equal" in text


def test_an_earlier_export_is_replaced_and_nothing_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert attar.export(model, "hf", out, wanted=QUICK).folder == out
    (out / RECORD).unlink()
    with pytest.raises(UserError, match="is no export"):
        attar.export(model, "hf", out, wanted=QUICK)


def test_what_a_killed_export_left_is_removed(model: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.999999999.attar-draft"
    left.mkdir()
    (tmp_path / ".out.notes.attar-draft").mkdir()
    attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    assert not left.exists()
    assert (tmp_path / ".out.notes.attar-draft").exists()


def test_what_a_user_has_beside_an_export_stays(model: Path, tmp_path: Path) -> None:
    for name in ("out", "pushed"):
        for beside in (f"{name}.2025.old", f"{name}.1.draft"):
            (tmp_path / beside).mkdir()
            (tmp_path / beside / "mine").write_text(beside)
        (tmp_path / f"{name}.lock").write_text("mine")
    mine = {path: path.read_text() for path in (*tmp_path.glob("*/mine"), *tmp_path.glob("*.lock"))}
    assert len(mine) == 6
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    push(done.folder, str(tmp_path / "pushed"))
    assert {path: path.read_text() for path in mine} == mine


def test_the_model_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    save(decoder(), tmp_path / "float")
    done = attar.export(tmp_path / "float", "hf", tmp_path / "out", wanted=QUICK)
    with pytest.raises(UserError, match=r"out is where the model lies\. .*--out"):
        attar.export(done.folder, "hf", done.folder, wanted=QUICK)
    assert (done.folder / "model.safetensors").is_file()


def test_an_export_of_another_model_is_not_replaced(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other" / "pressed")
    out = tmp_path / "out"
    attar.export(model, "hf", out, wanted=QUICK)
    for ref, target in ((other, "hf"), (model, "gguf")):
        with pytest.raises(UserError, match=rf"holds an export of {model} to hf\. .*--out"):
            attar.export(ref, target, out, wanted=QUICK)
    first, second = (attar.export(ref, "hf", home=tmp_path, wanted=QUICK) for ref in (model, other))
    assert first.folder == tmp_path / "exports" / "pressed" / "hf"
    assert second.folder.parent.name.startswith("pressed-")
    for ref, done in ((model, first), (other, second)):
        artifact = find_artifact(str(ref), tmp_path)
        assert exports_of(artifact, tmp_path) == {done.folder: done.record}
        assert usual_folder(tmp_path, artifact, "hf") == done.folder


def test_what_a_run_made_before_is_replaced(model: Path, tmp_path: Path) -> None:
    usual = default_folder(tmp_path, "first", "hf")
    usual.mkdir(parents=True)
    record = attar.export(model, "hf", tmp_path / "out", wanted=QUICK).record
    anew = Artifact("first", Files(tmp_path / "store" / ("b" * 24)), "b" * 24)
    for store, replaced in (("store", True), ("another", False)):
        source = {"name": "first", "key": "a" * 24, "path": str(tmp_path / store / ("a" * 24))}
        (usual / RECORD).write_text(json.dumps({**record, "source": source}))
        assert (usual_folder(tmp_path, anew, "hf") == usual) == replaced


def test_behind_a_link_is_what_it_leads_to(model: Path, tmp_path: Path) -> None:
    link, disk = tmp_path / "out", tmp_path / "disk"
    link.symlink_to(disk)  # which is not there yet
    for _ in range(2):
        attar.export(model, "hf", link, wanted=QUICK)
        assert link.is_symlink()
        assert (disk / RECORD).is_file()
        assert {*tmp_path.iterdir()} == {model, link, disk}
    done = attar.export(model, "hf", tmp_path / "plain", wanted=QUICK)
    push(done.folder, str(link))
    assert link.is_symlink()
    assert {*tmp_path.iterdir()} == {model, link, disk, done.folder}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/else/where"), "/else/where"),
        (URLError("refused"), "refused"),
    ],
)
def test_what_is_no_failure_to_write_is_not_told_as_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("attar.export.export.compare_codes", fails)
    with pytest.raises(AttarError, match=rf"out was not made: .*{words}.*Mend that") as caught:
        attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    assert not isinstance(caught.value, StoreError)


def test_where_nobody_may_write_another_folder_is_named_as_it_can_be(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    monkeypatch.setattr("attar.export._draft.flush", fails)
    with pytest.raises(StoreError, match=r"two could not be written: .* folder with --out$"):
        attar.export(model, "hf", tmp_path / "two", wanted=QUICK)
    with pytest.raises(StoreError, match=r"two could not be written: .* name another folder$"):
        push(done.folder, str(tmp_path / "two"))


def test_drafts_are_not_told_of(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        [folder] = [one for one in given if isinstance(one, Path)]
        raise AttarError(f"{folder} and {folder / 'model.safetensors'} are no good")

    told = f"{tmp_path / 'out'} and {tmp_path / 'out/model.safetensors'} are no good"
    with monkeypatch.context() as patch:
        patch.setattr("attar.export.export.compare_codes", fails)
        with pytest.raises(AttarError, match=f"^{told}$"):
            attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    monkeypatch.setattr("attar.export.export.time_engine", fails)
    said: list[str] = []
    wanted = Wanted(verify=False)
    done = attar.export(model, "hf", tmp_path / "out", wanted=wanted, say=said.append)
    assert told in done.record["warnings"][0]
    assert told in said[-1]


@pytest.mark.parametrize(
    ("target", "needs", "files"),
    [
        ("hf", "compressed_tensors", ["model.safetensors"]),
        ("gguf", "gguf", ["model.gguf"]),
        ("onnx", "onnxruntime", ["model.onnx", "model.onnx.data"]),
        ("onnx-web", "onnxruntime", ["model.onnx", "model.onnx.data"]),
        ("openvino", "openvino_tokenizers", ["openvino_model.bin", "openvino_model.xml"]),
    ],
)
def test_bytes_are_those_that_an_engine_needs(
    model: Path, tmp_path: Path, target: str, needs: str, files: list[str]
) -> None:
    pytest.importorskip(needs)
    done = attar.export(model, target, tmp_path / "out", wanted=QUICK)
    assert done.record["bytes"] == sum((done.folder / name).stat().st_size for name in files)


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


SPOILED = "model.layers.1.mlp.up_proj"


def _one_code(found: dict[str, Any]) -> None:
    found[SPOILED].codes[3, 4] += 1


def _one_scale(found: dict[str, Any]) -> None:
    found[SPOILED].scales[2, 0] *= 2


def _one_zero(found: dict[str, Any]) -> None:
    found[SPOILED].zeros[2, 0] += 1


def _no_zeros(found: dict[str, Any]) -> None:
    found[SPOILED] = replace(found[SPOILED], zeros=None)


def _one_more(found: dict[str, Any]) -> None:
    found["model.norm"] = found[SPOILED]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_one_code, r"layers.1.mlp.up_proj: 1 of \d+ codes differ"),
        (_one_scale, r"layers.1.mlp.up_proj: 1 of \d+ scales differ"),
        (_one_zero, r"layers.1.mlp.up_proj: 1 of \d+ zero points differ"),
        (_no_zeros, r"zero points, which one has and the other has not"),
        (_one_more, "model.norm: on a grid in the file, and float in the artifact"),
        (lambda found: found.pop(SPOILED), r"layers.1.mlp.up_proj: not there"),
        (lambda found: found.clear(), r"layers.0.self_attn.q_proj: not there"),
    ],
)
def test_what_does_not_come_back_is_not_published(
    spoil: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(press(decoder(), "int4-g32-zp", "int8-g32"), tmp_path / "pressed")
    true = Torch.read_back

    def wrong(self: Torch, folder: Path) -> Any:
        found = dict(true(self, folder))
        spoil(found)
        return found

    monkeypatch.setattr(Torch, "read_back", wrong)
    with pytest.raises(AttarError, match=words):
        attar.export(tmp_path / "pressed", "hf", tmp_path / "out", wanted=QUICK)
    assert list(tmp_path.iterdir()) == [tmp_path / "pressed"]


def test_a_kill_leaves_nothing_that_looks_finished(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "hf", home=tmp_path, wanted=QUICK)
    shutil.copytree(done.folder, done.folder.with_name(".hf.999999999.attar-draft"))
    artifact = find_artifact(str(model), tmp_path)
    assert exports_of(artifact, tmp_path).keys() == {done.folder}
    with draft_of(done.folder) as draft:
        lock = done.folder.with_name(".hf.attar-lock")
        assert {*done.folder.parent.iterdir()} == {done.folder, draft, lock}
        (draft / "new").touch()
    assert [path.name for path in done.folder.iterdir()] == ["new"]
    assert [*done.folder.parent.iterdir()] == [done.folder]


def test_two_exports_to_one_place_come_one_after_the_other(tmp_path: Path) -> None:
    begun, others = threading.Event(), threading.Event()
    order: list[str] = []

    def say(text: str) -> None:
        order.append(text)
        others.set()

    def first() -> None:
        with draft_of(tmp_path / "out") as draft:
            (draft / "first").touch()
            begun.set()
            assert others.wait(60)  # the other one is at the door
            order.append("first")
            assert [path.name for path in draft.iterdir()] == ["first"]

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    with draft_of(tmp_path / "out", say) as draft:
        order.append("second")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
        (draft / "second").touch()
    thread.join(60)
    assert order == ["another export goes there; waiting for that", "first", "second"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second"]
    assert [*tmp_path.iterdir()] == [tmp_path / "out"]


def test_many_at_once_and_none_is_torn(tmp_path: Path) -> None:
    def one(mark: int) -> None:
        with draft_of(tmp_path / "out") as draft:
            for name in "abc":
                (draft / name).write_text(str(mark))
            assert [*map(Path.read_text, sorted(draft.iterdir()))] == [str(mark)] * 3

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(32)))
    assert len({(tmp_path / "out" / name).read_text() for name in "abc"}) == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "out"]


def test_an_export_that_was_being_replaced_comes_back(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    done.folder.rename(tmp_path / ".out.999999999.attar-old")  # and killed there
    with pytest.raises(StoreError), draft_of(done.folder):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (done.folder / RECORD).is_file()
    assert {*tmp_path.iterdir()} == {model, done.folder}


def test_exports_of_another_model_of_the_same_name(model: Path, tmp_path: Path) -> None:
    attar.export(model, "hf", home=tmp_path, wanted=QUICK)
    other = shutil.copytree(model, tmp_path / "other" / "pressed")
    artifact = find_artifact(str(other), tmp_path)
    assert artifact.name == "pressed"
    assert exports_of(artifact, tmp_path) == {}


def test_exports_of_a_model_before_it_was_written_anew(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "hf", home=tmp_path, wanted=QUICK)
    assert exports_of(find_artifact(str(model), tmp_path), tmp_path).keys() == {done.folder}
    save(press(decoder(), "int8-g32", "int8-g32"), model)
    assert exports_of(find_artifact(str(model), tmp_path), tmp_path) == {}
    assert RECORD not in {path.name for path in Files(done.folder).parts}  # bench writes it anew


def test_a_colon_leads_to_no_other_folder(model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "a:b" / "pressed")
    done = attar.export(other, "hf", home=tmp_path / "home", wanted=QUICK)
    assert done.folder == tmp_path / "home" / "exports" / "pressed" / "hf"


def test_answers_that_are_no_numbers_are_not_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: TorchDecoder, ids: list[int]) -> Any:
        found = true(self, ids)
        return found if not compared else np.full_like(found, np.nan)

    true, compared = TorchDecoder.logprobs, []
    opened = Torch.open
    monkeypatch.setattr(TorchDecoder, "logprobs", broken)
    monkeypatch.setattr(Torch, "open", lambda *given: compared.append(1) or opened(*given))
    with pytest.raises(AttarError, match="NaN"):
        attar.export(model, "hf", tmp_path / "out", wanted=Wanted(speed=False))
    assert list(tmp_path.iterdir()) == [model]


def test_answers_that_are_far_off_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes are right, and what the engine makes of them is not."""

    def sure(self: TorchDecoder, ids: list[int]) -> Any:
        found = true(self, ids)
        if engines:
            found[:, 1:], found[:, 0] = -20.0, 0.0
        return found

    true, engines, said = TorchDecoder.logprobs, list[int](), list[str]()
    opened = Torch.open
    monkeypatch.setattr(TorchDecoder, "logprobs", sure)
    monkeypatch.setattr(Torch, "open", lambda *given: engines.append(1) or opened(*given))
    wanted = Wanted(speed=False)
    done = attar.export(model, "hf", tmp_path / "out", wanted=wanted, say=said.append)
    [warning] = done.record["warnings"]
    assert "nats a token away from the artifact's own" in warning
    assert f"warning: {warning}" in said


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
    with pytest.raises(UserError, match=r"is no export .* and no artifact of"):
        push(model, str(tmp_path / "elsewhere"))
    (tmp_path / "link").symlink_to(done.folder)
    for within in (done.folder, tmp_path / "there" / ".." / "out", tmp_path / "link"):
        with pytest.raises(UserError, match="lies within"):
            push(done.folder, str(within / "sub"))


def test_an_artifact_is_pushed_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, there = tmp_path / "home", tmp_path / "there"
    save(decoder(), tmp_path / "float")
    steps = [{"quantize/rtn": {"grid": "int8-channel"}}]
    recipe = {"name": "pressed", "model": str(tmp_path / "float"), "steps": steps}
    folder = attar.run(recipe, home=home).folder
    for ref in ((folder / "model").resolve().name, folder, "pressed"):  # each in another's place
        assert push(ref, str(there), home=home) == str(there)
        assert "1. `quantize/rtn`" in (there / "README.md").read_text("utf-8")
        again = attar.load(there)
        assert torch.equal(logits(again), logits(attar.load(folder / "model")))
    assert not {"README.md", "step.json"} <= {path.name for path in there.iterdir()}
    assert not (folder / "model" / "README.md").exists()
    done = attar.export("pressed", "hf", tmp_path / "out", home=home, wanted=QUICK)
    with pytest.raises(UserError, match="holds something else"):
        push("pressed", str(done.folder), home=home)
    with pytest.raises(UserError, match="holds something else"):
        push(done.folder, str(there))
    told: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, name: str, **how: Any) -> None:
            pass

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            told.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return repo_id

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push("pressed", "hub:me/small", home=home) == "me/small"
    assert told == {path.name: path.read_bytes() for path in there.iterdir()}


def test_a_push_to_a_hub_hands_the_whole_folder_to_its_client(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    asked: list[tuple[str, dict[str, Any]]] = []
    told: dict[str, bytes] = {}

    class Hub:
        def create_repo(self, name: str, **how: Any) -> None:
            asked.append((name, how))

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            told.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return f"https://hub.example/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push(done.folder, "hub:me/small", private=True) == "https://hub.example/me/small"
    assert asked == [("me/small", {"private": True, "exist_ok": True})]
    push(done.folder, str(tmp_path / "there"))
    assert told == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}


def _answered(status: int, text: str) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(text, response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_answered(401, "401: no token\nmore"), r"401: no token more\. Log in with"),
        (_answered(403, "not yours"), r"not yours\. Log in with"),
        (ValueError('Invalid metadata.\n- "x" is not valid.'), r'- "x" is not valid\. Mend that'),
        (ConnectionError("no route"), r"no route\. Mend that"),
    ],
)
def test_what_a_hub_refuses_is_told_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)

    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(Unreachable, match=rf"pushed to me/small: .*{words}"):
        push(done.folder, "hub:me/small")


def test_a_file_that_cannot_be_pushed_is_named(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "hf", tmp_path / "out", wanted=QUICK)
    (done.folder / "gone").symlink_to("nowhere")
    with pytest.raises(StoreError, match=r"^\S*out/gone could not be copied: .*No such file"):
        push(done.folder, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_what_is_pushed_names_no_folder_of_this_machine(model: Path, tmp_path: Path) -> None:
    done = attar.export(model, "gguf", tmp_path / "out", wanted=QUICK)
    push(done.folder, str(tmp_path / "there"))
    for path in (tmp_path / "there").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    text = (tmp_path / "there" / "README.md").read_text("utf-8")
    assert "Pressed by Attar from `pressed`" in text
    assert read_record(done.folder)["source"]["path"] == str(model)  # which `serve` looks at
    assert read_record(tmp_path / "there")["source"]["name"] == "pressed"


def test_the_room_is_the_function() -> None:
    assert callable(attar.export)
    assert room.__name__ == "attar.export.export"
