"""Few parameters: what is trained, what stays, and who reads it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_models
from attar.core import registry
from attar.core.context import Context
from attar.core.recipe import Recipe
from attar.core.traits import ADAPTER
from attar.engine.fold import fold
from attar.errors import MissingPackage, ModelError, UserError
from attar.models import adapters, load, save
from attar.models.load import config_of
from attar.models.model import Model
from attar.models.source import Files
from attar.models.traits import traits_of
from attar.train import machine
from conformance.test_every_kind import press, start
from train.small import dataset, equal, weights

SHORT: dict[str, Any] = {"batch": 4, "length": 16, "steps": 12, "learning_rate": 0.01}
PROMPT: dict[str, Any] = {**SHORT, "size": 3, "learning_rate": 0.03}
UPDATED = [kind for kind in registry.kinds() if "update" in registry.find(kind).model_fields]
PLACES = [("llama", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "classification")]


def context(model: Model, **more: Any) -> Context:
    data = {"train": dataset(), "dev": dataset("dev", 12)}
    teacher = tiny_models.tiny(model.config.model_type, model.task, seed=1)
    return Context(model.task, data.__getitem__, lambda _: teacher, **more)


def step(kind: str, model: Model, settings: dict[str, Any], ctx: Context | None = None) -> Context:
    ctx = ctx or context(model)
    registry.find(kind).model_validate(settings).apply(model, ctx)
    return ctx


def told(model: Model, *steps: dict[str, Any]) -> list[str]:
    """What the plan has against these steps."""
    recipe = Recipe.model_validate(
        {"model": "m", "data": {"train": "t.txt"}, "steps": list(steps), "task": model.task}
    )

    class Inputs:
        task = model.task
        config = model.config

    facts = model.facts()
    traits = traits_of(model.module, facts)
    return fold(recipe, Inputs(), facts, traits, 16.0).problems  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("adapt/lora", SHORT),
        ("adapt/dora", SHORT),
        ("prompt/soft", PROMPT),
        ("prompt/p-tuning", {**PROMPT, "learning_rate": 0.01}),
        ("prompt/prefix", PROMPT),
    ],
)
def test_the_loss_falls_and_only_few_have_moments(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    own = machine.Machine.__exit__

    def watched(self: Any, *args: object) -> None:
        held.append(sum(len(s["exp_avg"].flatten()) for s in self.optimizer.state.values()))
        own(self, *args)

    monkeypatch.setattr(machine.Machine, "__exit__", watched)
    model = tiny_models.tiny("llama")
    ctx = step(kind, model, {**settings, "steps": 30, "evaluate_every": 1})
    losses = [loss for _, loss in ctx.curves["loss/dev"]]
    assert min(losses) < losses[0] - 0.05
    assert ctx.notes["trained"] == f"{held[0]:,} numbers".replace(",", " ")
    assert held[0] < model.parameters_count() / 2


@pytest.mark.parametrize(
    ("kind", "family", "task"),
    [*(("adapt/lora", *place) for place in PLACES), ("adapt/dora", "gpt2", "causal-lm")],
)
def test_merged_is_what_the_adapter_makes(kind: str, family: str, task: Any) -> None:
    merged, kept = tiny_models.tiny(family, task), tiny_models.tiny(family, task)
    before = weights(kept)
    step(kind, merged, SHORT)
    step(kind, kept, {**SHORT, "leaves": "adapter"})
    torch.testing.assert_close(tiny_models.logits(merged), tiny_models.logits(kept), **NEAR)
    after = adapters.without(weights(kept))
    head = {name for name in before if name.startswith(("classifier", "bert.pooler"))}
    assert after.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= head
    assert merged.module.state_dict().keys() == before.keys()


NEAR: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("adapt/lora", torch.float32), ("adapt/lora", torch.bfloat16), ("adapt/dora", torch.float32)],
)
def test_an_adapter_that_is_kept_is_read_by_everyone(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_models.tiny("llama", dtype=dtype)
    step(kind, model, {**SHORT, "steps": 3, "leaves": "adapter", "scope": ["attention"]})
    expected = tiny_models.logits(model)
    save(model, tmp_path)
    again = load(Files(tmp_path))
    assert torch.equal(tiny_models.logits(again), expected)
    assert again.facts() == model.facts()
    given = tiny_models.batch(model)
    plain = again.module
    if kind == "adapt/lora":
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    base = tiny_models.tiny("llama", dtype=dtype).module  # whose weights nothing has changed
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False).eval()
    for module in (plain, theirs):
        with torch.no_grad():
            found = module(input_ids=given.input_ids, attention_mask=given.attention_mask).logits
        assert torch.equal(found[given.attention_mask.bool()], expected)
    save(again, tmp_path / "again")
    assert torch.equal(tiny_models.logits(load(Files(tmp_path / "again"))), expected)


def test_no_step_comes_after_what_was_learned_with_the_weights_as_they_are() -> None:
    model = tiny_models.tiny("llama")
    lora = {"adapt/lora": {"leaves": "adapter"}}
    for first in (lora, {"prompt/soft": {}}, {"distill/logits": {"update": {"prefix": {}}}}):
        (problem,) = told(model, first, {"quantize/rtn": {}})
        assert "needs weights that are not adapter, but step 1" in problem
        assert told(model, {"adapt/lora": {}}, {"quantize/rtn": {}}) == []
    assert told(model, {"quantize/rtn": {}}, {"prompt/soft": {}}) == []
    (problem,) = told(model, {"prune/magnitude": {}}, {"adapt/lora": {}})
    assert "not masked" in problem
    step("prompt/soft", model, {**PROMPT, "steps": 1})
    (problem,) = told(model, {"quantize/rtn": {}})
    assert "but the original left" in problem


def test_the_plan_knows_an_adapter_by_its_file(tmp_path: Path) -> None:
    model = tiny_models.tiny("llama")
    step("adapt/lora", model, {**SHORT, "steps": 1, "leaves": "adapter", "scope": ["*.up_proj"]})
    save(model, tmp_path)
    names = adapters.adapted_in(tmp_path)
    assert names == [f"model.layers.{index}.mlp.up_proj" for index in range(3)]
    empty = tiny_models.tiny("llama")
    traits = traits_of(empty.module, empty.facts(), names)
    assert {name for name, found in traits.items() if ADAPTER in found} == set(names)


@pytest.mark.parametrize(
    "update",
    [{"lora": {"rank": 4}}, {"prefix": {"size": 3}}, {"soft": {"size": 3}}],
    ids=lambda update: next(iter(update)),
)
def test_a_student_learns_from_a_teacher_by_few_numbers(update: dict[str, Any]) -> None:
    student = tiny_models.tiny("llama")
    before = weights(student)
    settings = {**SHORT, "steps": 30, "evaluate_every": 1, "update": update, "learning_rate": 0.02}
    ctx = step("distill/logits", student, settings)
    losses = [loss for _, loss in ctx.curves["loss/dev"]]
    assert min(losses) < 0.98 * losses[0]
    if "lora" not in update:
        after = {n: t for n, t in weights(student).items() if not n.startswith("prompt.")}
        assert equal(before, after)


SIGNALS = ("distill/attention", "distill/hidden")
LEFT: list[dict[str, Any]] = [
    {"lora": {"leaves": "adapter"}},
    {"dora": {"leaves": "adapter"}},
    *({name: {"size": 3}} for name in ("soft", "p_tuning", "prefix")),
]


@pytest.mark.parametrize("update", LEFT, ids=lambda update: next(iter(update)))
@pytest.mark.parametrize("kind", UPDATED)
def test_every_distillation_with_the_setting_leaves_the_weights(
    kind: str, update: dict[str, Any], tmp_path: Path
) -> None:
    place = ("bert", "embedding") if kind == "distill/embedding" else ("llama", "causal-lm")
    if place[1] == "embedding" and not {"lora", "dora"} & update.keys():
        pytest.skip("prompts are for models that write")
    if kind in SIGNALS and {"soft", "p_tuning"} & update.keys():
        (problem,) = told(tiny_models.tiny("llama"), {kind: {"update": update}})
        assert "signals do not compare" in problem
        return
    student = start(kind, *place)
    before = {name: value.clone() for name, value in weights(student).items()}
    student = press(kind, student, tmp_path, update=update)
    after = weights(student)
    if {"lora", "dora"} & update.keys():  # the second matrix begins as zeros
        assert any(bool(value.any()) for name, value in after.items() if "lora_B" in name)
    held = {name.replace(".base_layer", ""): value for name, value in after.items()}
    assert all(torch.equal(value, held[name]) for name, value in before.items())
    assert len(after) > len(before)
    found = traits_of(student.module, student.facts())
    assert any(ADAPTER in each for each in found.values())


@pytest.mark.parametrize("update", LEFT[2:], ids=lambda update: next(iter(update)))
@pytest.mark.parametrize(
    "kind", ["distill/cross-tokenizer", "distill/multi-teacher", "distill/routed"]
)
def test_a_prompt_learns_from_several_teachers_and_from_other_tokens(
    kind: str, update: dict[str, Any]
) -> None:
    student = tiny_models.tiny("llama")
    settings = {"distill/cross-tokenizer": {"teacher": "one", "weight": 1.0}}.get(kind)
    settings = settings or {"teachers": ["one", "other"]}
    if kind == "distill/routed":
        settings |= {"data": ["train", "dev"], "held_out": ["train", "dev"]}
    more = {"steps": 40, "learning_rate": 0.05, "weight_decay": 0.0, "evaluate_every": 10}
    ctx = step(kind, student, {**SHORT, **settings, **more, "update": update})
    losses = [loss for _, loss in ctx.curves["loss/dev"]]
    assert losses[-1] < 0.97 * losses[0]


def test_signals_and_few_numbers() -> None:
    student = tiny_models.tiny("llama")
    for kind in ("distill/hidden", "distill/attention"):
        step(kind, student, {**SHORT, "steps": 2, "update": {"lora": {}}})
        (problem,) = told(student, {kind: {"update": {"soft": {}}}})
        assert "signals do not compare" in problem
    also = {"also": {"hidden": {}}, "update": {"p_tuning": {}}}
    (problem,) = told(student, {"distill/logits": also})
    assert "signals do not compare" in problem
    step("distill/logits", student, {**SHORT, **also, "steps": 2, "update": {"prefix": {}}})
    with pytest.raises(ValueError, match="lora and soft both say what is trained"):
        registry.find("distill/logits").model_validate({"update": {"lora": {}, "soft": {}}})


def test_prompts_are_for_models_that_write_and_have_room() -> None:
    encoder = tiny_models.tiny("bert", "masked-lm")
    with pytest.raises(UserError, match="one for masked-lm"):
        step("distill/logits", encoder, {**SHORT, "update": {"soft": {}}})
    with pytest.raises(UserError, match="do not fit the model's 64 positions"):
        step("prompt/soft", tiny_models.tiny("gpt2"), {**PROMPT, "size": 50})


def test_few_numbers_take_little_memory() -> None:
    cls = registry.find("distill/logits")
    assert cls().bytes_each() == 16
    assert cls(update={"lora": {}}).bytes_each() == 4


def test_a_prompt_begins_as_its_text() -> None:
    model = tiny_models.tiny("llama")
    step("prompt/soft", model, {**PROMPT, "steps": 1, "learning_rate": 1e-12, "text": "w3 w4"})
    table = model.module.get_input_embeddings().weight
    ids = model.tokenizer("w3 w4 w3", add_special_tokens=False).input_ids
    torch.testing.assert_close(model.module.prompt.weight, table[ids], atol=1e-6, rtol=0)


def test_prompts_and_rounded_weights() -> None:
    model = tiny_models.press(tiny_models.tiny("llama"))
    before = weights(model)
    step("prompt/prefix", model, {**PROMPT, "steps": 2})
    assert equal(before, {n: t for n, t in weights(model).items() if n != "prompt.weight"})


def test_without_peft_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tiny_models.tiny("llama")
    step("adapt/lora", model, {**SHORT, "steps": 1, "leaves": "adapter"})
    save(model, tmp_path)
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'attar\[peft\]'"):
        step("adapt/lora", tiny_models.tiny("llama"), SHORT)
    with pytest.raises(MissingPackage):
        config_of(Files(tmp_path))


def test_weights_that_are_missing_beside_an_adapter(tmp_path: Path) -> None:
    model = tiny_models.tiny("llama")
    step("adapt/lora", model, {**SHORT, "steps": 1, "leaves": "adapter"})
    save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.self_attn.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the tensors.*layers.1.self_attn.q_proj"):
        load(Files(tmp_path))


def test_no_adapter_of_an_earlier_model_stays(tmp_path: Path) -> None:
    model = tiny_models.tiny("llama")
    step("adapt/lora", model, {**SHORT, "steps": 1, "leaves": "adapter"})
    save(model, tmp_path)
    plain = tiny_models.tiny("llama", seed=3)
    save(plain, tmp_path)
    assert torch.equal(tiny_models.logits(load(Files(tmp_path))), tiny_models.logits(plain))


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    save(tiny_models.tiny("llama"), tmp_path)
    (tmp_path / adapters.CONFIG).write_text('{"peft_type": "PROMPT_TUNING"}', "utf-8")
    with pytest.raises(ModelError, match="names PROMPT_TUNING"):
        load(Files(tmp_path))
    (tmp_path / adapters.CONFIG).write_text('{"peft_type": ', "utf-8")
    with pytest.raises(ModelError, match="not valid JSON"):
        load(Files(tmp_path))


@pytest.mark.parametrize("kind", ["distill/attention", "distill/logits"])
def test_a_prefix_and_maps_are_refused_together(kind: str) -> None:
    """Its columns stand in the student's maps, and not in the teacher's."""
    model, update = tiny_models.tiny("llama"), {"prefix": {"size": 3}}
    for relations in (["maps"], ["queries", "keys"]):
        own = {"relations": relations}
        more = own if kind == "distill/attention" else {"also": {"attention": own}}
        found = told(model, {kind: {**SHORT, "update": update, **more}})
        refused = any("a prefix gives attention's maps more columns" in text for text in found)
        assert refused == (relations == ["maps"]), found
        assert not told(model, {kind: {**SHORT, "update": {"lora": {}}, **more}})
