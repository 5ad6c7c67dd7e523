"""A training that was killed at any moment ends as an undisturbed one does, to the bit."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.errors import StoreError, UserError
from attar.models import blocks
from attar.train import checkpoint
from train.small import Weights, equal, folders, weights

Contexts = Callable[..., Context]
SETTINGS: dict[str, Any] = {
    "batch": 4,
    "length": 16,
    "steps": 8,
    "learning_rate": 0.02,  # so high that an early state is the best
    "evaluate_every": 2,
    "checkpoint_minutes": 0,
}


class Killed(BaseException):
    """Stands for the end of the process."""


def train(ctx: Context, kind: str = "adapt/full", **more: Any) -> Weights:
    cls = registry.find(kind)
    pair: tuple[str, Any] = ("bert", "masked-lm")
    model = tiny_models.tiny(*(pair if "masked-lm" in cls.tasks else ("llama", "causal-lm")))
    cls.model_validate({**SETTINGS, **more}).apply(model, ctx)
    return weights(model)


def killed_after(context: Contexts, scratch: Path, steps: int, **more: Any) -> None:
    """Train, and die in the step after so many."""
    ctx = context("masked-lm", scratch=scratch)
    taken = 0

    class Bar:
        def advance(self, amount: float = 1, text: str | None = None) -> None:
            nonlocal taken
            taken += 1
            if taken > steps:
                raise Killed

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    ctx.progress.bar = lambda label, total: Bar()  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(ctx, **more)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_resumed_is_bit_equal(
    context: Contexts, tmp_path: Path, steps: int, optimizer: str
) -> None:
    undisturbed = context("masked-lm")
    expected = train(undisturbed, optimizer=optimizer)
    killed_after(context, tmp_path, steps, optimizer=optimizer)
    resumed = context("masked-lm", scratch=tmp_path)
    assert equal(train(resumed, optimizer=optimizer), expected)
    assert resumed.curves == undisturbed.curves
    assert resumed.notes["best"] == undisturbed.notes["best"]
    assert resumed.notes["tokens"] == undisturbed.notes["tokens"]


BESIDE: list[tuple[str, dict[str, Any]]] = [
    ("prune/gradual", {"every": 3}),
    ("prune/movement", {"every": 3}),
    ("quantize/qat", {"grid": "int2-g32"}),
    ("adapt/lora", {"dropout": 0.2}),
    ("prompt/p-tuning", {"size": 3}),
    ("distill/online", {"back": 0.5}),
    ("distill/hidden", {"layers": "searched", "also": {"attention": {}}}),
    ("distill/logits", {"update": {"lora": {}}, "also": {"hidden": {}}}),
    ("distill/multi-teacher", {"teachers": ["a", "b"], "combined": "confidence"}),
    ("distill/continual", {"earlier": ["train"], "rehearsal": 0.4, "held_out": "dev"}),
    (
        "distill/routed",
        {"teachers": ["a", "b"], "data": ["train", "train"], "held_out": ["dev", "dev"]},
    ),
]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *BESIDE,
        ("adapt/full", {}),
        ("prompt/soft", {"size": 3}),
        ("distill/attention", {"relations": ["maps", "values"]}),
        ("distill/attention", {"relations": ["scores"], "layers": "uniform"}),
        ("distill/pretrain", {"next_sentence": 0}),
    ],
)
def test_what_is_computed_again_is_the_same(
    context: Contexts, kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, which must fall on the same numbers the second time."""
    expected = train(context("masked-lm"), kind, **settings)
    passes: list[bool] = []
    own = blocks.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(True)
        return own(*args, **kwargs)

    monkeypatch.setattr(blocks, "checkpoint", counted)
    assert equal(train(context("masked-lm"), kind, recompute=True, **settings), expected)
    assert len(passes) >= SETTINGS["steps"]


def test_a_prefix_is_not_computed_again(context: Contexts) -> None:
    with pytest.raises(UserError, match="recompute: a prefix of keys and values"):
        train(context("causal-lm"), "prompt/prefix", size=3, recompute=True)


