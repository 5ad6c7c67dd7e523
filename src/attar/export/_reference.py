"""The artifact itself in PyTorch, and the texts on which engines are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attar.data import load as load_data
from attar.data.batches import held_out
from attar.errors import AttarError
from attar.export.artifact import Artifact
from attar.models import Model
from attar.models.places import room_for
from attar.runtimes.runtime import Floats, Ids
from attar.runtimes.torch import TorchDecoder, TorchEncoder

ROWS, LENGTH = 4, 48
_TEXT = (
    "The harbour was quiet when the last boat came in, and the keeper counted the crates twice "
    "before he wrote their number down.",
    "A compressed model is worth what it does on the machine of the person who runs it: how long "
    "they wait, what it costs them, and whether the answers are still right.",
    "In 1869 the two lines met at 12:47 in the afternoon; 40 miles had been laid in a single week.",
    "She asked whether the bridge would hold. Nobody knew, so they measured it.",
)


@dataclass(frozen=True)
class Held:
    """Token ids to compare on, where they are from, and why not from the run's own data."""

    rows: list[list[int]]
    text: str
    lost: str | None = None

    @property
    def told(self) -> str:
        """Where they are from, in full."""
        why = f", for the run's held-out data is not to be had ({self.lost})" if self.lost else ""
        return self.text + why


class Reference:
    """The artifact itself in PyTorch, which engines are compared with on held-out text.

    Its rows are read and its answers computed when they are first asked for, once for all engines.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._held: Held | None = None
        self._answers: list[Floats] | None = None

    def held(self, model: Model) -> Held:
        """What engines are compared on."""
        if self._held is None:
            self._held = held_out_rows(self.artifact, model)
        return self._held

    def answers(self, model: Model) -> list[Floats]:
        """Of each row the log-probabilities of a decoder, or what an encoder puts out.

        Raises AttarError where they are no numbers.
        """
        if self._answers is None:
            run = TorchDecoder(model).logprobs if model.task == "causal-lm" else _one_by_one(model)
            found = [run(row) for row in self.held(model).rows]
            if not all(np.isfinite(one).all() for one in found):
                raise AttarError(
                    f"{self.artifact.name} itself computes NaN or infinite numbers, in PyTorch. "
                    "Nothing was published. Export an earlier stage, or make the model anew"
                )
            self._answers = found
        return self._answers


def _one_by_one(model: Model) -> Callable[[Sequence[int]], Floats]:
    encoder = TorchEncoder(model)
    return lambda row: encoder.run(*alone(row))


def alone(row: Sequence[int]) -> tuple[Ids, Ids]:
    """A batch of one text, and its mask."""
    ids = np.array([row], np.int64)
    return ids, np.ones_like(ids)


def held_out_rows(artifact: Artifact, model: Model) -> Held:
    """The run's held-out data, if it is there; else sentences."""
    longest = getattr(model.config, "max_position_embeddings", None) or LENGTH
    longest = room_for(model, min(LENGTH, longest))
    lost = None
    if artifact.report is not None:
        try:
            rows = _from_recipe(artifact, model, longest)
            if rows:
                return Held(rows, "the run's held-out data")
            lost = "there is none"
        except (AttarError, OSError, KeyError, ValueError) as error:  # moved or gone since
            lost = f"{type(error).__name__}: {error}".partition("\n")[0]
    rows = [model.tokenizer(text).input_ids[:longest] for text in _TEXT]
    return Held([row for row in rows if len(row) > 1], "a few sentences of Attar's own", lost)


def _from_recipe(artifact: Artifact, model: Model, longest: int) -> list[list[int]]:
    from attar.core.recipe_file import build

    if artifact.report is None:
        return []
    recipe = build(artifact.report.recipe)
    data = load_data(recipe.data[recipe.measures.data], model.task, recipe.measures.data)
    batches = held_out(
        data, model.tokenizer, model.task, longest, 1, ROWS, labels=model.labels or None
    )
    return [batch.input_ids[0].tolist() for batch in batches]
