"""What a target is: a container of some engine's, and the grids that it holds without loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, cast

from attar.core.grid import Grid
from attar.core.rooms import Room
from attar.errors import MissingPackage
from attar.layers import (
    DynamicLinear,
    QuantizedEmbedding,
    QuantizedLinear,
    RoundedLinear,
    StaticLinear,
    TiedHead,
)
from attar.models import Model
from attar.ops.rounding import Codes
from attar.runtimes import find as find_engine
from attar.runtimes.runtime import Engine
from attar.runtimes.torch import stored

__all__ = [
    "TARGETS",
    "Inputs",
    "Quantized",
    "Target",
    "codes_of",
    "find",
    "quantized",
    "stored",
    "tied",
]

TARGETS = Room(
    "export",
    "target",
    shared=(
        "artifact",
        "card",
        "everything",
        "export",
        "first_use",
        "licence",
        "prepare",
        "push",
        "record",
        "target",
        "verify",
    ),
)
Inputs = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Quantized:
    """A linear or table of embeddings on a grid: what is known before any weight loads.

    `inputs` says what it multiplies with: floats, or 8-bit numbers on scales that are found for
    each token (dynamic) or beforehand (static). `table`: embeddings, which a tied head may
    multiply with too. `outputs`: whether what it puts out is rounded as well.
    """

    name: str
    grid: Grid
    rows: int
    width: int
    table: bool = False
    inputs: Inputs = "float"
    outputs: bool = False

    @property
    def told(self) -> str:
        """The grid's name, and what is rounded beside the weights."""
        rounded = "" if self.inputs == "float" else f" with {self.inputs} 8-bit inputs"
        return self.grid.name + rounded + (" and outputs" if self.outputs else "")


def quantized(model: Model) -> Iterator[Quantized]:
    """All that is on a grid, in the model's order; of a skeleton on the meta device too."""
    for name, module in model.module.named_modules():
        if not isinstance(module, QuantizedLinear | QuantizedEmbedding):
            continue
        inputs: Inputs = "float"
        if isinstance(module, DynamicLinear | StaticLinear):
            inputs = "dynamic" if isinstance(module, DynamicLinear) else "static"
        table = isinstance(module, QuantizedEmbedding)
        outputs = isinstance(module, RoundedLinear)
        yield Quantized(name, module.grid, module.rows, module.width, table, inputs, outputs)


def codes_of(model: Model, name: str) -> Codes:
    """The codes, scales, and zero points or minima of one of them, as the artifact has them."""
    return cast("QuantizedLinear", model.module.get_submodule(name)).unpacked()


def tied(name: str, model: Model) -> bool:
    """Whether a head multiplies with this table."""
    heads = (module for module in model.module.modules() if isinstance(module, TiedHead))
    return any(head.table_name == name for head in heads)


class Target(ABC):
    """A container that artifacts are exported to. One file under `export/`.

    `name` is the file's name with hyphens, `extra` the extra of Attar that installs what it
    writes with, `modules` the Python modules that must be there, `engine` the name of the engine
    that reads it back and runs it, `others` those that run it too. `grids` names the grids that
    it can hold, for refusals.
    `timed`: whether these engines are where it will run, so that their speed here says something.

    A target never rounds: `export` has put what it cannot hold on a grid of `nearest` before, if
    the user allowed that; with `positive`, on scales that are not below zero.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    modules: ClassVar[tuple[str, ...]] = ()
    engine: ClassVar[str]
    others: ClassVar[tuple[str, ...]] = ()
    grids: ClassVar[tuple[str, ...]]
    positive: ClassVar[bool] = False
    timed: ClassVar[bool] = True

    def require(self) -> None:
        """Raise MissingPackage, with the command that installs what it writes with."""
        if any(find_spec(module) is None for module in self.modules):
            raise MissingPackage(f"exporting to {self.name}", f"pip install 'attar[{self.extra}]'")

    def engines(self, folder: Path) -> list[Engine]:
        """The engines here that run what it wrote into this folder, the one that reads it first."""
        named = (find_engine(name) for name in (self.engine, *self.others))
        return [engine for engine in named if engine.installed() and engine.holds(folder)]

    @abstractmethod
    def problems(self, model: Model) -> Sequence[str]:
        """Why this model cannot be written here, whatever its grids: family, task, its layers.

        `model` is the skeleton on the meta device: names, shapes and settings, no weights. Each
        says what, where, and what to do instead.
        """

    @abstractmethod
    def holds(self, item: Quantized, model: Model) -> bool:
        """Whether codes on this grid are held without loss; asked before any weight loads."""

    def floats(self, item: Quantized) -> bool:
        """Whether this is written as floats, exactly those that the artifact computes with.

        Nothing is lost but bytes; the codes themselves are not in the file.
        """
        return False

    def fits(self, item: Quantized, codes: Codes) -> bool:
        """Whether these very codes are, where `holds` cannot tell; asked once they are loaded."""
        return True

    @abstractmethod
    def nearest(self, item: Quantized) -> Grid | None:
        """The grid to round to where this one is not held and the user allows rounding.

        None where no grid is held there, whatever the user allows.
        """

    @abstractmethod
    def write(self, model: Model, folder: Path) -> Sequence[str] | None:
        """Write the model's files into an empty folder; what of the model is not there, if so.

        Codes, scales and zero points are copied. What is float stays in the container's own
        type: the model's dtype where the container has it. The tokenizer is written by
        `export` beside it.
        """


def find(name: str) -> Target:
    """The target of this name. Raises UserError, with the nearest name, when there is none."""
    return cast("Target", TARGETS.find(name))
