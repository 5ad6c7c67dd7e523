"""A teacher for each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.core.step import Task
from attar.data.batches import Batch, Stream
from attar.data.example import Dataset, Example
from attar.data.turns import Turns
from attar.errors import DataError, UserError
from attar.models.model import Model
from attar.ops.chunked import Mix
from attar.train.losses import Objective, judge
from attar.train.rows import held_out_of
from techniques.losing import DIVERGENCES, LOGITS, MOVING, WEIGHTS, costs, same

LABELS = tiny_models.LABELS
SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 40, "learning_rate": 3e-3}


def counting(name: str, step: int, count: int = 40) -> Dataset:
    rows = [
        Example(" ".join(f"w{(n + step * k) % 90}" for k in range(14)), LABELS[n % 3])
        for n in range(count)
    ]
    return Dataset(name, rows, name, LABELS)


DATA = {"one": counting("one", 1), "other": counting("other", 7, 24)}


def stream(name: str, seed: int = 0) -> Stream:
    return Stream(DATA[name], tiny_models.tokenizer(), "causal-lm", 16, 4, seed)


def test_every_row_has_its_turn_in_an_epoch() -> None:
    streams = [stream("one"), stream("other")]
    turns = Turns(streams, 0)
    assert turns.per_epoch == sum(one.per_epoch for one in streams)
    for epoch in range(2):
        numbers = range(epoch * turns.per_epoch, (epoch + 1) * turns.per_epoch)
        found: dict[int, list[Batch]] = {0: [], 1: []}
        for number in numbers:
            batch = turns.batch(number)
            found[batch.source].append(batch)
        for source, one in enumerate(streams):
            assert len(found[source]) == one.per_epoch
            wanted = [one.batch(epoch * one.per_epoch + n) for n in range(one.per_epoch)]
            pairs = zip(found[source], wanted, strict=True)
            assert all(torch.equal(a.input_ids, b.input_ids) for a, b in pairs)
    orders = [[turns.batch(n + e * turns.per_epoch).source for n in range(12)] for e in range(2)]
    assert orders[0] != orders[1]
    assert turns.batch(2, rank=1, world=2).source == turns.batch(5).source


def context(teachers: dict[str, Model]) -> Context:
    task = next(iter(teachers.values())).task
    return Context(task, DATA.__getitem__, teachers.__getitem__)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_each_task_is_learned_from_its_own_teacher(family: str, task: Task) -> None:
    teachers = {n: tiny_models.tiny(family, task, seed=s) for s, n in enumerate("ab", 1)}
    student, ctx = tiny_models.tiny(family, task), context(teachers)
    mix = Mix("forward", 1.0, 1.0, 0.0)

    def apart(data: str, teacher: str) -> float:
        step = find("adapt/full").model_validate(SHORT)
        held = held_out_of(data, student, step, ctx)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            return judge(Objective(student, teachers[teacher]), held, mix)()

    before = apart("one", "a"), apart("other", "b")
    settings = {"teachers": ["a", "b"], "data": ["one", "other"], "held_out": ["one", "other"]}
    find("distill/routed").model_validate({**SHORT, **settings}).apply(student, ctx)
    after = apart("one", "a"), apart("other", "b")
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]
    assert after[0] < apart("one", "b")  # and not from the other's
    assert [step for step, _ in ctx.curves["loss/dev"]] == [0, 10, 20, 30, 40]
    parts = {name for name in ctx.curves if name.startswith(("loss/divergence", "loss/task"))}
    assert parts == {f"loss/{part}/{name}" for part in ("divergence", "task") for name in "ab"}
    turns = [{step for step, _ in ctx.curves[f"loss/divergence/{name}"]} for name in "ab"]
    assert not turns[0] & turns[1]
    assert turns[0] | turns[1] == {*range(1, 41)}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="`data` names 3 datasets for 2 teachers"):
        find("distill/routed").model_validate({"teachers": ["a", "b"], "data": ["x", "y", "z"]})
    teachers = {
        "a": tiny_models.tiny("llama", seed=1),
        "b": tiny_models.tiny("llama", vocab_size=110),
    }
    step = find("distill/routed").model_validate(
        {**SHORT, "teachers": ["a", "b"], "data": ["one", "other"]}
    )
    with pytest.raises(UserError, match=r"teacher 'b': .*different vocabularies"):
        step.apply(tiny_models.tiny("llama"), context(teachers))


def mixed(name: str, domains: dict[str, int], count: int = 40) -> Dataset:
    """Rows of several domains in turn, each counting by a step of its own."""
    words = list(domains)
    rows = [
        Example(
            " ".join(f"w{(n + domains[words[n % len(words)]] * k) % 90}" for k in range(14)),
            LABELS[n % 3],
            where=f"{name}.jsonl:{n + 1}",
            domain=words[n % len(words)],
        )
        for n in range(count)
    ]
    return Dataset(name, rows, name, LABELS)


BY_DOMAIN: dict[str, Any] = {"teachers": ["a", "b"], "domains": ["law", "code"], "data": ["mix"]}


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_rows_go_to_the_teacher_of_their_domain(family: str, task: Task) -> None:
    """As if each domain were a dataset of its own: to the bit."""
    mix = mixed("mix", {"code": 7, "law": 1})
    apart = {
        domain: Dataset(domain, [r for r in mix.examples if r.domain == domain], domain, LABELS)
        for domain in ("law", "code")
    }
    data = {"mix": mix, **apart}

    def trained(**settings: Any) -> list[torch.Tensor]:
        teachers = {n: tiny_models.tiny(family, task, seed=s) for s, n in enumerate("ab", 1)}
        student = tiny_models.tiny(family, task)
        ctx = Context(task, data.__getitem__, teachers.__getitem__)
        step = find("distill/routed").model_validate({**SHORT, "steps": 8, **settings})
        step.apply(student, ctx)
        assert [step for step, _ in ctx.curves["loss/dev"]] == [0, 2, 4, 6, 8]
        return list(student.module.state_dict().values())

    one = trained(**BY_DOMAIN, held_out=["mix"])
    other = trained(teachers=["a", "b"], data=["law", "code"], held_out=["law", "code"])
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    wrong = trained(teachers=["b", "a"], data=["law", "code"], held_out=["law", "code"])
    assert not all(torch.equal(a, b) for a, b in zip(one, wrong, strict=True))


def test_a_row_that_no_teacher_is_for_is_refused_with_its_place() -> None:
    step = find("distill/routed").model_validate({**SHORT, **BY_DOMAIN})
    data = {"mix": mixed("mix", {"law": 1, "cdoe": 2, "tax": 3})}
    told = [*step.check_data(data)]
    assert told[0] == (
        "mix.jsonl:2: no teacher is for the domain 'cdoe'; `domains` are law, code; did you mean "
        "'code'?"
    )
    assert told[1] == "mix.jsonl:3: no teacher is for the domain 'tax'; `domains` are law, code"
    assert told[-1] == "data mix: and 6 more such rows"
    assert len(told) == 21
    (told,) = step.check_data({"mix": Dataset("mix", [Example("x", where="mix.tsv:1")], "")})
    assert told.startswith("mix.tsv:1: this row has no domain")
    teachers = {name: tiny_models.tiny("llama") for name in "ab"}
    ctx = Context("causal-lm", data.__getitem__, teachers.__getitem__)
    with pytest.raises(DataError, match=r"mix\.jsonl:2: no teacher is for"):  # data of a step
        step.apply(tiny_models.tiny("llama"), ctx)
    data["mix"] = mixed("mix", {"law": 1})
    with pytest.raises(DataError, match=r"mix \(code\): no row is there for the teacher 'b'"):
        step.apply(tiny_models.tiny("llama"), ctx)


def test_domains_that_do_not_fit_are_refused() -> None:
    routed = find("distill/routed")
    with pytest.raises(ValueError, match="names 1 for 2 teachers"):
        routed.model_validate({**BY_DOMAIN, "domains": ["law"]})
    with pytest.raises(ValueError, match="all different"):
        routed.model_validate({**BY_DOMAIN, "domains": ["law", "law"]})


@pytest.mark.parametrize("divergence", [*DIVERGENCES, LOGITS], ids=str)
@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_each_teacher_teaches_as_it_would_alone(
    family: str, task: Task, divergence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any divergence, with a weight that moves; scores are taken half way and averaged."""
    teachers = {n: tiny_models.tiny(family, task, seed=s) for s, n in enumerate("ab", 1)}
    student, ctx = tiny_models.tiny(family, task), context(teachers)
    both = {"teachers": ["a", "b"], "data": ["one", "other"], "held_out": ["one", "other"]}
    settings, scores = {**SHORT, **MOVING, **divergence}, []
    turns = Turns([stream("one"), stream("other")], 0)
    for source, (teacher, data) in enumerate((("a", "one"), ("b", "other"))):
        number = next(n for n in range(99) if turns.batch(n).source == source)
        found = costs("distill/routed", {**settings, **both}, student, ctx, monkeypatch, number)
        alone = {**settings, "teacher": teacher, "data": data, "held_out": data}
        one = costs("distill/logits", alone, student, ctx, monkeypatch, batch=found.batch)
        same(found, one)
        alike = {f"{part}/{teacher}": value for part, value in one.losses[0].parts.items()}
        assert found.losses[0].parts == {name: pytest.approx(v) for name, v in alike.items()}
        scores.append(one.score)
    assert found.score == pytest.approx(sum(scores) / 2, rel=1e-5)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_the_weight_moves_evenly(family: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = {n: tiny_models.tiny(family, task, seed=s) for s, n in enumerate("ab", 1)}
    student, ctx = tiny_models.tiny(family, task), context(teachers)
    settings = {**SHORT, "teachers": ["a", "b"], "data": ["one", "other"]}
    ends = [
        costs("distill/routed", {**settings, "weight": w}, student, ctx, monkeypatch).totals
        for w in (1.0, 0.0)
    ]
    assert len({*ends[0]}) == len({*ends[1]}) == 1  # without an end it stays
    divergence, task_loss = ends[0][0], ends[1][0]
    found = costs("distill/routed", {**settings, **MOVING}, student, ctx, monkeypatch)
    wanted = [w * divergence + (1 - w) * task_loss for w in WEIGHTS]
    assert found.totals == pytest.approx(wanted, rel=1e-5)
