"""Distances over spans of two vocabularies against sums over events written out one by one."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from attar.ops.divergence import forward_kl
from attar.ops.piecewise import piecewise
from attar.ops.spans import (
    Common,
    Spelled,
    merged_spans,
    sorted_distance,
    sorted_spans,
    spelled,
)

OWN, THEIRS = 7, 11
PAIRS = [(0, 3), (2, 2), (5, 9)]  # tokens that are the same text: the student's, the teacher's
# Labels, and where spans start and end: one token and one, two and one, one and three, two and two.
OWN_LABELS, OWN_SPANS = [5, 1, 2, 0, 6, 4], [(0, 1), (1, 3), (3, 4), (4, 6)]
THEIR_LABELS, THEIR_SPANS = [9, 2, 10, 1, 4, 7, 8], [(0, 1), (1, 2), (2, 5), (5, 7)]


def draw(seed: int, positions: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(positions, classes, generator=generator, dtype=torch.float64)


def common(pairs: list[tuple[int, int]] = PAIRS) -> Common:
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return Common.of(table[:, 0], table[:, 1], OWN, THEIRS)


def side(logits: Tensor, labels: list[int], spans: list[tuple[int, int]]) -> Spelled:
    places = torch.tensor(spans)
    return spelled(logits.log_softmax(-1), torch.tensor(labels), places[:, 0], places[:, 1])


def events(
    logits: Tensor, labels: list[int], span: tuple[int, int], also: int | None
) -> tuple[dict[int, Tensor], Tensor]:
    """Probability of every first token but for the span, and of the span."""
    start, end = span
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    chances = powers / powers.sum(-1, keepdim=True)
    whole = torch.ones((), dtype=torch.float64)
    for place in range(start, end):
        whole = whole * chances[place, labels[place]]
    tokens = {token: chances[start, token] for token in range(chances.shape[1])}
    tokens[labels[start]] = tokens[labels[start]] - whole
    if also is not None and also != labels[start]:
        whole = whole + tokens[also]
        tokens[also] = torch.zeros((), dtype=torch.float64)
    return tokens, whole


def by_hand(own: Tensor, theirs: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """KL over what both have, and the sorted distance of the rest, of one span."""
    mine, yours = OWN_SPANS[number], THEIR_SPANS[number]
    to_theirs = dict(PAIRS)
    to_own = {b: a for a, b in PAIRS}
    own_also = to_own.get(THEIR_LABELS[yours[0]]) if yours[1] == yours[0] + 1 else None
    their_also = to_theirs.get(OWN_LABELS[mine[0]]) if mine[1] == mine[0] + 1 else None
    q, q_span = events(own, OWN_LABELS, mine, own_also)
    p, p_span = events(theirs, THEIR_LABELS, yours, their_also)
    rests = (
        [q[a] for a in range(OWN) if a not in to_theirs],
        [p[b] for b in range(THEIRS) if b not in to_own],
    )
    pairs = [(q[a], p[b]) for a, b in PAIRS] + [(q_span, p_span)]
    pairs.append((torch.stack(rests[0]).sum(), torch.stack(rests[1]).sum()))
    shared = torch.zeros((), dtype=torch.float64)
    for mass, wanted in pairs:
        if float(wanted.detach()) > 1e-14:
            shared = shared + wanted * (wanted.log() - mass.log())
    return shared, transported(*rests)


def transported(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """The largest against the largest, and so on, nothing where one has no more."""
    total = torch.zeros((), dtype=torch.float64)
    ranked = [
        sorted(values, key=lambda value: float(value.detach()), reverse=True)
        for values in (one, other)
    ]
    for rank in range(max(len(one), len(other))):
        pair = [values[rank] if rank < len(values) else 0.0 for values in ranked]
        total = total + abs(pair[0] - pair[1])
    return total


def test_merged_is_the_sum_over_events() -> None:
    own = draw(0, len(OWN_LABELS), OWN).requires_grad_()
    theirs = draw(1, len(THEIR_LABELS), THEIRS)
    found = merged_spans(
        side(own, OWN_LABELS, OWN_SPANS), side(theirs, THEIR_LABELS, THEIR_SPANS), common()
    )
    hand = [by_hand(own, theirs, number) for number in range(len(OWN_SPANS))]
    for number, (shared, others) in enumerate(hand):
        assert float(found.shared[number].detach()) == pytest.approx(
            float(shared.detach()), abs=1e-12
        )
        assert float(found.others[number].detach()) == pytest.approx(
            float(others.detach()), abs=1e-12
        )
    slope = torch.autograd.grad((found.shared + found.others).sum(), own)[0]
    wanted = torch.autograd.grad(sum(a + b for a, b in hand), own)[0]  # pyright: ignore[reportArgumentType]
    assert torch.allclose(slope, wanted, atol=1e-12)


@pytest.mark.parametrize("larger", ["teacher", "student"])
def test_sorted_is_the_sum_over_ranks(larger: str) -> None:
    """Whichever has more tokens: of the student's last ones the rank is not looked up."""
    few, many = draw(2, len(OWN_LABELS), OWN), draw(3, len(THEIR_LABELS), THEIRS)
    own = (few if larger == "teacher" else many).requires_grad_()
    parts = [(few, OWN_LABELS, OWN_SPANS), (many, THEIR_LABELS, THEIR_SPANS)]
    one, other = parts if larger == "teacher" else parts[::-1]
    found = sorted_spans(side(*one), side(*other))
    wanted: list[Tensor] = []
    for mine, yours in zip(one[2], other[2], strict=True):
        q, q_span = events(one[0], one[1], mine, None)
        p, p_span = events(other[0], other[1], yours, None)
        wanted.append(transported([*q.values(), q_span], [*p.values(), p_span]))
    assert torch.allclose(found, torch.stack(wanted), rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(each.sum(), own)[0] for each in (found, torch.stack(wanted))]
    assert slopes[0].abs().max() > 0.01
    assert torch.allclose(*slopes, rtol=0, atol=1e-12)


