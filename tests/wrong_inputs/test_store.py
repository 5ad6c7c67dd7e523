"""W81 to W89: the store, the machine, the guard."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from attar.engine.store import FORMAT
from wrong_inputs.harness import Bench, drafts, the_message

SMALLER = [{"quantize/rtn": {"grid": "int4-g32", "id": "rounded"}}]
LOOSE = {"perplexity": 1000.0}


@pytest.fixture
def copied(bench: Bench) -> Path:
    """A store that may be damaged."""
    return Path(shutil.copytree(bench.home, bench.folder / "kept", symlinks=True))


def artifact(home: Path) -> Path:
    """What the run `sound` made."""
    return (home / "runs" / "sound" / "model").resolve()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_w81_the_store_cannot_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    home = bench.folder / "locked"
    make = Path.mkdir

    def refuse(self: Path, *words: Any, **more: Any) -> None:
        if home in (self, *self.parents):
            raise OSError(number, os.strerror(number), str(self))
        make(self, *words, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = (str(home), os.strerror(number), "--home")
    bench.refused("run", bench.recipe(), said=said, code=1, home=home)


@pytest.mark.parametrize("command", ["run", "plan", "show"])
def test_w82_the_store_is_a_file(bench: Bench, command: str) -> None:
    home = bench.write("kept", "my notes")
    thing = "0a1b" if command == "show" else bench.recipe()
    bench.refused(command, thing, said=(str(home), "a file", "--home"), home=home)
    assert home.read_text("utf-8") == "my notes"


# --------------------------------------------------------------------------------- a full disk


class Disk:
    """A disk that is full from the nth write on."""

    def __init__(self, after: int) -> None:
        self.after, self.count, self.sync = after, 0, os.fsync

    def fsync(self, handle: int) -> None:
        self.count += 1
        if self.count > self.after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.sync(handle)


def test_w83_the_disk_is_full_at_any_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = bench.recipe(steps=SMALLER, guard=LOOSE)
    for writes in range(60):
        home = bench.folder / f"full-after-{writes}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", Disk(writes).fsync)
            code, err = bench.call("run", recipe, home=home)
        assert not drafts(home)
        if code == 0:
            break
        assert code == 1, err
        message = the_message(err)
        for word in (str(home), "disk is full", "bytes are free", "goes on"):
            assert word in message, message
        for folder in home.glob("store/*"):  # present means complete
            assert {path.name for path in artifact(bench.home).iterdir()} == {
                path.name for path in folder.iterdir()
            }
    assert 8 < writes < 60  # it was full at each of them once
    assert bench.call("run", recipe, home=bench.folder / f"full-after-{writes - 3}")[0] == 0


def test_w83_safetensors_says_it_in_its_own_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    module = importlib.import_module("attar.models.save")  # the package's name is the function's
    monkeypatch.setattr(module, "save_torch_state_dict", fail)
    home = bench.folder / "small"
    said = (str(home), "disk is full", "bytes are free", "goes on")
    bench.refused("run", bench.recipe(), said=said, code=1, home=home)


# --------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 80 GB")]
)
def test_w84_memory_runs_out_inside_a_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from attar.techniques.quantize.rtn import Rtn

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Rtn, "apply", fail)
    recipe = bench.recipe(steps=[{"quantize/rtn": {"id": "wide"}}])
    said = ("'wide' (quantize/rtn)", "memory", "MB", "batch", "length")
    bench.refused("run", recipe, said=said, code=1)


def test_w84_memory_runs_out_in_measuring(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 80 GB")

    monkeypatch.setattr("attar.engine.measuring.judge", fail)
    said = ("measuring 'original'", "memory", "MB", "measures.batch")
    home = bench.folder / "kept"
    bench.refused("run", bench.recipe(), said=said, code=1, home=home)


# ------------------------------------------------------------------------------- names and keys


@pytest.mark.parametrize("command", ["show", "report", "diff"])
def test_w85_a_run_that_is_not_there(bench: Bench, command: str) -> None:
    words = ("sond", "sound") if command == "diff" else ("sond",)
    bench.refused(command, *words, said=("'sond'", "did you mean 'sound'", str(bench.home)))


def test_w85_a_key_that_is_not_there(bench: Bench) -> None:
    key = artifact(bench.home).name
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    bench.refused("show", wrong, said=(wrong, f"did you mean {key!r}", str(bench.home)))


def test_w86_a_beginning_of_several_keys(bench: Bench, copied: Path) -> None:
    key = artifact(copied).name
    other = key[:6] + key[6:][::-1]
    shutil.copytree(copied / "store" / key, copied / "store" / other)
    said = (key[:6], key, other, "Write more")
    bench.refused("show", key[:6], said=said, home=copied)


# -------------------------------------------------------------------------- a store that decayed


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 0x40
    path.write_bytes(whole)


DAMAGE = {
    "cut": ("model.safetensors", cut),
    "gone": ("model.safetensors", Path.unlink),
    "config": ("config.json", lambda path: path.write_text("{")),
    "step": ("step.json", Path.unlink),
    "report": ("report.json", cut),
    "flipped": ("model.safetensors", flipped),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_w87_an_artifact_that_was_changed(bench: Bench, copied: Path, damage: str) -> None:
    folder = artifact(copied)
    name, change = DAMAGE[damage]
    change(folder / name)
    steps = [*SMALLER, {"adapt/full": {"scope": "norm", "steps": 1, "length": 16}}]
    recipe = bench.recipe(steps=steps, guard=LOOSE)
    shutil.rmtree(copied / "measures")
    said = (str(folder), name, "Remove the folder")
    words = ("show", folder.name) if damage == "step" else ("run", recipe)
    bench.refused(*words, said=said, code=1, home=copied)


@pytest.mark.parametrize("command", ["run", "plan", "show"])
def test_w88_the_store_of_a_newer_attar(bench: Bench, copied: Path, command: str) -> None:
    (copied / "FORMAT").write_text(f"{FORMAT + 1}\n")
    said = (str(copied), f"format {FORMAT + 1}", f"format {FORMAT}", "pgrade", "--home")
    thing = artifact(copied).name if command == "show" else bench.recipe()
    bench.refused(command, thing, said=said, home=copied)


# ------------------------------------------------------------------------------------ the guard


def test_w89_a_stage_outside_its_bound(bench: Bench) -> None:
    recipe = bench.recipe(steps=SMALLER, guard={"perplexity": 0.01})
    said = ("stage 'rounded' is outside its bound", "perplexity", "interval", "0.01", "marked")
    bench.refused("run", recipe, said=said, code=3, grows=True)
    report = json.loads((bench.home / "runs" / "small" / "report.json").read_text("utf-8"))
    assert report["stages"][-1]["verdict"]["status"] == "outside"
