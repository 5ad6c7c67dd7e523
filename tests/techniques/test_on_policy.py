"""Distillation on what the student writes: its own words, judged after the prompt alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from attar.core.context import Context
from attar.core.registry import find
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.errors import DataError, TrainingDiverged, UserError
from attar.models.model import Model
from attar.ops.divergence import IGNORED
from attar.techniques.distill.on_policy import OnPolicy
from attar.train.answers import Answers, prompts_in
from attar.train.beginnings import beginnings
from attar.train.machine import Machine
from attar.train.written import Written
from techniques.losing import DIVERGENCES, LOGITS, MOVING, WEIGHTS, costs, mixed, same
from train.small import dataset, equal, weights

SHORT: dict[str, Any] = {
    "batch": 4,
    "length": 16,
    "prompt": 6,
    "steps": 20,
    "learning_rate": 3e-3,
    "evaluate_every": 5,
}


def context(teacher: Model, **more: Any) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    return Context("causal-lm", data.__getitem__, lambda _: teacher, **more)


def written(model: Model, share: float = 1.0, heat: float = 1.0, seed: int = 0) -> Written:
    rows = list(beginnings(dataset(), model.tokenizer, 16, 6))
    answers = Answers(rows, model.tokenizer, 4, 0)
    return Written(answers, model, context(model, seed=seed), 16, share, heat)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jensen-shannon"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_comes_nearer_to_the_teacher(divergence: str, share: float) -> None:
    teacher, student = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    ctx = context(teacher)
    step = {**SHORT, "divergence": divergence, "written": share}
    OnPolicy.model_validate(step).apply(student, ctx)
    losses = [value for _, value in ctx.curves["loss/dev"]]
    assert losses[-1] < losses[0]
    assert ("written tokens" in ctx.notes) == (share > 0)
    assert not student.module.training


def test_the_share_is_spread_evenly() -> None:
    model = tiny_models.tiny("llama")
    source, data = written(model, 0.4), written(model, 0.0)
    own = [
        not torch.equal(source.batch(step).input_ids, data.batch(step).input_ids)
        for step in range(10)
    ]
    assert own == [False, False, True, False, True, False, False, True, False, True]


def test_only_what_follows_the_prompt_is_judged() -> None:
    model = tiny_models.tiny("llama")
    prompts = prompts_in(written(model, 0.0).batch(0))
    assert {len(prompt) for prompt in prompts} == {3, 6}  # of six words half
    for share in (0.0, 1.0):
        batch = written(model, share).batch(0)
        judged = batch.labels != IGNORED
        for prompt, ids, row in zip(prompts, batch.input_ids, judged, strict=True):
            assert ids[: len(prompt)].tolist() == prompt
            assert not row[: len(prompt)].any()
            assert row[len(prompt)]
        assert torch.equal(batch.labels[judged], batch.input_ids[judged])
        assert (batch.attention_mask[judged] == 1).all()


def test_nothing_counts_after_the_end_of_a_text() -> None:
    model = tiny_models.tiny("llama")
    model.module.generation_config.eos_token_id = list(range(6, 60))  # ends often
    batch, prompts = written(model).batch(0), prompts_in(written(model, 0.0).batch(0))
    rows = zip(batch.input_ids, batch.labels, batch.attention_mask, prompts, strict=True)
    for ids, labels, mask, prompt in rows:
        first, room = len(prompt), 16 - max(map(len, prompts))
        words = ids[first : first + room].tolist()
        ends = [place for place, token in enumerate(words) if token in range(6, 60)]
        last = first + (ends[0] if ends else room - 1)
        assert (labels[first : last + 1] == ids[first : last + 1]).all()
        assert (labels[last + 1 :] == IGNORED).all()
        assert mask.tolist() == [1] * (last + 1) + [0] * (len(ids) - last - 1)
    assert (batch.attention_mask == 0).any()


def test_writes_what_the_model_finds_likely() -> None:
    """Nearly without heat it is the likeliest token at each place, found without a cache."""
    model = tiny_models.tiny("llama")
    model.module.generation_config.eos_token_id = None
    batch, prompts = written(model, heat=1e-4).batch(0), prompts_in(written(model, 0.0).batch(0))
    for row, prompt in enumerate(prompts):  # padded beside each other, they are as alone
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(10):
                best = model.module(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, best], 1)
        kept = batch.attention_mask[row].bool()
        assert batch.input_ids[row][kept].tolist() == ids[0].tolist()


def test_a_batch_depends_on_number_and_seed_alone() -> None:
    model = tiny_models.tiny("llama")
    one, other = written(model), written(model)
    torch.manual_seed(3)
    first = [one.batch(step).input_ids for step in (0, 1, 2)]
    again = [other.batch(step).input_ids for step in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], written(model, seed=1).batch(0).input_ids)


def test_a_killed_training_goes_on_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**more: Any) -> dict[str, torch.Tensor]:
        student = tiny_models.tiny("llama")
        settings = {**SHORT, "steps": 8, "checkpoint_minutes": 0, "written": 0.5}
        ctx = context(tiny_models.tiny("llama", seed=1), **more)
        OnPolicy.model_validate(settings).apply(student, ctx)
        return weights(student)

    calm = train()
    whole, taken = Machine.step, 0

    def dying(machine: Machine, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 4:
            raise KeyboardInterrupt
        return whole(machine, *args)

    monkeypatch.setattr(Machine, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(scratch=tmp_path)
    monkeypatch.undo()
    assert equal(train(scratch=tmp_path), calm)


def test_a_training_gone_astray_says_so() -> None:
    student = tiny_models.tiny("llama")
    settings = {**SHORT, "written": 1.0, "learning_rate": 1e30, "warmup": 0.0}
    with pytest.raises(TrainingDiverged, match="went astray at step"):
        OnPolicy.model_validate(settings).apply(student, context(tiny_models.tiny("llama", seed=1)))


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        OnPolicy(prompt=32, length=32)


@pytest.mark.parametrize("divergence", [*DIVERGENCES, LOGITS], ids=str)
def test_what_the_student_wrote_is_no_label(
    divergence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the data's own words the loss is that of distill/logits, on others the divergence."""
    student, ctx = tiny_models.tiny("llama"), context(tiny_models.tiny("llama", seed=1))
    settings = {**SHORT, **MOVING, **divergence}
    data = costs("distill/on-policy", settings, student, ctx, monkeypatch, 0)
    plain = {name: value for name, value in settings.items() if name != "prompt"}
    one = costs("distill/logits", plain, student, ctx, monkeypatch, batch=data.batch)
    same(data, one)
    assert data.score == pytest.approx(one.score, rel=1e-5)
    parts = data.losses[0].parts
    assert data.totals == mixed(parts["divergence"][0], parts["task"][0])

    own = costs("distill/on-policy", settings, student, ctx, monkeypatch, 1)
    assert all(set(loss.parts) == {"divergence"} for loss in own.losses)
    as_data = Batch(own.batch.input_ids, own.batch.attention_mask, own.batch.labels)
    whole = {**plain, "weight": 1.0, "weight_end": None}
    alone = costs("distill/logits", whole, student, ctx, monkeypatch, batch=as_data)
    assert own.totals == pytest.approx([w * alone.totals[0] for w in WEIGHTS], rel=1e-5)
    for weight, slopes in zip(WEIGHTS, own.slopes, strict=True):
        for found, wanted in zip(slopes, alone.slopes[0], strict=True):
            torch.testing.assert_close(found, weight * wanted, atol=1e-6, rtol=1e-4)
    assert own.losses[0].count == alone.losses[0].count


