"""Distances over spans against TRL's GOLD trainer, where it is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attar.ops.spans import Common, Spelled, merged_spans, sorted_spans

gold: Any = pytest.importorskip("trl.experimental.gold.gold_trainer")

OWN, THEIRS, SPANS = 40, 61, 9
PAIRS = [(number, 2 * number + 1) for number in range(0, 25, 2)]
CONFIG: dict[str, Any] = {
    "uld_crossentropy_weight": 0.0,
    "uld_distillation_weight": 1.0,
    "uld_student_temperature": 1.0,
    "uld_teacher_temperature": 1.0,
    "uld_skip_student_eos": False,
    "uld_skip_teacher_eos": False,
    "use_extended_uld": True,
    "uld_token_merge_strategy": "bayesian",
    "uld_hybrid_matched_weight": 1.0,
    "uld_hybrid_unmatched_weight": 1.0,
    "beta": 0.0,  # KL(teacher || student)
}


class Named:
    """A tokenizer of which only the words matter: those of PAIRS are in both."""

    def __init__(self, side: int, size: int) -> None:
        both = {pair[side]: f"both {number}" for number, pair in enumerate(PAIRS)}
        self.names = {both.get(n, f"{side} alone {n}"): n for n in range(size)}

    def get_vocab(self) -> dict[str, int]:
        return self.names


def drawn(seed: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(SPANS, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def single(first: torch.Tensor, tokens: list[int]) -> Spelled:
    """Spans of one token each."""
    every = torch.ones(SPANS, dtype=torch.bool)
    return Spelled(first, torch.tensor(tokens), torch.zeros(SPANS, dtype=torch.float64), every)


def test_both_distances_are_gold_s_where_spans_are_single_tokens() -> None:
    own, theirs = drawn(0, OWN), drawn(1, THEIRS)
    there = [PAIRS[number % len(PAIRS)] for number in range(SPANS)]
    sides = single(own, [a for a, _ in there]), single(theirs, [b for _, b in there])
    settings = SimpleNamespace(**CONFIG, uld_use_hybrid_loss=True)
    peer = gold.ULDLoss(settings, Named(0, OWN), Named(1, THEIRS))
    peer._compute_hybrid_uld_loss(own, theirs)
    table = torch.tensor(PAIRS)
    common = Common.of(table[:, 0], table[:, 1], OWN, THEIRS)
    found = merged_spans(*sides, common)
    assert float(found.others.mean()) == pytest.approx(float(peer.last_unmatched_loss))
    p, q = (
        x[:, rest].sum(-1) for x, rest in ((theirs, common.their_others), (own, common.own_others))
    )
    together = (p * (p / q).log()).mean()  # the others taken as one, which the peer leaves out
    shared = float(peer.last_matched_loss + together)
    assert float(found.shared.mean()) == pytest.approx(shared, rel=1e-6)


def test_sorted_is_gold_s_where_spans_are_single_tokens() -> None:
    own, theirs = drawn(2, OWN).log()[None], drawn(3, THEIRS).log()[None]
    peer = gold.ULDLoss(SimpleNamespace(**{**CONFIG, "uld_use_hybrid_loss": False}))
    tokens, ends = torch.arange(SPANS)[None], torch.arange(1, SPANS + 1)
    places = torch.stack([ends - 1, ends], -1)[None]
    labels = tokens.clone()
    labels[0, 0] = -100  # what nothing comes before is not predicted
    wanted = peer(own, theirs, labels, labels, tokens, tokens, places, places)
    mine = [
        Spelled(x[0, :-1].exp(), tokens[0, 1:], torch.zeros(SPANS - 1), torch.ones(SPANS - 1) > 0)
        for x in (own, theirs)
    ]
    assert float(sorted_spans(*mine).mean()) == pytest.approx(float(wanted))
