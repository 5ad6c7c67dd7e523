"""What an engine is to Attar: something that opens a folder, runs it, and reads its codes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from attar.core.step import TASKS, Task
from attar.errors import MissingPackage

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the likeliest at temperature 0, else at random.

    `top_k` and `top_p` keep the likeliest tokens only. The same seed draws the same tokens from
    the same engine on the same machine.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Token:
    """A token that was written, its natural log-probability, and the likeliest ones there.

    Log-probabilities are the model's own, before any temperature. `top` holds (id, logprob),
    the likeliest first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def of_next(logprobs: Floats, ids: Sequence[int]) -> Floats:
    """Of the log-probabilities after each token those of the token that follows: [len(ids) - 1]."""
    following = np.asarray(ids[1:], np.int64)
    return np.take_along_axis(logprobs[:-1], following[:, None], 1)[:, 0]


class _Opened(ABC):
    """A model that an engine has loaded; a context manager that closes it."""

    engine: ClassVar[str]

    def tokens(self, text: str) -> list[int] | None:
        """A text's tokens by the tokenizer inside the file, None where there is none inside.

        Special tokens are neither read in the text nor added to it.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds. Safe to call again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Decoder(_Opened):
    """An opened language model.

    `known` is how many of the likeliest tokens the engine gives log-probabilities for at a
    position, or None for all. `context` is how many tokens fit it, prompt and answer together.
    `slots` is how many threads may call `generate` at once.
    """

    known: int | None = None
    slots: int = 1
    context: int

    @abstractmethod
    def logprobs(self, ids: Sequence[int]) -> Floats:
        """Log-probabilities of the token after each position, [len(ids), vocabulary].

        As the engine computes them with the precision that it generates with. NaN where the
        engine does not say (see `known`).
        """

    def scores(self, ids: Sequence[int]) -> Floats:
        """The log-probability of each token but the first, given those before: [len(ids) - 1]."""
        return of_next(self.logprobs(ids), ids)

    @abstractmethod
    def generate(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        top: int = 0,
    ) -> Iterator[Token]:
        """Write up to `limit` tokens after the prompt, each as soon as it is there.

        Ends after a token of `stop`, which is the last one yielded; an engine whose file names an
        end of text may end there too. `top` asks for that many of
        the likeliest tokens with each. Closing the iterator stops the engine.
        """


class Encoder(_Opened):
    """An opened classifier, masked language model, or plain encoder.

    `pools`: of a plain encoder the engine tells a vector for each text, and no states.
    `context` is how many tokens a text may have, where the engine says so.
    """

    pools: ClassVar[bool] = False
    context: int | None = None

    @abstractmethod
    def run(self, ids: Ids, mask: Ids) -> Floats:
        """Outputs of the head, or last hidden states where there is none.

        ids, mask: [rows, length]. [rows, classes] of a classifier, [rows, length, vocabulary]
        of a masked language model, [rows, length, width] of a plain encoder, or [rows, width]
        where the engine `pools`. Rows may differ in length: no padding is computed that need not
        be, and its outputs are undefined.
        """


@dataclass(frozen=True)
class StoredCodes:
    """A table's codes as they lie in a file, in Attar's convention.

    codes: [rows, width], whole numbers; signed where the grid is symmetric, from 0 where it has
    a zero point or a minimum, the bits of their own format where levels are a table's.
    scales: float32 [rows, groups]; zeros (whole numbers) and minima (float32): the same shape,
    or None. group: inputs that share a scale; the last group of a row may be shorter.
    inputs, outputs: the least and the largest of the 256 numbers that what a linear is given, or
    puts out, is rounded to; None where that is not fixed beforehand.
    """

    codes: NDArray[np.integer]
    scales: Floats
    group: int
    zeros: NDArray[np.integer] | None = None
    minima: Floats | None = None
    inputs: Ends | None = None
    outputs: Ends | None = None

    def difference(self, other: StoredCodes) -> str | None:
        """What is not exactly equal, in words; None where all is.

        Groups may differ where a container repeats scales, and a minimum may stand for the
        product of the scale and a zero point. What this one puts out rounded, the other must:
        a file does not tell outputs from inputs of what comes next.
        """
        if self.codes.shape != other.codes.shape:
            return f"shapes {list(self.codes.shape)} and {list(other.codes.shape)}"
        differ = int((self.codes != other.codes).sum())
        if differ:
            return f"{differ} of {self.codes.size} codes"
        width = self.codes.shape[1]
        starts = sorted({*range(0, width, self.group), *range(0, width, other.group)})
        floats = self.minima is not None or other.minima is not None
        for name, ours, theirs in (
            ("scales", self.scales, other.scales),
            ("minima", self._minima(), other._minima())
            if floats
            else ("zero points", self.zeros, other.zeros),
        ):
            if ours is None and theirs is None:
                continue
            if ours is None or theirs is None:
                return f"{name}, which one has and the other has not"
            where = np.array(starts)
            differ = int((ours[:, where // self.group] != theirs[:, where // other.group]).sum())
            if differ:
                return f"{differ} of {ours.shape[0] * len(starts)} {name}"
        if self.inputs != other.inputs:
            return f"ends of the inputs' range, {self.inputs} and {other.inputs},"
        if self.outputs is not None and self.outputs != other.outputs:
            return f"ends of the outputs' range, {self.outputs} and {other.outputs},"
        return None

    def _minima(self) -> Floats | None:
        if self.minima is not None or self.zeros is None:
            return self.minima
        return -self.scales * self.zeros.astype(np.float32)


def ends_of(scale: float, zero: int) -> Ends:
    """The ends of the numbers that codes from 0 to 255 stand for; exact for 8-bit scales."""
    low, high = np.float32(-zero) * np.float32(scale), np.float32(255 - zero) * np.float32(scale)
    return float(low), float(high)


class Engine(ABC):
    """An engine: which folders it can run, and how. One file under `runtimes/`.

    `name` is the file's name with hyphens; `extra` the extra of Attar that installs it, None
    where Attar itself needs it; `modules` the Python modules that must be there; `tasks` what
    the models that it runs are for; `several`: whether it writes several answers at once.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None] = None
    modules: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[Task, ...]] = TASKS
    several: ClassVar[bool] = False

    def installed(self) -> bool:
        """Whether its packages are there; nothing is imported."""
        return all(find_spec(module) is not None for module in self.modules)

    def require(self) -> None:
        """Raise MissingPackage, with the command that installs them, where they are not."""
        if not self.installed():
            raise MissingPackage(
                f"running a model with {self.name}", f"pip install 'attar[{self.extra}]'"
            )

    @abstractmethod
    def holds(self, folder: Path) -> bool:
        """Whether this engine runs the files in the folder, by their names and configs alone."""

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None) -> Decoder | Encoder:
        """Load the model. Raises MissingPackage, or ModelError with what the engine said."""

    def serve(
        self, folder: Path, threads: int | None, slots: int, context: int
    ) -> Decoder | Encoder:
        """Load it to be asked from several threads, where the engine batches by itself.

        `slots` and `context` (tokens of each) are what is wanted; the decoder says what it has.
        """
        return self.open(folder, threads)

    @abstractmethod
    def read_back(self, folder: Path) -> Mapping[str, StoredCodes]:
        """The codes of every quantized linear and table, by its name in Attar.

        Read from the files with the format's own reader, never from what Attar remembers.
        """

    @abstractmethod
    def version(self) -> str:
        """The package and its version, for reports: `onnxruntime 1.32.0`."""
