"""Distillation between tokenizers that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.data.batches import IGNORED
from attar.data.example import Dataset, Example
from attar.data.paired import PairedBatch, PairedRows
from attar.data.spelling import Spelling, shared
from attar.errors import UserError
from attar.models.model import Model
from attar.ops.spans import Common
from attar.train import paired
from attar.train.losses import Objective, judge, plain
from attar.train.paired import PairedObjective
from attar.train.rows import held_out_of
from techniques.losing import MOVING, costs, mixed
from train.small import equal, weights

LINES = [
    f"the {a} {b} saw the {c} and the {c} saw the {a}"
    for a in ("old", "young", "white", "wise")
    for b in ("whale", "sailor", "captain")
    for c in ("harpoon", "island", "lantern", "mainmast")
]
SHORT: dict[str, Any] = {"teacher": "other", "batch": 4, "length": 32, "steps": 30}
DATA = {
    "train": Dataset("train", [Example(line) for line in LINES[:40]], "a"),
    "dev": Dataset("dev", [Example(line) for line in LINES[40:]], "b"),
}


def byte_level(size: int) -> Any:
    plain = Tokenizer(kinds.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", pad_token="<end>"
    )


def model(size: int, seed: int = 0, kind: str = "llama", **config: Any) -> Model:
    tokenizer = byte_level(size)
    found = tiny_models.tiny(kind, vocab_size=len(tokenizer), seed=seed, **config)
    found.tokenizer = tokenizer
    return found


@pytest.fixture(scope="module")
def teacher() -> Model:
    """A model of larger tokens, that has learned the texts."""
    found = model(320, seed=1)
    settings = {"steps": 40, "batch": 8, "length": 32, "learning_rate": 1e-2}
    return find("adapt/full").model_validate(settings).apply(found, context(found))


def context(teacher: Model, **more: Any) -> Context:
    return Context("causal-lm", DATA.__getitem__, lambda _: teacher, **more)


def learn(student: Model, ctx: Context, **settings: Any) -> Model:
    step = find("distill/cross-tokenizer").model_validate({**SHORT, **settings})
    return step.apply(student, ctx)


@pytest.mark.parametrize("matching", ["merged", "sorted"])
def test_comes_nearer_to_the_teacher(teacher: Model, matching: str) -> None:
    ctx = context(teacher)
    learn(model(270), ctx, matching=matching, weight=1.0, learning_rate=3e-3, evaluate_every=10)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < 0.9 * losses[0]
    assert ctx.notes["shared_tokens"] >= 257  # all bytes, and the end of a text
    assert ctx.notes["aligned_characters"] == 1.0


def test_what_the_teacher_says_of_spans_teaches_the_student_its_language(teacher: Model) -> None:
    """Without one label of its own, the student predicts the texts better than before."""

    def surprise(student: Model) -> float:
        step = find("adapt/full").model_validate({"batch": 4, "length": 32})
        held = held_out_of("dev", student, step, context(student))  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            return judge(Objective(student), held, plain(1.0))()

    student = model(270)
    before = surprise(student)
    learn(student, context(teacher), weight=1.0, learning_rate=3e-3, steps=60)
    assert surprise(student) < 0.7 * before


def objective(own: Model, theirs: Model, matching: Any, weight: float = 0.5) -> PairedObjective:
    table = torch.tensor(shared(Spelling(own.tokenizer, "a"), Spelling(theirs.tokenizer, "b")))
    common = Common.of(table[:, 0], table[:, 1], own.config.vocab_size, theirs.config.vocab_size)
    return PairedObjective(own, theirs, common, matching, lambda _: weight)


def batch(own: Model, theirs: Model) -> PairedBatch:
    sides = Spelling(own.tokenizer, "student"), Spelling(theirs.tokenizer, "teacher")
    found = PairedRows(DATA["train"], *sides, (32, 32)).batch([0, 1, 2], [])
    assert isinstance(found, PairedBatch)
    return found


@pytest.mark.parametrize("matching", ["merged", "sorted"])
def test_pieces_make_no_difference(
    teacher: Model, matching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = model(270)
    found: list[tuple[float, dict[str, torch.Tensor | None]]] = []
    for size in (10_000, 7):
        monkeypatch.setattr(paired, "_PIECE", size)
        student.module.zero_grad()
        loss = objective(student, teacher, matching)(batch(student, teacher), 0.0)
        loss.value.backward()
        grads = {n: p.grad for n, p in student.module.named_parameters()}
        found.append((float(loss.value.detach()), grads))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, grad in found[0][1].items():
        other = found[1][1][name]
        assert grad is not None
        assert other is not None
        assert torch.allclose(grad, other, rtol=1e-3, atol=1e-5), name


def test_with_one_tokenizer_it_is_the_plain_divergence() -> None:
    """Every span is a token, so it is the mean KL over all positions."""
    student, twin = model(270), model(270, seed=3)
    given = batch(student, twin)
    loss = objective(student, twin, "merged", 1.0)(given, 0.0)
    with torch.no_grad():
        sides = [one.logits(given)[:, :-1].double().log_softmax(-1) for one in (student, twin)]
    each = (sides[1].exp() * (sides[1] - sides[0])).sum(-1)
    wanted = each[given.labels[:, 1:] != IGNORED].mean()
    assert float(loss.value.detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert loss.parts["others"][0] == 0.0


def test_the_teacher_stays_as_it_is_and_the_same_seed_gives_the_same(teacher: Model) -> None:
    before = weights(teacher)
    pair = [weights(learn(model(270), context(teacher), steps=3)) for _ in range(2)]
    assert equal(weights(teacher), before)
    assert equal(*pair)


def test_bf16_makes_little_difference(teacher: Model) -> None:
    ends: list[float] = []
    for precision in ("float32", "bf16"):
        ctx = context(teacher, precision=precision)
        learn(model(270), ctx, learning_rate=3e-3, steps=8)
        ends.append(ctx.curves["loss/dev"][-1][1])
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def lower_cased(found: Model) -> None:
    from tokenizers import normalizers

    found.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("e", "E")


def slow(found: Model) -> None:
    found.tokenizer = type("Slow", (), {"is_fast": False})()


def of_another_task(found: Model) -> None:
    found.task = "masked-lm"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lower_cased, r"spell \d+\.\d% of \d+ characters .* not given back by the teacher's"),
        (slow, "the teacher's tokenizer does not say which characters"),
        (of_another_task, "take a teacher of the same task"),
    ],
)
def test_a_wrong_pairing_is_refused(change: Callable[[Model], None], why: str) -> None:
    other, student = model(320, seed=1), model(270)
    change(other)
    before = weights(student)
    with pytest.raises(UserError, match=why):
        learn(student, context(other))
    assert equal(weights(student), before)


def test_a_length_beyond_either_table_of_positions_is_refused() -> None:
    few = {"kind": "gpt2", "max_position_embeddings": 24}
    for own, theirs in (({}, few), (few, {})):
        with pytest.raises(UserError, match=r"32 tokens .* 24 positions.* length: 24"):
            learn(model(270, **own), context(model(320, **theirs)))


def test_other_kinds_name_this_one(teacher: Model) -> None:
    with pytest.raises(UserError, match=r"different vocabularies.*distill/cross-tokenizer"):
        find("distill/logits").model_validate({"steps": 1}).apply(model(270), context(teacher))


def test_a_teacher_is_asked_for() -> None:
    with pytest.raises(ValueError, match="teacher"):
        find("distill/cross-tokenizer").model_validate({})


@pytest.mark.parametrize("matching", ["merged", "sorted"])
def test_the_weight_moves_evenly(
    teacher: Model, matching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, kind = model(270), "distill/cross-tokenizer"
    settings = {**SHORT, **MOVING, "matching": matching}
    found = costs(kind, settings, student, context(teacher), monkeypatch)
    with torch.no_grad():
        distance, task = (
            float(objective(student, teacher, matching, weight)(found.batch, 0.0).value)
            for weight in (1.0, 0.0)
        )
    logits = student.logits(found.batch)[:, :-1].detach().double()
    labels = found.batch.labels[:, 1:]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert task == pytest.approx(float(wanted), rel=1e-4)
    assert found.totals == mixed(distance, task)
    half_way = {**settings, "weight": 0.5, "weight_end": None}
    assert found.score == costs(kind, half_way, student, context(teacher), monkeypatch).score
