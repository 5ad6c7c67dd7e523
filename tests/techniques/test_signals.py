"""Signals on what leads to the answers: hidden states and relations of attention."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Task
from attar.data.batches import Batch
from attar.errors import UserError
from attar.models.model import Model
from attar.techniques.distill._hidden import HiddenSignal, projection
from attar.techniques.distill.logits import Logits
from attar.train.machine import Machine
from attar.train.signals import NAME, Sight, guided
from attar.train.watched import watched
from tiny_models import batch, tiny
from train.small import dataset, equal, losses_of, parts_of, weighed, weights

PLACES: list[tuple[str, Task]] = [
    ("llama", "causal-lm"),
    ("phi3", "causal-lm"),
    ("gpt2", "causal-lm"),
    ("bert", "masked-lm"),
    ("bert", "classification"),
    ("modernbert", "masked-lm"),
]
SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 20, "learning_rate": 3e-3}


def context(teacher: Model, scratch: Path | None = None) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    return Context(teacher.task, data.__getitem__, lambda _: teacher, scratch=scratch)


def step(kind: str, model: Model, ctx: Context, **settings: Any) -> Model:
    return find(kind).model_validate({**SHORT, **settings}).apply(model, ctx)


def narrow(model: Model) -> Model:
    """Half as wide and two blocks of three deep, as a student may be."""
    ctx = context(model)
    shallow = find("prune/depth").model_validate({"blocks": [1]}).apply(model, ctx)
    sizes = {"neurons": 32, "sequences": 4, "length": 16}
    return find("prune/width").model_validate(sizes).apply(shallow, ctx)


@pytest.mark.parametrize(("family", "task"), PLACES)
@pytest.mark.parametrize("kind", ["distill/hidden", "distill/attention"])
def test_comes_nearer_to_the_teacher(kind: str, family: str, task: Task) -> None:
    teacher, student = tiny(family, task, seed=1), tiny(family, task)
    ctx = context(teacher)
    names = set(student.module.state_dict())
    step(kind, student, ctx, evaluate_every=5)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    assert set(student.module.state_dict()) == names


@pytest.mark.parametrize(("family", "task"), PLACES)
def test_attention_comes_nearer_to_the_teachers_maps(family: str, task: Task) -> None:
    teacher, student = tiny(family, task, seed=1), tiny(family, task)
    ctx, before = context(teacher), student.config._attn_implementation
    step("distill/attention", student, ctx, relations=["maps"], steps=40, learning_rate=1e-3)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    assert student.config._attn_implementation == before


def test_maps_are_the_shares_that_attention_takes() -> None:
    """Of a model with grouped keys and rotated positions, by its own step-by-step attention."""
    model, rows = tiny("llama"), batch(tiny("llama"), rows=2)
    with torch.no_grad(), watched(model, maps=True) as made:
        model.hidden(rows)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        shares = model.base(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_attentions=True
        ).attentions
    for found, wanted in zip(made.maps, shares, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted)


def test_dropout_is_put_back() -> None:
    model = tiny("bert")
    before = [part.p for part in model.module.modules() if isinstance(part, torch.nn.Dropout)]
    assert any(before)
    with watched(model, maps=True):
        assert model.blocks[0].get_submodule("attention.self.dropout").p == 0
    after = [part.p for part in model.module.modules() if isinstance(part, torch.nn.Dropout)]
    assert after == before


def test_students_with_other_heads_learn_from_the_mean_of_all() -> None:
    teacher, student = tiny("bert", seed=1), tiny("bert", num_attention_heads=2)
    ctx = context(teacher)
    step("distill/attention", student, ctx, relations=["maps", "values"], evaluate_every=5)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]


def test_which_blocks_are_followed() -> None:
    teacher = tiny("llama", seed=1, num_hidden_layers=6)
    student = tiny("llama", num_hidden_layers=2)
    rows = batch(teacher, rows=2)
    mask = rows.attention_mask.bool()
    with torch.no_grad(), watched(student) as own, watched(teacher) as theirs:
        student.hidden(rows)
        teacher.hidden(rows)
        sights = Sight(student, own), Sight(teacher, theirs)
        followed = {
            layers: HiddenSignal(layers=layers, include_embeddings=first)
            .compared(*sights, mask)
            .pairs
            for layers, first in (("uniform", False), ("last", True))
        }
    assert followed == {"uniform": [(1, 3), (2, 6)], "last": [(0, 0), (1, 5), (2, 6)]}


def test_a_deeper_student_follows_at_even_distances_alone() -> None:
    teacher, student = narrow(tiny("llama", seed=1)), tiny("llama")
    step("distill/hidden", student, context(teacher))
    for layers in ("last", "searched"):
        with pytest.raises(UserError, match="Take `layers: uniform`"):
            step("distill/hidden", student, context(teacher), layers=layers)


@pytest.mark.parametrize("layers", ["uniform", "last", "searched"])
@pytest.mark.parametrize("distance", ["squares", "cosine"])
def test_a_shallower_student_follows_some_of_the_blocks(layers: str, distance: str) -> None:
    teacher, student = tiny("llama", seed=1), narrow(tiny("llama"))
    ctx = context(teacher)
    step("distill/hidden", student, ctx, layers=layers, distance=distance, evaluate_every=5)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]


def test_a_narrower_student_is_brought_to_the_teachers_width(tmp_path: Path) -> None:
    teacher = tiny("llama", seed=1)
    sizes = {"hidden": 16, "sequences": 4, "length": 16}
    student = find("prune/width").model_validate(sizes).apply(tiny("llama"), context(teacher))
    ctx = context(teacher)
    step("distill/hidden", student, ctx, also={"attention": {"weight": 0.5}}, evaluate_every=5)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    assert {"loss/hidden", "loss/attention"} <= ctx.curves.keys()
    assert "loss/task" not in ctx.curves
    assert not any("signals" in name for name in student.module.state_dict())


def test_projections_start_at_least_squares() -> None:
    drawn = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, theirs = drawn[:, :3], drawn[:, 3:]
    wanted = torch.linalg.lstsq(own, theirs).solution.t()
    start = projection(own, theirs).weight
    torch.testing.assert_close(start.double(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["distill/hidden", "distill/embedding"])
def test_projections_are_learned(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their gradient alone: weight decay would move them too."""
    kept: list[dict[str, Tensor]] = []
    whole = Machine.step

    def watching(machine: Machine, *args: Any) -> Any:
        kept.append(weights(machine.model, NAME))
        return whole(machine, *args)

    monkeypatch.setattr(Machine, "step", watching)
    teacher = tiny("llama", seed=1)
    sizes = {"hidden": 16, "sequences": 4, "length": 16}
    student = find("prune/width").model_validate(sizes).apply(tiny("llama"), context(teacher))
    step(kind, student, context(teacher), steps=3, scope="mlp", weight_decay=0.0)
    assert [tuple(one.shape) for one in kept[0].values()] == [(32, 16)] * len(kept[0])
    assert len(kept[0]) == (3 if kind == "distill/hidden" else 1)
    for before, after in pairwise(kept):
        for name, weight in before.items():
            assert (weight - after[name]).abs().median() > 1e-5, name


