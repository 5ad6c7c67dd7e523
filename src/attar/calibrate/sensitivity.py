"""What the answers lose when one part of a model is changed and all else stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor
from torch.nn import functional

from attar.calibrate.refusals import insist_finite
from attar.calibrate.table import Part
from attar.core.context import Context
from attar.data.batches import IGNORED, Batch
from attar.layers import all_blocks, swap
from attar.models.blocks import after, recorded
from attar.models.model import Model, inference
from attar.models.pooling import vectors
from attar.ops.divergence import forward_kl

EVERY = 4  # of a sequence's positions, one in so many is judged: the head is the costly part


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
        original, total = all_answers(model, batches, ctx)
        states = [_states(model, batch, ctx) for batch in batches]
        for part in parts:
            for label, change in changes.items():
                with _changed(model, part, change):
                    lost = [
                        _divergence(model, batch, part.block, own, reached, ctx) * len(own)
                        for batch, own, reached in zip(batches, original, states, strict=True)
                    ]
                found[label].append(sum(lost) / total)
                bar.advance(1, f"block {part.block}, {part.name}, {label}")
    return found


def all_answers(model: Model, batches: Sequence[Batch], ctx: Context) -> tuple[list[Tensor], int]:
    """The answers of each batch, and how many there are; raises UserError where one is NaN."""
    found = [answers(model, batch, ctx) for batch in batches]
    for own in found:
        insist_finite({"the answers": own})
    return found, sum(len(own) for own in found)


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
