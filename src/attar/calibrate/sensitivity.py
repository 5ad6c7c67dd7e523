"""What the answers lose when one part of a model is changed and all else stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from attar.core.context import Context
from attar.core.scope import ModuleFact, Scope
from attar.data.batches import IGNORED, Batch
from attar.layers import all_blocks, swap
from attar.models.blocks import after, recorded
from attar.models.model import Model, inference
from attar.models.pooling import vectors
from attar.ops.divergence import forward_kl

EVERY = 4  # of a sequence's positions, one in so many is judged: the head is the costly part
_COLUMNS = ("block", "role", "weights")


@dataclass(frozen=True)
class Part:
    """Modules that are changed together: those of one role in one block."""

    block: int
    role: str
    names: tuple[str, ...]
    weights: int


def parts_of(model: Model, scope: Scope) -> list[Part]:
    """The linears in scope, by block and role; those outside the blocks are left out."""
    return parts_among(model.facts(), model.linears(scope))


def parts_among(modules: Sequence[ModuleFact], chosen: Collection[str]) -> list[Part]:
    """The same of a model that is not loaded: its modules, and the names of those in scope."""
    chosen = set(chosen)
    found: dict[tuple[int, str], list[str]] = {}
    sizes: dict[str, int] = {}
    for fact in modules:
        if fact.name in chosen and fact.block is not None:
            found.setdefault((fact.block, fact.role), []).append(fact.name)
            sizes[fact.name] = fact.shape[0] * fact.shape[1]
    return [
        Part(block, role, tuple(names), sum(sizes[name] for name in names))
        for (block, role), names in found.items()
    ]


def label_of(kind: str, settings: Mapping[str, Any]) -> str:
    """What a technique with some settings is called in a table of divergences."""
    return " ".join([kind, *(f"{name}={value}" for name, value in settings.items())])


def to_table(parts: Sequence[Part], found: Mapping[str, Sequence[float]]) -> str:
    """Divergences by label as tab-separated text, a line for each part."""
    lines = ["\t".join([*_COLUMNS, *found])]
    for index, part in enumerate(parts):
        values = [f"{column[index]:.6g}" for column in found.values()]
        lines.append("\t".join([str(part.block), part.role, str(part.weights), *values]))
    return "\n".join(lines) + "\n"


def from_table(text: str, parts: Sequence[Part], labels: Sequence[str]) -> dict[str, list[float]]:
    """The divergences of these labels that `to_table` wrote of these parts.

    Raises ValueError where it is no such table, was measured on other parts, or lacks a label.
    """
    header, *rows = [line.split("\t") for line in text.splitlines()] or [[]]
    if tuple(header[: len(_COLUMNS)]) != _COLUMNS or any(len(row) != len(header) for row in rows):
        raise ValueError("is no table that `attar sensitivity` wrote")
    if [row[: len(_COLUMNS)] for row in rows] != [
        [str(part.block), part.role, str(part.weights)] for part in parts
    ]:
        raise ValueError("was measured on a model of other blocks or sizes than this one's")
    missing = [label for label in labels if label not in header]
    if missing:
        raise ValueError(
            f"has no column {missing[0]!r}. Measure it too: `attar sensitivity` takes "
            "`--try` with a step as a recipe writes it"
        )
    return {label: [float(row[header.index(label)]) for row in rows] for label in labels}


def divergences(
    model: Model,
    batches: Sequence[Batch],
    parts: Sequence[Part],
    changes: Mapping[str, Callable[[list[str]], object]],
    ctx: Context,
) -> dict[str, list[float]]:
    """For each change, and each part it is made to alone, KL(original || changed) in nats.

    Of a model of vectors it is 1 - cosine.

    Averaged over one position in four of a language model, over texts of a classifier. What lies
    before the part's block is computed once. The model is left as it was.
    """
    found: dict[str, list[float]] = {label: [] for label in changes}
    with ctx.progress.bar("sensitivity", len(parts) * len(changes)) as bar:
        original = [answers(model, batch, ctx) for batch in batches]
        states = [_states(model, batch, ctx) for batch in batches]
        for part in parts:
            for label, change in changes.items():
                with _changed(model, part, change):
                    lost = [
                        _divergence(model, batch, part.block, own, reached, ctx)
                        for batch, own, reached in zip(batches, original, states, strict=True)
                    ]
                found[label].append(sum(lost) / len(lost))
                bar.advance(1, f"block {part.block}, {part.role}, {label}")
    return found


def answers(model: Model, batch: Batch, ctx: Context) -> Tensor:
    """Logits [n, classes]: of texts; of what is masked; of one position in so many.

    Of an encoder its vectors, [n, width].
    """
    batch = batch.to(model.device)
    with inference(model.device, ctx.precision), all_blocks(model.module):
        if model.task == "classification":
            return model.logits(batch)
        if model.task == "embedding":
            return vectors(model, batch)
        hidden = model.hidden(batch)
        if model.task == "masked-lm":
            return model.head(hidden[batch.labels != IGNORED])
        return model.head(hidden[:, EVERY - 1 :: EVERY].flatten(0, 1))


def moved(model: Model, answers: Tensor, original: Tensor) -> float:
    """How far answers are from the original's: KL in nats, of vectors 1 - cosine."""
    if model.task == "embedding":
        return float((1 - functional.cosine_similarity(answers, original)).mean())
    return float(forward_kl(answers, original))


def _states(model: Model, batch: Batch, ctx: Context) -> list[Tensor]:
    with inference(model.device, ctx.precision), recorded(model) as states:
        model.hidden(batch.to(model.device))
        return list(states)


def _divergence(
    model: Model, batch: Batch, block: int, own: Tensor, states: list[Tensor], ctx: Context
) -> float:
    reached = after(model, block - 1, states[block]) if block else nullcontext()
    with reached:
        return moved(model, answers(model, batch, ctx), own)


@contextmanager
def _changed(model: Model, part: Part, change: Callable[[list[str]], object]) -> Iterator[None]:
    """A changed copy of the part's block in its place, for as long as that lasts."""
    name = f"{model.blocks_name}.{part.block}"
    block = model.module.get_submodule(name)
    swap(model.module, name, copy.deepcopy(block))
    try:
        change(list(part.names))
        yield
    finally:
        swap(model.module, name, block)