@pytest.mark.parametrize(
    ("progress", "weight", "squares"), [(0.0, 0.9, 0.5), (0.5, 0.5, 1.25), (1.0, 0.1, 2.0)]
)
def test_the_total_is_the_answers_and_each_signal_times_its_weight(
    progress: float, weight: float, squares: float
) -> None:
    teacher, student = tiny("llama", seed=1), tiny("llama")
    rows, answers = batch(student), Logits(weight=0.9, weight_end=0.1)
    signals = {
        "squares": HiddenSignal(weight=0.5, weight_end=2.0),
        "angles": HiddenSignal(weight=3.0, distance="cosine"),
    }
    with guided(student, teacher, signals, lambda p: answers.mix(student, p), rows) as objective:
        loss = objective(rows, progress)
    own, theirs = (made_by(model, rows) for model in (student, teacher))
    parts = {"divergence": 0.0, "task": 0.0, "squares": 0.0, "angles": 0.0}
    q, p = own[0].softmax(-1), theirs[0].softmax(-1)
    parts["divergence"] = float((p * (p / q).log()).sum(-1).mean())
    parts["task"] = float(-q.gather(-1, rows.labels[:, 1:].flatten()[:, None]).log().mean())
    for one, two in zip(own[1], theirs[1], strict=True):
        parts["squares"] += float((one - two).square().sum() / two.square().sum()) / 3
        cosines = (one * two).sum(-1) / one.norm(dim=-1) / two.norm(dim=-1)
        parts["angles"] += float(1 - cosines.mean()) / 3
    found = {name: value for name, (value, _) in loss.parts.items()}
    assert found == pytest.approx(parts, rel=1e-4)
    wanted = weight * parts["divergence"] + (1 - weight) * parts["task"]
    wanted += squares * parts["squares"] + 3 * parts["angles"]
    assert loss.value.item() == pytest.approx(wanted, rel=1e-4)