@pytest.mark.parametrize("steps", [1, 5, 7])
@pytest.mark.parametrize(("kind", "settings"), BESIDE)
def test_what_is_trained_beside_the_weights_is_resumed_too(
    context: Contexts, tmp_path: Path, kind: str, settings: dict[str, Any], steps: int
) -> None:
    """Masks are chosen before steps 0, 3, 4 and 6: it dies between two of these, and after all."""
    undisturbed = context("masked-lm")
    expected = train(undisturbed, kind, **settings)
    killed_after(context, tmp_path, steps, kind=kind, **settings)
    resumed = context("masked-lm", scratch=tmp_path)
    assert equal(train(resumed, kind, **settings), expected)
    assert resumed.notes["best"] == undisturbed.notes["best"]


@pytest.mark.parametrize("damage", ["short", "bit", "state", "gone"])
def test_a_damaged_checkpoint_is_ignored(context: Contexts, tmp_path: Path, damage: str) -> None:
    expected = train(context("masked-lm"))
    killed_after(context, tmp_path, 5)
    (folder,) = (tmp_path / "train").glob("step-*")
    victim = folder / "moment-exp_avg.safetensors"
    if damage == "short":
        victim.write_bytes(victim.read_bytes()[:-9])
    elif damage == "bit":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(bytes(content))
    elif damage == "state":
        (folder / checkpoint.STATE).write_text("{")
    else:
        victim.unlink()
    assert equal(train(context("masked-lm", scratch=tmp_path)), expected)


def test_a_checkpoint_whose_best_state_is_lost_is_ignored(
    context: Contexts, tmp_path: Path
) -> None:
    expected = train(context("masked-lm"))
    killed_after(context, tmp_path, 5)
    for folder in (tmp_path / "train").glob("best-*"):
        shutil.rmtree(folder)
    assert equal(train(context("masked-lm", scratch=tmp_path)), expected)


def test_only_the_newest_is_kept_and_no_pickle(context: Contexts, tmp_path: Path) -> None:
    killed_after(context, tmp_path, 6)
    names = folders(tmp_path)
    assert [name for name in names if name.startswith("step-")] == ["step-00000006"]
    assert len([name for name in names if name.startswith("best-")]) == 1
    files = [path for path in (tmp_path / "train").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_keeps_the_last_checkpoint(
    context: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    expected = train(context("masked-lm"))
    own, written = checkpoint.save_file, 0

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal written
        written += 1
        own(tensors, path)
        if written > 4 * after:
            path.write_bytes(path.read_bytes()[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match="disk is full") as caught:
        train(context("masked-lm", scratch=tmp_path))
    monkeypatch.setattr(checkpoint, "save_file", own)
    assert ("is kept" in str(caught.value)) == bool(after)
    assert not [name for name in folders(tmp_path) if name.startswith("draft")]
    assert equal(train(context("masked-lm", scratch=tmp_path)), expected)


def test_another_plan_starts_anew(context: Contexts, tmp_path: Path) -> None:
    killed_after(context, tmp_path, 5)
    assert equal(
        train(context("masked-lm", scratch=tmp_path), steps=4), train(context("masked-lm"), steps=4)
    )


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_models
from train import small
from attar.core.context import Context
from attar.techniques.adapt.full import Full
from safetensors.torch import save_file
torch.set_num_threads(1)
data = {{"train": small.dataset(), "dev": small.dataset("dev", 12)}}
for name, scratch in (("killed", Path(sys.argv[1])), ("whole", None)):
    model = tiny_models.tiny("bert", "masked-lm")
    Full(**{settings!r}).apply(model, Context("masked-lm", data.__getitem__, None, scratch=scratch))
    own = {{name: p.detach().clone() for name, p in model.module.named_parameters()}}
    save_file(own, Path(sys.argv[1]) / (name + ".safetensors"))
"""


def test_killed_for_real(tmp_path: Path) -> None:
    """`kill -9` as soon as there are checkpoints, then to the end."""
    tests = str(Path(__file__).parent.parent)
    code = SCRIPT.format(tests=tests, settings={**SETTINGS, "steps": 30})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    process, deadline = subprocess.Popen(command, env=environment), time.monotonic() + 120
    while not list(tmp_path.glob("train/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "killed.safetensors").exists()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    killed, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("killed", "whole"))
    assert equal(killed, whole)
