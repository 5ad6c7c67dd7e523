"""Where a training is followed: TensorBoard, Weights & Biases (offline), MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from attar.core.context import Context
from attar.errors import MissingPackage, UserError

TRACKERS = ("tensorboard", "wandb", "mlflow")


def trouble(names: Sequence[str]) -> list[UserError]:
    """What keeps these trackers from working, each in an error of its own; none: nothing does."""
    found: list[UserError] = []
    for name in names:
        if name not in TRACKERS:
            text = f"no tracker is called {name!r}; there are {', '.join(TRACKERS)}"
            found.append(UserError(text))
        elif find_spec(name) is None:
            found.append(MissingPackage(f"tracking with {name}", f"pip install 'attar[{name}]'"))
    return found


def check(ctx: Context) -> None:
    """Raise UserError where a training cannot be followed as its Context asks."""
    for error in trouble(ctx.trackers):
        raise error
    if ctx.trackers and ctx.logs is None:
        raise UserError(
            f"{', '.join(ctx.trackers)} would have nowhere to write. Give the Context a folder: "
            "logs=Path(...)"
        )


def start(accelerator: Any, ctx: Context, config: dict[str, Any]) -> None:
    """Open the trackers, all of which write below `ctx.logs` and none to the network."""
    if not ctx.trackers or ctx.logs is None or not accelerator.is_main_process:
        return
    folder = ctx.logs.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if "mlflow" in ctx.trackers:
        import_module("mlflow").set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in config.items()
        if value is not None
    }
    own: dict[str, dict[str, Any]] = {
        "wandb": {"dir": str(folder), "mode": "offline"},
        "mlflow": {"logging_dir": str(folder / "mlflow")},
    }
    given = {name: settings for name, settings in own.items() if name in ctx.trackers}
    accelerator.init_trackers("attar", config=plain, init_kwargs=given)
