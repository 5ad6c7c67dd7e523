"""`also`: signals beside what a step learns by, in every kind that has a teacher to look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attar.core.context import Context
from attar.core.registry import find, kinds
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.model import Model
from attar.train.machine import Machine
from attar.train.signals import NAME
from techniques.losing import TIMES, Costs, costs
from techniques.test_few import told
from tiny_models import tiny
from train.small import dataset, parts_of, weights

SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 4, "learning_rate": 1e-3}
TWO: dict[str, Any] = {"teachers": ["one", "other"]}
OWN: dict[str, dict[str, Any]] = {
    "distill/continual": {},
    "distill/logits": {},
    "distill/multi-teacher": TWO,
    "distill/on-policy": {"written": 1.0, "prompt": 6},
    "distill/online": {"back": 0.3},
    "distill/routed": {**TWO, "data": ["train", "dev"], "held_out": []},
    "distill/sequence": {"prompts": 8, "prompt_tokens": 4, "new_tokens": 8},
}
ALSO: dict[str, Any] = {"also": {"hidden": {"weight": 2.0, "weight_end": 0.5}}}
WEIGHTS = (2.0, 1.25, 0.5)  # at `TIMES`


def named(sizes: dict[str, Any] | None = None) -> dict[str, Model]:
    """Three models that differ, any of which may teach."""
    names = ("original", "one", "other")
    return {name: tiny("llama", seed=seed, **(sizes or {})) for seed, name in enumerate(names, 1)}


def context(teachers: dict[str, Model]) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    return Context("causal-lm", data.__getitem__, teachers.__getitem__)


def test_every_distillation_has_it_or_a_reason() -> None:
    has = {kind for kind in kinds() if "also" in find(kind).model_fields}
    others = {"distill/attention", "distill/embedding", "distill/hidden", "distill/pretrain"}
    assert has == {*OWN, *others}
    assert "There is no `also` here" in (find("distill/cross-tokenizer").__doc__ or "")


def states(model: Model, batch: Batch) -> list[Tensor]:
    """What each block makes of a batch."""
    found: list[Tensor] = []

    def note(_: Any, inputs: Any, made: Tensor) -> None:
        found.append(made)

    hooks = [block.register_forward_hook(note) for block in model.blocks]
    model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for hook in hooks:
        hook.remove()
    return found


def missed(student: Model, teacher: Model, batch: Batch) -> Tensor:
    """What the student's states miss of the teacher's, of their own squares: a mean over blocks."""
    mask = batch.attention_mask.bool()
    both = zip(states(student, batch), states(teacher, batch), strict=True)
    pairs = [(one[mask], two.detach()[mask]) for one, two in both]
    parts = [(one - two).square().sum() / two.square().sum() for one, two in pairs]
    return torch.stack(parts).mean()


def begun(
    kind: str, student: Model, number: int, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> Costs:
    """What a step begins with; a continual one when it has become another than it was."""
    settings, ctx = {**SHORT, **OWN[kind], **more}, context(named())
    if kind != "distill/continual":
        return costs(kind, settings, student, ctx, monkeypatch, number)
    former = tiny("llama", seed=1)
    return costs(kind, settings, former, ctx, monkeypatch, number, become=student)


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("kind", sorted(OWN))
def test_it_adds_its_weight_times_what_states_miss(
    kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a schedule, in value and slope; of several teachers their mean, of routes their own."""
    student, teachers = tiny("llama"), named()
    plain = begun(kind, student, number, monkeypatch)
    found = begun(kind, student, number, monkeypatch, **ALSO)
    assert torch.equal(found.batch.input_ids, plain.batch.input_ids)
    followed = [teachers["original"]]
    if kind in ("distill/multi-teacher", "distill/routed"):
        followed = [teachers["one"], teachers["other"]]
    if kind == "distill/routed":
        followed = [followed[number // 4]]  # whose turn it is then
    value = torch.stack([missed(student, each, found.batch) for each in followed]).mean()
    slopes = torch.autograd.grad(value, list(student.module.parameters()), allow_unused=True)
    pairs = zip(found.totals, plain.totals, strict=True)
    wanted = [weight * float(value.detach()) for weight in WEIGHTS]
    assert [one - two for one, two in pairs] == pytest.approx(wanted, rel=1e-4)
    for time, weight in enumerate(WEIGHTS):
        more = [one - two for one, two in zip(found.slopes[time], plain.slopes[time], strict=True)]
        for slope, own in zip(more, slopes, strict=False):
            own = torch.zeros_like(slope) if own is None else own
            torch.testing.assert_close(slope, weight * own, atol=1e-5, rtol=1e-3)
        assert not any(bool(slope.any()) for slope in more[len(slopes) :])  # none to the teacher
    assert len(TIMES) == len(found.losses)


@pytest.mark.parametrize("kind", sorted(OWN))
def test_a_narrower_student_is_brought_to_each_teachers_width(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By projections that are learned by their gradient alone, and left behind."""
    if kind == "distill/continual":
        pytest.skip("the former self is as wide")
    kept: list[dict[str, Tensor]] = []
    whole = Machine.step

    def watching(machine: Machine, *args: Any) -> Any:
        taken = whole(machine, *args)
        kept.append(weights(machine.model, NAME))
        return taken

    monkeypatch.setattr(Machine, "step", watching)
    student, ctx = tiny("llama", hidden_size=16, head_dim=8), context(named())
    also = {"hidden": {}, "attention": {}, "embedding": {}}
    more = {"also": also, "scope": "mlp", "weight_decay": 0.0, "steps": 8}
    settings = {**SHORT, **OWN[kind], **more}
    names = set(student.module.state_dict())
    find(kind).model_validate(settings).apply(student, ctx)
    several = 2 if "teachers" in settings else 1
    assert [tuple(one.shape) for one in kept[0].values()] == [(32, 16)] * 4 * several
    for name, first in kept[0].items():
        assert (kept[-1][name] - first).abs().median() > 1e-5, name
    assert set(student.module.state_dict()) == names
    parts = {name.split("/")[0] for part in parts_of(ctx) for name in part}
    assert {"hidden", "attention", "embedding"} <= parts


def test_of_several_teachers_each_has_its_curve() -> None:
    for kind in ("distill/multi-teacher", "distill/routed"):
        ctx = context(named())
        settings = {**SHORT, **OWN[kind], **ALSO, "steps": 8}
        find(kind).model_validate(settings).apply(tiny("llama"), ctx)
        assert {"loss/hidden/one", "loss/hidden/other"} <= ctx.curves.keys()
        assert "loss/hidden" not in ctx.curves


def test_where_there_is_nothing_to_compare_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"teacher": "http://127.0.0.1:1/v1#m"}
    with pytest.raises(ValueError, match="which no server tells"):
        find("distill/sequence").model_validate({**address, **ALSO})
    step = find("distill/sequence").model_validate({**SHORT, **OWN["distill/sequence"], **ALSO})
    monkeypatch.setattr(type(step), "_written", lambda *_: pytest.fail("it wrote first"))
    with pytest.raises(UserError, match=r"different vocabularies .* or leave out `also`"):
        step.apply(tiny("llama"), context(named({"vocab_size": 110})))
    for kind in sorted(OWN.keys() - {"distill/online"}):
        (problem,) = told(tiny("llama"), {kind: {**OWN[kind], **ALSO, "update": {"soft": {}}}})
        assert "signals do not compare" in problem
