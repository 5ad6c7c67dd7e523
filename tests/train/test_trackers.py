"""Trackers write below the run's folder, and none to the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attar.core.context import Context
from attar.errors import UserError
from attar.train import trackers


class Accelerator:
    """Keeps what the trackers would be opened with."""

    def __init__(self, main: bool = True) -> None:
        self.is_main_process, self.given = main, {}

    def init_trackers(self, name: str, config: Any, init_kwargs: dict[str, Any]) -> None:
        self.given = {"name": name, "config": config, **init_kwargs}


def started(folder: Path, *names: str, main: bool = True) -> dict[str, Any]:
    accelerator = Accelerator(main)
    ctx = Context("causal-lm", lambda _: None, lambda _: None, trackers=names, logs=folder)
    config = {"steps": 3, "epochs": None, "betas": (0.9, 0.95)}
    trackers.start(accelerator, ctx, config)
    return accelerator.given


def test_wandb_is_offline(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    given = started(folder, "wandb")
    assert given["wandb"] == {"dir": str(folder), "mode": "offline"}
    assert given["config"] == {"steps": 3, "betas": "(0.9, 0.95)"}
    assert folder.is_dir()


def test_mlflow_keeps_its_store_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris: list[str] = []
    fake = SimpleNamespace(set_tracking_uri=uris.append)
    monkeypatch.setattr(trackers, "import_module", {"mlflow": fake}.__getitem__)
    given = started(tmp_path, "mlflow", "tensorboard")
    assert uris == [f"sqlite:///{tmp_path}/mlflow.db"]
    assert given["mlflow"] == {"logging_dir": str(tmp_path / "mlflow")}
    assert "wandb" not in given


def test_one_process_of_several_opens_them(tmp_path: Path) -> None:
    assert started(tmp_path / "logs", "wandb", main=False) == {}
    assert not (tmp_path / "logs").exists()


def test_no_folder_no_tracking() -> None:
    pytest.importorskip("tensorboard")
    ctx = Context("causal-lm", lambda _: None, lambda _: None, trackers=("tensorboard",))
    with pytest.raises(UserError, match="tensorboard would have nowhere to write"):
        trackers.check(ctx)


def test_every_missing_tracker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    found = [str(error) for error in trackers.trouble(("wandb", "tensorbord", "mlflow"))]
    assert "attar[wandb]" in found[0]
    assert "'tensorbord'" in found[1]
    assert "attar[mlflow]" in found[2]