def made_by(model: Model, rows: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits at what is judged, and the states after each block, in float64."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, out: states.append(out.double()))
        for block in model.blocks
    ]
    with torch.no_grad():
        logits = model.logits(rows).double()[:, :-1].flatten(0, 1)
    for hook in hooks:
        hook.remove()
    return logits, states


def test_signals_go_beside_the_answers_on_a_schedule() -> None:
    """What each of four steps cost, from what it is made of."""
    teacher, student = tiny("llama", seed=1), tiny("llama")
    ctx = context(teacher)
    also = {"hidden": {"weight": 1.0, "weight_end": 0.0}, "attention": {"weight": 0.3}}
    answers = {"weight": 1.0, "weight_end": 0.5}
    step("distill/logits", student, ctx, also=also, steps=4, learning_rate=1e-2, **answers)
    moving = zip([1, 0.875, 0.75, 0.625], [1, 0.75, 0.5, 0.25], strict=True)
    wanted = [
        weighed(part, weight, hidden=hidden, attention=0.3)
        for part, (weight, hidden) in zip(parts_of(ctx), moving, strict=True)
    ]
    assert losses_of(ctx) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["distill/logits", "distill/hidden", "distill/pretrain"])
def test_a_batch_goes_through_either_model_once(kind: str) -> None:
    """However many signals share what the teacher makes of it."""
    made = {"both_heads": True} if kind == "distill/pretrain" else {}
    teacher, student = (tiny("bert", "masked-lm", seed=seed, **made) for seed in (1, 0))
    seen: list[Model] = []
    for model in (teacher, student):
        model.base.register_forward_hook(lambda *_, model=model: seen.append(model))
    also = {"hidden": {}, "attention": {"relations": ["maps", "values"]}, "embedding": {}}
    also.pop(kind.removeprefix("distill/"), None)
    step(kind, student, context(teacher), also=also, steps=5, held_out=None)
    # what signals are made ready by is a batch too
    assert [sum(model is one for one in seen) for model in (teacher, student)] == [6, 6]


def test_a_signal_of_its_own_is_weighed_too() -> None:
    teacher, student = tiny("llama", seed=1), tiny("llama")
    ctx, also = context(teacher), {"attention": {"weight": 0.3, "weight_end": 0.7}}
    step("distill/hidden", student, ctx, also=also, steps=4, weight=2.0)
    wanted = [
        2 * part["hidden"] + weight * part["attention"]
        for part, weight in zip(parts_of(ctx), [0.3, 0.4, 0.5, 0.6], strict=True)
    ]
    assert losses_of(ctx) == pytest.approx(wanted, rel=1e-5)


def test_a_killed_training_goes_on_bit_equal(tmp_path: Path) -> None:
    def train(scratch: Path, steps_until: int | None) -> Model:
        teacher = tiny("llama", seed=1)
        sizes = {"hidden": 16, "sequences": 4, "length": 16}
        student = find("prune/width").model_validate(sizes).apply(tiny("llama"), context(teacher))
        scratch.mkdir(exist_ok=True)
        ctx = context(teacher, scratch)
        with pytest.MonkeyPatch.context() as patch:
            if steps_until is not None:
                stop_after(patch, steps_until)
                with pytest.raises(KeyboardInterrupt):
                    step("distill/hidden", student, ctx, checkpoint_minutes=0)
                assert "signals" not in student.module._modules
                return student
            return step("distill/hidden", student, ctx, checkpoint_minutes=0)

    calm = train(tmp_path / "calm", None)
    train(tmp_path / "killed", 7)
    assert equal(weights(calm), weights(train(tmp_path / "killed", None)))


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    whole, taken = Machine.step, 0

    def counted(machine: Machine, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise KeyboardInterrupt
        return whole(machine, *args)

    patch.setattr(Machine, "step", counted)


def test_what_cannot_be_compared_is_refused() -> None:
    teacher, student = tiny("llama", seed=1), tiny("llama")
    with pytest.raises(UserError, match="the teacher has blocks 0 to 2, none 7"):
        step("distill/attention", student, context(teacher), block=7)
    with pytest.raises(UserError, match="5 heads do not divide all widths"):
        step("distill/attention", student, context(teacher), heads=5)
    with pytest.raises(UserError, match="`also` holds hidden, which this step is already"):
        step("distill/hidden", student, context(teacher), also={"hidden": {}})
    assert "signals" not in student.module._modules
    assert all(torch.isfinite(p).all() for p in student.module.parameters())