def test_a_task_that_no_words_are_there_for_is_refused() -> None:
    for weights_ in ({"weight": 0.5}, {"weight_end": 0.0}):
        with pytest.raises(ValueError, match="no words are the data's own"):
            OnPolicy.model_validate({"written": 1.0, **weights_})
    OnPolicy(written=1.0, weight_end=1.0)


def chat(*said: str) -> Example:
    """A question, an answer, and so on."""
    roles = ("user", "assistant")
    turns = enumerate(said)
    return Example("", messages=tuple({"role": roles[at % 2], "content": s} for at, s in turns))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_question_is_whole_and_its_answer_is_written_anew(share: float) -> None:
    """What is too long is left out, and what has no answer where the data's is wanted."""
    teacher, student = tiny_models.tiny("llama", seed=1), tiny_models.tiny("llama")
    student.tokenizer = speaking(CHAT)
    rows = [
        chat("w1 w2 w3 w4 w5", "w6 w7"),
        chat("w8", "w9", "w10", "w11"),
        chat("w20"),
        chat(" ".join(["w30"] * 20), "w31"),
    ]
    data = {"train": Dataset("train", rows, "")}
    ctx = Context("causal-lm", data.__getitem__, lambda _: teacher)
    step = OnPolicy.model_validate({**SHORT, "prompt": 2, "written": share, "batch": 4})
    batch = step.stream(student, ctx).batch(0)
    read = student.tokenizer.decode
    found = {read(prompt) for prompt in prompts_in(batch)}
    alone = {"w20 [SEP]"} if share else set[str]()
    assert found == {"w1 w2 w3 w4 w5 [SEP]", "w8 [SEP] w9 [SEP] w10 [SEP]"} | alone
    assert ctx.warnings[0].startswith(f"{2 - int(share)} of 4 rows are left out")
    if not share:
        answers = {read(row[row != IGNORED]) for row in batch.labels}
        assert answers == {"w6 w7 [SEP]", "w11 [SEP]"}
    step.apply(student, ctx)
    data["train"] = Dataset("train", rows[-1:], "")
    with pytest.raises(UserError, match="none of 1 rows of 'train' can be used: their prompts"):
        step.apply(student, ctx)


def speaking(template: str) -> Any:
    """A tokenizer of its own that writes chats."""
    found = copy.deepcopy(tiny_models.tokenizer())
    found.chat_template = template
    return found


@pytest.mark.parametrize("kind", ["distill/on-policy", "distill/sequence"])
def test_a_chat_that_the_template_refuses_is_told(kind: str) -> None:
    model = tiny_models.tiny("llama")
    model.tokenizer = speaking("{{ raise_exception('roles must alternate') }}")
    chat = Example("", messages=({"role": "user", "content": "w1"},), where="chat.jsonl:3")
    data = Dataset("train", [chat], "")
    ctx = Context("causal-lm", lambda _: data, lambda _: model)
    with pytest.raises(DataError, match=r"chat.jsonl:3.*roles must alternate"):
        find(kind).model_validate({"steps": 1, "held_out": None}).apply(model, ctx)


CHAT = "{% for m in messages %}{{ m.content }} [SEP] {% endfor %}"
