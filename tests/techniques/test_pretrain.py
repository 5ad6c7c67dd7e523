"""Pretraining on raw text: both heads, with a teacher and without, and from nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import attar
from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.core.registry import find
from attar.data import Dataset, Example
from attar.data.batches import IGNORED
from attar.data.pairs import Pairs, Rules
from attar.engine.store import Store
from attar.errors import ModelError, PlanError, UserError
from attar.models import load, save
from attar.models.blank import blank
from attar.models.model import Model
from attar.models.source import Files
from attar.ops.chunked import Mix
from attar.train.pretraining import Heads
from tiny_models import tiny
from train.small import equal, losses_of, parts_of, weighed, weights

KINDS = ("adapt/pretrain", "distill/pretrain")
SHORT: dict[str, Any] = {"batch": 8, "length": 24, "steps": 30, "learning_rate": 3e-3}
KILLED: dict[str, Any] = {"steps": 5, "checkpoint_minutes": 0, "held_out": None}


def both(**settings: Any) -> Model:
    """A tiny BERT that tells masked tokens and next sentences."""
    return tiny("bert", "masked-lm", both_heads=True, **settings)


def counting(name: str = "train", count: int = 30) -> Dataset:
    """Documents of six sentences, each of five words in a row, that go on from one another."""
    texts = [
        "\n".join(
            " ".join(f"w{(13 * document + 5 * number + k) % 90}" for k in range(5))
            for number in range(6)
        )
        for document in range(count)
    ]
    return Dataset(name, [Example(text) for text in texts], "fingerprint")


def context(teacher: Model | None = None, scratch: Path | None = None) -> Context:
    data = {"train": counting(), "dev": counting("dev", 8)}
    return Context("masked-lm", data.__getitem__, lambda _: teacher, scratch=scratch)


def step(kind: str, model: Model, ctx: Context, **settings: Any) -> Model:
    return find(kind).model_validate({**SHORT, **settings}).apply(model, ctx)


def pairs(model: Model, **rules: Any) -> Pairs:
    return Pairs(counting(), model.tokenizer, 24, 8, 0, Rules(**rules))


def test_the_loss_is_that_of_transformers_own_model() -> None:
    model = both()
    batch = pairs(model).batch(0)
    with torch.no_grad():
        own = Heads(model, 1.0)(batch, 0.0)
        theirs = model.module(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.segments,
            labels=batch.labels,
            next_sentence_label=batch.follows,
        )
    assert own.value.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert own.count == int((batch.labels != IGNORED).sum())


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_teachers_answers_and_their_gradient_are_the_formula(weight: float) -> None:
    model, teacher = both(), both(seed=1)
    batch, heat = pairs(model).batch(0), 2.0
    mix = Mix("forward", heat, weight, 1 - weight)
    found = Heads(model, 0.5, teacher, lambda _: mix)(batch, 0.0)
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.segments,
    }
    own, other = (m.module(**given) for m in (model, teacher))
    assert batch.follows is not None
    judged = batch.labels != IGNORED
    total, slopes = 0.0, {}
    for share, name, labels in (
        (1.0, "prediction_logits", batch.labels),
        (0.5, "seq_relationship_logits", batch.follows),
    ):
        at = judged if name == "prediction_logits" else torch.ones_like(labels).bool()
        one, two = (out[name].detach().double()[at] for out in (own, other))
        labels = labels[at]
        q, p = (one / heat).softmax(-1), (two / heat).softmax(-1)
        soft = heat**2 * (p * (p / q).log()).sum(-1).mean()
        chances = one.softmax(-1)
        hard = -chances.gather(-1, labels[:, None]).log().mean()
        total += share * float(weight * soft + (1 - weight) * hard)
        right = torch.nn.functional.one_hot(labels, one.shape[-1])
        slope = weight * heat * (q - p) + (1 - weight) * (chances - right)
        slopes[name] = torch.zeros_like(own[name])
        slopes[name][at] = (share * slope / len(labels)).float()
    assert found.value.item() == pytest.approx(total, rel=1e-5)
    found.value.backward()
    parameters = list(model.module.parameters())
    wanted = torch.autograd.grad([own[name] for name in slopes], parameters, list(slopes.values()))
    for parameter, slope in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_both_tasks_are_learned(kind: str) -> None:
    model, ctx = both(), context(both(seed=1))
    step(kind, model, ctx, steps=40, evaluate_every=20, evaluate_on=64, learning_rate=1e-2)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    assert {"loss/task", "loss/next sentence"} <= ctx.curves.keys()
    assert ("loss/divergence" in ctx.curves) == (kind == "distill/pretrain")
    assert 0 <= ctx.notes["next sentences told"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_drawn_only_where_it_is_wanted(kind: str) -> None:
    made = {}
    for name, share, dropout in (("with", 0.5, True), ("off", 0.5, False), ("none", 0.0, True)):
        shares = {"hidden_dropout_prob": share, "attention_probs_dropout_prob": share}
        model = both(**shares)
        step(kind, model, context(both(seed=1)), steps=3, held_out=None, dropout=dropout)
        made[name] = weights(model)
        assert {m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)} == {share}
    assert equal(made["off"], made["none"])
    assert not equal(made["with"], made["none"])


def test_signals_go_beside_the_heads() -> None:
    student, teacher = both(), both(seed=1)
    names = set(student.module.state_dict())
    ctx = context(teacher)
    step("distill/pretrain", student, ctx, also={"hidden": {}, "embedding": {"weight": 0.5}})
    assert {"loss/hidden", "loss/embedding", "loss/divergence"} <= ctx.curves.keys()
    assert set(student.module.state_dict()) == names


def test_the_loss_is_the_heads_and_each_signal_times_its_weight() -> None:
    """What each of four steps cost, from what it is made of; texts one by one tell all of it."""
    ctx = context(both(seed=1))
    also = {"hidden": {"weight": 2.0, "weight_end": 0.0}, "embedding": {"weight": 0.5}}
    moving = {"weight": 0.8, "weight_end": 0.4, "next_sentence": 0}
    step("distill/pretrain", both(), ctx, also=also, steps=4, **moving)
    weights_then = zip([0.8, 0.7, 0.6, 0.5], [2, 1.5, 1, 0.5], strict=True)
    wanted = [
        weighed(part, weight, hidden=hidden, embedding=0.5)
        for part, (weight, hidden) in zip(parts_of(ctx), weights_then, strict=True)
    ]
    assert losses_of(ctx) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_goes_on_bit_equal(kind: str, tmp_path: Path) -> None:
    from attar.train.machine import Machine

    def train(scratch: Path, until: int | None) -> Model:
        model = both()
        scratch.mkdir(exist_ok=True)
        ctx = context(both(seed=1), scratch)
        with pytest.MonkeyPatch.context() as patch:
            if until is None:
                return step(kind, model, ctx, **KILLED)
            whole, taken = Machine.step, []

            def counted(machine: Machine, *args: Any) -> Any:
                taken.append(1)
                if len(taken) > until:
                    raise KeyboardInterrupt
                return whole(machine, *args)

            patch.setattr(Machine, "step", counted)
            with pytest.raises(KeyboardInterrupt):
                step(kind, model, ctx, **KILLED)
        return model

    calm = train(tmp_path / "calm", None)
    train(tmp_path / "killed", 3)
    assert equal(weights(calm), weights(train(tmp_path / "killed", None)))


def test_both_heads_reload_bit_equal_and_are_cut_with_the_model(tmp_path: Path) -> None:
    model, ctx = both(), context()
    sizes = {"neurons": 32, "hidden": 16, "heads": 2, "sequences": 4, "length": 16}
    small = find("prune/width").model_validate(sizes).apply(model, ctx)
    small = find("prune/depth").model_validate({"blocks": [1]}).apply(small, ctx)
    save(small, tmp_path)
    again = load(Files(tmp_path))
    assert (again.task, again.tells_next) == ("masked-lm", True)
    assert equal(weights(small), weights(again))
    batch = pairs(again).batch(0)
    assert again.next_sentence(again.hidden(batch)).shape == (8, 2)
    trunk = load(Files(tmp_path), "classification", labels=("a", "b"))
    assert torch.equal(trunk.base.pooler.dense.weight, small.base.pooler.dense.weight)


def test_segments_reach_the_model() -> None:
    model = both()
    batch = pairs(model).batch(0)
    with torch.no_grad():
        with_segments = model.hidden(batch)
        assert batch.segments is not None
        batch.segments.zero_()
        assert not torch.equal(model.hidden(batch), with_segments)


@pytest.mark.parametrize("kind", KINDS)
def test_no_head_for_next_sentences_is_told_before_weights_load(kind: str, tmp_path: Path) -> None:
    save(tiny("bert", "masked-lm"), tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text('{"text": "w1. w2. w3."}\n' * 50)
    recipe = {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "texts.jsonl"),
        "steps": [{kind: {}}],
    }
    with pytest.raises(PlanError, match=r"no head that tells next sentences.*BertForPreTraining"):
        attar.plan(recipe, home=tmp_path / "home")
    recipe["steps"] = [{kind: {"next_sentence": 0}}]
    attar.plan(recipe, home=tmp_path / "home")
    with pytest.raises(UserError, match="the teacher has no head that tells next sentences"):
        step("distill/pretrain", both(), context(tiny("bert", "masked-lm")))


def test_a_model_from_nothing(tmp_path: Path) -> None:
    texts = [
        "这本书很好。我很喜欢它。 A good book, and short.",
        "天气不好。今天下雨。 It rains.",
    ] * 9
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    blank(tmp_path / "blank", texts, vocabulary=120, **sizes)
    with pytest.raises(ModelError, match=r"no .safetensors file.*set model.fresh to yes"):
        load(ModelSource(path=str(tmp_path / "blank")))
    source = ModelSource(path=str(tmp_path / "blank"), fresh=True)
    one, same, other = (load(source, seed=seed) for seed in (0, 0, 1))
    assert (one.task, one.tells_next) == ("masked-lm", True)
    assert equal(weights(one), weights(same))
    assert not equal(weights(one), weights(other))
    tokens = one.tokenizer.tokenize("我很喜欢 good books")
    assert tokens[:4] == list("我很喜欢")
    assert "".join(tokens[4:]).replace("##", "") == "goodbooks"
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "dev", "test")}
    for name, path in files.items():
        path.write_text("".join(f'{{"text": "{name}. {text}"}}\n' for text in texts))
    recipe = {
        "model": {"path": str(tmp_path / "blank"), "fresh": True},
        "data": {name: str(path) for name, path in files.items()},
        "precision": "float32",
        "steps": [
            {"adapt/pretrain": {"id": "teacher", "steps": 3, "batch": 4, "length": 32}},
            {"prune/depth": {"blocks": [1], "id": "student"}},
            {"distill/pretrain": {"teacher": "teacher", "steps": 3, "batch": 4, "length": 32}},
        ],
        "measures": {"sequences": 4, "length": 16, "speed": False},
        "guard": {"enabled": False},
    }
    done = attar.run(recipe, home=tmp_path / "home")
    assert [stage.id for stage in done.report.stages] == [
        "original",
        "teacher",
        "student",
        "pretrain",
    ]
    assert done.report.stages[0].figures["size"].value > 0
    assert done.load().tells_next
    home = tmp_path / "home"
    keys = [attar.plan({**recipe, "seed": seed}, home=home).stages[0].key for seed in (0, 1)]
    assert keys[0] != keys[1]
    assert Store(home).has(keys[0])


def test_the_same_texts_give_the_same_vocabulary(tmp_path: Path) -> None:
    # in processes of their own: hashes differ from one to the next
    script = (
        "import sys; from attar.models.blank import blank; "
        "blank(sys.argv[1], ['unhappy kindness, unkind happiness ' * 5, '书很好。'], 50)"
    )
    found = []
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True)
        found.append(json.loads((tmp_path / name / "tokenizer.json").read_text("utf-8")))
    assert found[0] == found[1]
    assert len(found[0]["added_tokens"]) == 5
