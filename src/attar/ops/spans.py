"""How far predictions over two vocabularies are apart, where both spell the same spans of text.

A span is a stretch of text that both tokenizers spell in whole tokens. At its start either model
draws a first token; after the one that is there, the others of the span follow. So each model
spreads its probability over these events: the span as it is; its first token and then something
else; any other first token. They add up to one, and where both spell a span in one token they are
the plain distribution. Probabilities are [spans, tokens], in float32 or better.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = 1e-30  # of a probability under a logarithm


@dataclass(frozen=True)
class Spelled:
    """What one model makes of spans.

    first: [spans, vocabulary], probabilities of the first token; token: [spans], the one that is
    there; rest: [spans], log-probability of the span's other tokens, 0 where there are none;
    single: [spans], whether there are none.
    """

    first: Tensor
    token: Tensor
    rest: Tensor
    single: Tensor


@dataclass(frozen=True)
class Events:
    """What may begin at the start of each span, adding up to one.

    tokens: [spans, vocabulary], the first token where it is not the span; span: [spans].
    """

    tokens: Tensor
    span: Tensor


@dataclass(frozen=True)
class Common:
    """Which tokens of two vocabularies are the same text.

    own, theirs: [shared], ids pair by pair; own_others, their_others: the ids that are in no
    pair; own_of: [their vocabulary], the student's id of each of the teacher's tokens, or -1;
    theirs_of: [own vocabulary], the other way round.
    """

    own: Tensor
    theirs: Tensor
    own_others: Tensor
    their_others: Tensor
    own_of: Tensor
    theirs_of: Tensor

    @classmethod
    def of(cls, own: Tensor, theirs: Tensor, own_size: int, their_size: int) -> Common:
        """From the pairs and the sizes of the two vocabularies."""
        own_of = theirs.new_full((their_size,), -1).scatter(0, theirs, own)
        theirs_of = own.new_full((own_size,), -1).scatter(0, own, theirs)
        others = [(table < 0).nonzero().flatten() for table in (theirs_of, own_of)]
        return cls(own, theirs, others[0], others[1], own_of, theirs_of)

    def to(self, device: torch.device | str) -> Common:
        """The same on a device."""
        return Common(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def spelled(logs: Tensor, labels: Tensor, starts: Tensor, ends: Tensor) -> Spelled:
    """The first distributions of spans, and how likely each span goes on as it does.

    logs: [positions, vocabulary], log-probabilities; labels: [positions], the token that is there;
    starts, ends: [spans], positions from the first to after the last token of each.
    """
    picked = logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    sums = functional.pad(picked.double().cumsum(0), (1, 0))
    rest = (sums[ends] - sums[starts + 1]).to(logs.dtype)
    single = ends == starts + 1
    return Spelled(logs[starts].exp(), labels[starts], rest.masked_fill(single, 0.0), single)


def events(side: Spelled, also: Tensor | None = None) -> Events:
    """The probability of the span, and of every first token where it is not the span.

    also: [spans], a token of this vocabulary that is the whole span too, or -1.
    """
    at = side.token.unsqueeze(-1)
    first = side.first.gather(-1, at).squeeze(-1)
    span = first * side.rest.exp()
    tokens = side.first.scatter(-1, at, (first * -side.rest.expm1()).unsqueeze(-1))
    if also is not None:
        at = also.clamp_min(0).unsqueeze(-1)
        there = tokens.gather(-1, at).squeeze(-1)
        more = there * ((also >= 0) & (also != side.token))
        tokens = tokens.scatter(-1, at, (there - more).unsqueeze(-1))
        span = span + more
    return Events(tokens, span)


def sorted_distance(own: Tensor, theirs: Tensor) -> Tensor:
    """Sum of what sorted probabilities differ by, the shorter list filled up with zeros: [spans].

    own, theirs: [spans, tokens], of any two numbers of tokens. The Wasserstein-1 distance where
    any two tokens are equally far apart (Boizard et al. 2024, ULD, arXiv:2402.12030, section 3).
    """
    width = min(own.shape[-1], theirs.shape[-1])
    mine, yours = _highest(own, width), _highest(theirs, width)
    longer, highest = (own, mine) if own.shape[-1] > width else (theirs, yours)
    return (mine - yours).abs().sum(-1) + (longer.sum(-1) - highest.sum(-1))


def _highest(values: Tensor, count: int) -> Tensor:
    """The highest so many, in falling order: what lies below them need not be sorted."""
    if values.shape[-1] == count:
        return values.sort(-1, descending=True).values
    return values.topk(count, -1).values


def sorted_spans(own: Spelled, theirs: Spelled) -> Tensor:
    """`sorted_distance` between the events of both, whatever their tokens say: [spans]."""
    sides = [events(side) for side in (own, theirs)]
    return sorted_distance(
        *(torch.cat([side.tokens, side.span.unsqueeze(-1)], -1) for side in sides)
    )


@dataclass(frozen=True)
class Merged:
    """shared: [spans], KL in nats over the events that both have; others: [spans], see below."""

    shared: Tensor
    others: Tensor


def merged_spans(own: Spelled, theirs: Spelled, common: Common) -> Merged:
    """Shared tokens and the span compared directly, the others by their sorted mass.

    `shared` is KL(teacher || student) over the span, every token that both vocabularies have, and
    all the others taken together; telling those apart could only make it larger.
    The idea of merging and of two comparisons is that of TRL's GOLD trainer. A token that spells
    the whole span on one side counts there on the other too.
    """
    one = events(own, common.own_of[theirs.token].where(theirs.single, -1))
    other = events(theirs, common.theirs_of[own.token].where(own.single, -1))
    rests = [one.tokens[:, common.own_others], other.tokens[:, common.their_others]]
    pairs = [
        (one.tokens[:, common.own], other.tokens[:, common.theirs]),
        (one.span.unsqueeze(-1), other.span.unsqueeze(-1)),
    ]
    if common.own_others.numel():  # where it has none, no student can follow there
        pairs.append((rests[0].sum(-1, keepdim=True), rests[1].sum(-1, keepdim=True)))
    shared = torch.stack([_kl(mine, that) for mine, that in pairs]).sum(0)
    return Merged(shared, sorted_distance(*rests))


def _kl(own: Tensor, theirs: Tensor) -> Tensor:
    """What some events add to KL(teacher || student): [spans]."""
    ratio = theirs.clamp_min(_LEAST).log() - own.clamp_min(_LEAST).log()
    return (theirs * ratio).sum(-1)
