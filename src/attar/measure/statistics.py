"""From the numbers of each sequence to figures with 95 % intervals, and to a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attar.core.report import Figure
from attar.core.step import Task
from attar.data.batches import IGNORED
from attar.measure.items import Items
from attar.ops.bootstrap import Interval, Sums, interval, macro_f1, paired

_WHAT = {"classification": "texts", "contrastive": "images"}  # what is one judged item
_SEED = 0  # every interval is of the same draws, so that stages compare


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same sequences, with paired 95 % intervals.

    `perplexity_ratio`: how many times the reference's; `accuracy_drop`: points lost, of 100.
    """

    perplexity_ratio: Interval | None = None
    accuracy_drop: Interval | None = None


def figures(own: Items, reference: Items | None, task: Task) -> dict[str, Figure]:
    """The figures of the report: perplexity or accuracy, and what the reference says of them."""
    found = _classified(own) if task in _WHAT else _perplexity(own, task)
    if own.kl is not None and own.agreed is not None:
        what = _WHAT.get(task, "tokens")
        unit = what.removesuffix("s")
        note = f"against the reference, {_count(sum(own.compared), what)}"
        kl = interval(own.kl, own.compared, _SEED)
        found["kl"] = _figure(kl, f"nats/{unit}", f"KL(reference || model), {note}")
        agreement = interval(own.agreed, own.compared, _SEED)
        found["agreement"] = _percent(agreement, f"same likeliest {_of(task)}, {note}")
    if own.cosine is not None:
        note = f"to the reference's vectors, {_count(len(own.cosine), 'texts')}"
        found["cosine"] = _figure(interval(own.cosine, [1] * len(own.cosine), _SEED), "", note)
    if reference is not None and "perplexity" in found and own.tokens != reference.tokens:
        found["perplexity"].note += "; other tokens than the reference's: the two do not compare"
    return found


def compare(own: Items, reference: Items) -> Comparison:
    """Hold a model against a reference that was judged on the same sequences.

    Perplexities of other tokens do not compare, and nothing is said of them. Raises ValueError
    where the sequences are not the same ones.
    """
    if own.task == "embedding":
        return Comparison()
    if own.task not in _WHAT:
        if len(own.tokens) == len(reference.tokens) and own.tokens != reference.tokens:
            return Comparison()
        nats = paired(Sums(own.nll, own.tokens), Sums(reference.nll, reference.tokens), _SEED)
        return Comparison(perplexity_ratio=_exp(nats))
    if own.targets != reference.targets:
        raise ValueError("the two models were judged on texts with other labels")
    if not any(own.tokens):
        return Comparison()
    drop = paired(Sums(_hits(reference), own.tokens), Sums(_hits(own), own.tokens), _SEED)
    return Comparison(accuracy_drop=_times(drop, 100.0))


def _perplexity(own: Items, task: Task) -> dict[str, Figure]:
    if not any(own.tokens):
        return {}
    note = _count(sum(own.tokens), "tokens") + f" of {len(own.tokens)} sequences"
    if task == "masked-lm":
        note = f"pseudo-perplexity of the masked tokens alone, {note}"
    return {"perplexity": _figure(_exp(interval(own.nll, own.tokens, _SEED)), "", note)}


def _classified(own: Items) -> dict[str, Figure]:
    if not any(own.tokens):
        return {}
    known = [number for number, target in enumerate(own.targets) if target != IGNORED]
    note = _count(len(known), _WHAT[own.task])
    accuracy = interval(_hits(own), own.tokens, _SEED)
    if own.task == "contrastive":
        note = f"the right one of the data's own texts, {note}"
        return {"accuracy": _percent(accuracy, note)}
    scores = macro_f1(
        [own.predictions[number] for number in known],
        [own.targets[number] for number in known],
        _SEED,
    )
    return {
        "accuracy": _percent(accuracy, note),
        "macro_f1": _percent(scores, f"mean of the classes' F1, {note}"),
    }


def _hits(items: Items) -> list[int]:
    pairs = zip(items.predictions, items.targets, strict=True)
    return [int(guess == target) for guess, target in pairs]


def _exp(nats: Interval) -> Interval:
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(end)) for end in (nats.value, nats.low, nats.high)))


def _times(found: Interval, factor: float) -> Interval:
    return Interval(found.value * factor, found.low * factor, found.high * factor)


def _percent(share: Interval, note: str) -> Figure:
    return _figure(_times(share, 100.0), "%", note)


def _figure(found: Interval, unit: str, note: str) -> Figure:
    return Figure(value=found.value, low=found.low, high=found.high, unit=unit, note=note)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}".replace(",", " ")


def _of(task: Task) -> str:
    return {"classification": "class", "contrastive": "text"}.get(task, "token")