def test_every_side_adds_up_to_one() -> None:
    from attar.ops.spans import events as spread

    found = spread(side(draw(4, len(OWN_LABELS), OWN), OWN_LABELS, OWN_SPANS))
    assert torch.allclose(found.tokens.sum(-1) + found.span, torch.ones(4, dtype=torch.float64))
    assert float(found.tokens[0, OWN_LABELS[0]]) == 0.0  # a token that is the whole span


def test_of_one_vocabulary_it_is_the_plain_divergence() -> None:
    """KL of all tokens, where all are shared and every span is one token."""
    own, theirs = draw(5, 4, OWN), draw(6, 4, OWN)
    labels, spans = [1, 6, 3, 3], [(n, n + 1) for n in range(4)]
    all_of_them = torch.arange(OWN)
    every = Common.of(all_of_them, all_of_them, OWN, OWN)
    found = merged_spans(side(own, labels, spans), side(theirs, labels, spans), every)
    assert float(found.shared.mean()) == pytest.approx(float(forward_kl(own, theirs)), abs=1e-12)
    assert float(found.others.abs().sum()) == 0.0


def test_nothing_shared_is_compared_by_mass_alone() -> None:
    own, theirs = draw(7, 1, OWN), draw(8, 1, THEIRS)
    found = merged_spans(side(own, [3], [(0, 1)]), side(theirs, [4], [(0, 1)]), common([]))
    q, p = own.softmax(-1)[0, 3], theirs.softmax(-1)[0, 4]
    wanted = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert float(found.shared) == pytest.approx(float(wanted))


def test_unlikely_events_stay_finite() -> None:
    """A student that is all but sure of something else, in float32."""
    own = torch.zeros(1, OWN)
    own[0, 1] = 300.0
    own.requires_grad_()
    found = merged_spans(
        side(own, [5], [(0, 1)]), side(draw(9, 1, THEIRS).float(), [9], [(0, 1)]), common()
    )
    loss = (found.shared + found.others).sum()
    loss.backward()
    assert loss.isfinite()
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_distance_of_two_lists() -> None:
    own, theirs = torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([[0.4, 0.6]])
    assert float(sorted_distance(own, theirs)) == pytest.approx(0.1 + 0.2 + 0.1)


def test_pieces_add_up_to_the_whole_and_its_gradient() -> None:
    head = torch.nn.Linear(5, 9, dtype=torch.float64)
    hidden = draw(10, 12, 5).requires_grad_()
    pieces = [slice(0, 5), slice(5, 6), slice(6, 12)]

    def loss(some: Tensor, number: int) -> Tensor:
        value = head(some).logsumexp(-1).sum()
        return torch.stack([log(2) * value, value])

    weights = list(head.parameters())
    total, value = piecewise(loss, hidden, weights, pieces)
    whole = head(hidden).logsumexp(-1).sum()
    assert float(value) == pytest.approx(float(whole))
    assert not value.requires_grad
    found = torch.autograd.grad(3 * total, [hidden, *weights])
    wanted = torch.autograd.grad(3 * log(2) * whole, [hidden, *weights])
    assert all(torch.allclose(one, other) for one, other in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert float(piecewise(loss, hidden, weights, pieces)[0]) == pytest.approx(float(total))
