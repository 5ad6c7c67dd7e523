"""Scores of attention before its softmax, and the blocks that are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attar.core.registry import find
from attar.errors import UserError
from attar.ops.alike import maps_kl, relations_kl, scores_missed
from attar.techniques.distill._attention import AttentionSignal
from attar.train.signals import Sight
from attar.train.watched import Watched, unscored, watched
from techniques.test_signals import context, step
from tiny_models import DECODERS, ENCODERS, batch, tiny

PAIRS = [(0, 1), (1, 3)]  # of two blocks that follow four at even distances


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_scores_are_what_attention_takes_its_shares_of_or_refused(family: str) -> None:
    """In blocks of fewer heads, too."""
    model = tiny(family)
    assert (unscored(model) is None) == (family in ("bert", "roberta", "electra", "distilbert"))
    if unscored(model):
        return
    sizes = {"fraction": 0.5, "scope": ["blocks[1]"], "sequences": 4, "length": 16}
    model = find("prune/heads").model_validate(sizes).apply(model, context(model))
    rows = batch(model, rows=2)
    real = rows.attention_mask.bool()[:, None, None]
    with torch.no_grad(), watched(model, maps=True) as made:
        model.hidden(rows)
    assert [made.heads(index) for index in range(3)] == [4, 2, 4]
    for index in range(3):
        shares = made.scores(index).masked_fill(~real, -torch.inf).softmax(-1)
        torch.testing.assert_close(told(made, index), shares)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("llama", "rotates queries and keys"), ("modernbert", "rotates"), ("gpt2", "earlier tokens")],
)
def test_scores_that_queries_and_keys_do_not_tell_are_refused(family: str, reason: str) -> None:
    model = tiny(family)
    with pytest.raises(UserError, match=f"the student's scores cannot be told .*{reason}"):
        step("distill/attention", model, context(tiny(family, seed=1)), relations=["scores"])


def test_scores_of_other_heads_are_refused() -> None:
    teacher, student = tiny("bert", seed=1), tiny("bert", num_attention_heads=2)
    message = "head by head, and block 2 of the student has 2, block 2 of the teacher 4"
    with pytest.raises(UserError, match=message):
        step("distill/attention", student, context(teacher), relations=["scores"])


def test_only_one_setting_says_which_blocks() -> None:
    with pytest.raises(ValueError, match="block and layers both say"):
        AttentionSignal.model_validate({"block": 0, "layers": "uniform"})


def test_which_blocks_are_compared() -> None:
    teacher, student = tiny("bert", seed=1, num_hidden_layers=4), tiny("bert", num_hidden_layers=2)
    rows = batch(teacher, rows=2)
    mask, relations = rows.attention_mask.bool(), ("values", "maps", "scores")
    with torch.no_grad(), watched(student, maps=True) as own, watched(teacher, maps=True) as theirs:
        student.hidden(rows)
        teacher.hidden(rows)

    def compared(**settings: Any) -> Any:
        signal = AttentionSignal.model_validate({"relations": relations, **settings})
        return signal.compared(Sight(student, own), Sight(teacher, theirs), mask)

    assert compared(layers="uniform").pairs == PAIRS
    assert compared(layers="last").pairs == [(0, 2), (1, 3)]
    assert compared().pairs == compared(block=3).pairs == [(1, 3)]
    assert compared(block=-3).pairs == [(1, 1)]
    losses: list[Tensor] = []
    for i, j in PAIRS:
        losses.append(relations_kl(own.qkv(i)[2], theirs.qkv(j)[2], 4, mask))
        losses.append(maps_kl(told(own, i), told(theirs, j), mask))
        losses.append(scores_missed(own.scores(i), theirs.scores(j), mask))
    found = compared(layers="uniform")(own, theirs, mask)
    assert found.item() == pytest.approx(torch.stack(losses).mean().item())


def test_scores_come_nearer_in_every_pair_of_blocks() -> None:
    """Of a student half as deep, beside hidden states, as in recipes/tinybert.yaml."""
    teacher, student = tiny("bert", seed=1, num_hidden_layers=4), tiny("bert", num_hidden_layers=2)
    rows = batch(teacher, rows=2)

    def scores(made: Watched, block: int, row: int, head: int) -> Tensor:
        real = int(rows.attention_mask[row].sum())
        parts = [part[row, :real, 8 * head :][:, :8].double() for part in made.qkv(block)]
        return parts[0] @ parts[1].t() / 8**0.5

    def apart() -> list[float]:
        with torch.no_grad(), watched(student) as own, watched(teacher) as theirs:
            student.hidden(rows)
            teacher.hidden(rows)
        places = [(row, head) for row in range(2) for head in range(4)]
        found: list[float] = []
        for i, j in PAIRS:
            misses = [scores(own, i, *place) - scores(theirs, j, *place) for place in places]
            found.append(float(torch.cat([miss.flatten() for miss in misses]).square().mean()))
        return found

    before = apart()
    also = {"attention": {"relations": ["scores"], "layers": "uniform"}}
    ctx = context(teacher)
    step("distill/hidden", student, ctx, include_embeddings=True, also=also, steps=40)
    # learned from hidden states alone, they come to be further apart
    assert all(late < 0.5 * early for early, late in zip(before, apart(), strict=True))
    assert ctx.curves["loss/attention"][-1][1] < ctx.curves["loss/attention"][0][1]


def told(made: Watched, block: int) -> Tensor:
    """The maps of a block that was watched for them."""
    maps = made.maps[block]
    assert maps is not None
    return maps
