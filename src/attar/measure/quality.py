"""Judging a model on held-out data, alone and against a reference.

The logits of a whole batch never exist at once: hidden states go through the head a few hundred
positions at a time. Log-probabilities are float32, their sums float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from attar.core.context import Progress, Silent
from attar.data.batches import IGNORED, PACKED, Batch
from attar.measure.items import Items
from attar.measure.matching import of_both_towers, texts_of
from attar.measure.probe import fitting, random_batch
from attar.measure.statistics import Comparison, compare, figures
from attar.models.model import Model, inference
from attar.models.pooling import vectors

__all__ = ["Comparison", "Items", "States", "compare", "figures", "judge", "reference_states"]

T = TypeVar("T")
_CHUNK = 512  # positions whose logits exist at a time
_LOGITS = 1 << 25  # and at most so many logits: 128 MB in float32
_CACHED = 1 << 20  # logits gone over at once on a CPU: they stay in its cache


@dataclass
class States:
    """What a reference computed on some batches, to be held against any number of models.

    For language models the hidden states at the judged positions, one tensor a batch, as the
    head reads them; `head` makes logits of them. For classifiers the logits themselves; for
    two towers the vectors of images, scaled, and of texts, [2, batch, width].
    """

    head: Callable[[Tensor], Tensor]
    batches: list[Tensor]


@dataclass
class _Sums:
    """Totals for each position (or text), on the way to totals for each sequence."""

    nll: Tensor
    kl: Tensor | None
    agreed: Tensor | None


def judge(
    model: Model,
    batches: Sequence[Batch],
    reference: Model | States | None = None,
    precision: str = "float32",
    progress: Progress | None = None,
) -> Items:
    """Judge a model where it is, against a reference if there is one.

    `reference` is a model, or what `reference_states` kept of it on the same batches with the
    same precision. Raises ValueError when it was kept on others.
    """
    if isinstance(reference, States) and len(reference.batches) != len(batches):
        raise ValueError(f"{len(reference.batches)} kept batches do not fit {len(batches)}")
    if model.task == "contrastive":
        return _matched(model, batches, reference, precision, progress)
    judged = Items(model.task)
    with (
        inference(model.device, precision),
        (progress or Silent()).bar("judging", sum(batch.size for batch in batches)) as bar,
    ):
        for number, batch in enumerate(batches):
            part = _judge_batch(model, batch.to(model.device), _other(reference, number, batch))
            _extend(judged, part)
            bar.advance(batch.size, _so_far(judged))
    return judged


def reference_states(
    reference: Model,
    batches: Sequence[Batch],
    precision: str = "float32",
    progress: Progress | None = None,
) -> States:
    """Run a reference once, so that judging many models against it needs only its head.

    In bf16 the states are kept in bf16, which is what autocast would make of them at the head:
    the logits are the same ones. It keeps the model alive, for the head.
    """
    kept: list[Tensor] = []
    with (
        inference(reference.device, precision),
        (progress or Silent()).bar("reference", sum(batch.size for batch in batches)) as bar,
    ):
        for batch in batches:
            kept.append(_states(reference, batch.to(reference.device)))
            if precision == "bf16" and reference.task in PACKED:
                kept[-1] = kept[-1].to(torch.bfloat16)
            bar.advance(batch.size)
    return States(_head(reference), kept)


def computes_nan(model: Model, precision: str = "float32") -> bool:
    """Whether the model computes NaN or infinite numbers, of a few tokens drawn at random."""
    batch = random_batch(model, 1, fitting(model, 32))
    labels = batch.input_ids if model.task in PACKED else torch.tensor([IGNORED])
    return judge(model, [replace(batch, labels=labels)], precision=precision).nan


@dataclass
class _Other:
    """The reference on one batch."""

    head: Callable[[Tensor], Tensor]
    states: Tensor


def _other(reference: Model | States | None, number: int, batch: Batch) -> _Other | None:
    if reference is None:
        return None
    if isinstance(reference, States):
        return _Other(reference.head, reference.batches[number])
    return _Other(_head(reference), _states(reference, batch.to(reference.device)))


def _head(model: Model) -> Callable[[Tensor], Tensor]:
    return model.head if model.task in PACKED else _as_is


def _as_is(states: Tensor) -> Tensor:
    return states


def _states(model: Model, batch: Batch) -> Tensor:
    """Hidden states at the judged positions, [judged, hidden]; logits, or vectors, of texts."""
    if model.task == "classification":
        return model.logits(batch)
    if model.task == "embedding":
        return vectors(model, batch)
    if model.task == "contrastive":
        return of_both_towers(model, batch)
    hidden = model.hidden(batch)
    if model.task == "causal-lm":
        hidden = hidden[:, :-1]
    return hidden[_labels(model, batch) != IGNORED]


def _labels(model: Model, batch: Batch) -> Tensor:
    """What each state is judged by: for causal language models, the next token."""
    if model.task != "causal-lm":
        return batch.labels
    # A token that only padding precedes is a first token, and is not judged.
    return batch.labels[:, 1:].masked_fill(batch.attention_mask[:, :-1] == 0, IGNORED)


def _judge_batch(model: Model, batch: Batch, other: _Other | None) -> Items:
    states, labels = _states(model, batch), _labels(model, batch)
    if model.task == "classification":
        return _classified(states, labels, other)
    if model.task == "embedding":
        return _embedded(states, other)
    judged = labels != IGNORED
    sums = _over_chunks(model.head, states, labels[judged], other)
    rows = judged.nonzero()[:, 0]

    def by_row(values: Tensor) -> list[float]:
        total = torch.zeros(batch.size, dtype=torch.float64, device=values.device)
        return total.index_add_(0, rows, values.double()).tolist()

    return Items(
        task=model.task,
        nll=by_row(sums.nll),
        tokens=judged.sum(1).tolist(),
        kl=None if sums.kl is None else by_row(sums.kl),
        agreed=None if sums.agreed is None else [int(count) for count in by_row(sums.agreed)],
        nan=not _finite(sums),
    )


def _classified(logits: Tensor, labels: Tensor, other: _Other | None) -> Items:
    sums = _over_rows(logits, labels, None if other is None else other.states.to(logits.device))
    return Items(
        task="classification",
        nll=sums.nll.double().tolist(),
        tokens=(labels != IGNORED).int().tolist(),
        kl=None if sums.kl is None else sums.kl.double().tolist(),
        agreed=None if sums.agreed is None else sums.agreed.int().tolist(),
        predictions=logits.argmax(-1).tolist(),
        targets=labels.tolist(),
        nan=not (_finite(sums) and bool(logits.isfinite().all())),
    )


def _matched(
    model: Model,
    batches: Sequence[Batch],
    reference: Model | States | None,
    precision: str,
    progress: Progress | None,
) -> Items:
    """Each image is held against the texts of all batches, each text once, as its classes."""
    if isinstance(reference, Model):
        reference = reference_states(reference, batches, precision, progress)
    texts = texts_of(batches)
    own = texts.choices(reference_states(model, batches, precision, progress).batches)
    other = None if reference is None else _Other(_as_is, texts.choices(reference.batches))
    return replace(_classified(own, texts.labels.to(own.device), other), task=model.task)


def _embedded(own: Tensor, other: _Other | None) -> Items:
    cosine = None
    if other is not None and other.states.shape == own.shape:
        there = other.states.to(own.device).float()
        cosine = functional.cosine_similarity(own.float(), there).double().tolist()
    none = [0] * len(own)
    nan = not bool(own.isfinite().all())
    return Items("embedding", [0.0] * len(own), none, cosine=cosine, nan=nan)


def _over_chunks(
    head: Callable[[Tensor], Tensor], states: Tensor, labels: Tensor, other: _Other | None
) -> _Sums:
    """Totals for each position, their logits in existence only chunk by chunk."""
    found: list[_Sums] = []
    start, size = 0, 16  # the first chunk is small: only its logits say how large they are
    while start < len(labels) or not found:
        part = slice(start, start + size)
        logits = head(states[part])
        theirs = None
        if other is not None:
            theirs = other.head(other.states[part]).to(logits.device)
        found.append(_over_rows(logits, labels[part], theirs))
        start += size
        size = max(1, min(_CHUNK, _LOGITS // logits.shape[-1]))
    kls = [sums.kl for sums in found if sums.kl is not None]
    agreed = [sums.agreed for sums in found if sums.agreed is not None]
    return _Sums(
        torch.cat([sums.nll for sums in found]),
        torch.cat(kls) if kls else None,
        torch.cat(agreed) if agreed else None,
    )


def _over_rows(logits: Tensor, labels: Tensor, theirs: Tensor | None) -> _Sums:
    """What each row of logits is worth, in float32 whatever they are held in."""
    if theirs is not None and theirs.shape != logits.shape:
        theirs = None  # another vocabulary, or other classes: nothing to hold it against
    rows = max(1, _CACHED // logits.shape[-1]) if logits.device.type == "cpu" else _CHUNK
    nll = torch.empty(len(logits), device=logits.device)
    kl, agreed = torch.empty_like(nll), torch.empty_like(nll)
    with torch.autocast(logits.device.type, enabled=False):
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            own = logits[part].float().log_softmax(-1)
            known = labels[part] != IGNORED
            picked = own.gather(-1, labels[part].clamp_min(0).unsqueeze(-1)).squeeze(-1)
            nll[part] = -picked.masked_fill(~known, 0.0)
            if theirs is not None:
                base = theirs[part].float().log_softmax(-1)
                agreed[part] = (own.argmax(-1) == base.argmax(-1)).float()
                kl[part] = torch.linalg.vecdot(base.exp(), base.sub_(own))
    return _Sums(nll, None if theirs is None else kl, None if theirs is None else agreed)


def _finite(sums: _Sums) -> bool:
    own = bool(sums.nll.isfinite().all())
    return own and (sums.kl is None or bool(sums.kl.isfinite().all()))


def _extend(items: Items, part: Items) -> None:
    """Add a batch's numbers to those before it."""
    first = not items.tokens
    items.nll += part.nll
    items.tokens += part.tokens
    items.predictions += part.predictions
    items.targets += part.targets
    items.nan |= part.nan
    items.kl = _joined(items.kl, part.kl, first)
    items.agreed = _joined(items.agreed, part.agreed, first)
    items.cosine = _joined(items.cosine, part.cosine, first)


def _joined(before: list[T] | None, more: list[T] | None, first: bool) -> list[T] | None:
    if first:
        return more
    return None if before is None or more is None else before + more


def _so_far(items: Items) -> str:
    if items.task not in PACKED:
        return ""
    nats = sum(items.nll) / max(sum(items.tokens), 1)
    return f"perplexity {math.exp(min(nats, 700.0)):.4g}"
