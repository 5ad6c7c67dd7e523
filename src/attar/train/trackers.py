"""Where a training is followed: TensorBoard, Weights & Biases (offline), MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attar.errors import MissingPackage, UserError

TRACKERS = ("tensorboard", "wandb", "mlflow")


def check(names: Sequence[str]) -> None:
    """Raise MissingPackage for a tracker whose package is not there."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"no tracker is called {name!r}; there are {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise MissingPackage(f"tracking with {name}", f"pip install 'attar[{name}]'")


def start(accelerator: Any, names: Sequence[str], folder: Path, config: dict[str, Any]) -> None:
    """Open the trackers, all of which write below `folder` and none to the network."""
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if "mlflow" in names and accelerator.is_main_process:
        mlflow = import_module("mlflow")
        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in config.items()
        if value is not None
    }
    own = {
        "wandb": {"mode": "offline", "dir": str(folder)},
        "mlflow": {"logging_dir": str(folder.absolute() / "mlflow")},
    }
    given = {name: settings for name, settings in own.items() if name in names}
    accelerator.init_trackers("attar", config=plain, init_kwargs=given)
