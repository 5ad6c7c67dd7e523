"""distill/contrastive: its loss by transformers' own outputs, what it learns, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import tiny_media
import tiny_models
from attar import run
from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.data.batches import held_out
from attar.errors import DataError, ExportError, PlanError, UserError
from attar.export.export import export
from attar.measure.probe import Request, measure
from attar.measure.quality import computes_nan, judge
from attar.measure.statistics import compare, figures
from attar.models import Model, load, save
from attar.models.source import Files
from attar.serve.locating import locate
from attar.serve.settings import Source
from attar.techniques.adapt.full import Full
from attar.techniques.distill.contrastive import Contrastive
from attar.techniques.distill.logits import Logits
from attar.train.teacher import check_fits, fixed
from attar.train.towers import Weights, matching, same_texts

FAST = {"steps": 20, "batch": 8, "length": 16, "learning_rate": 3e-3, "held_out": None}


def clip(seed: int = 0, **more: object) -> Model:
    """Of weights near enough to nothing that 30 steps learn something."""
    return tiny_media.tiny("clip", seed, initializer_range=0.05, **more)


def context(model: Model, folder: Path, teacher: Model | None = None) -> Context:
    data = tiny_media.dataset(model, folder)
    return Context(model.task, lambda _: data, lambda _: teacher, scratch=None)


def wanted(student: Model, teacher: Model, weights: Weights) -> tuple[float, float]:
    """The loss by transformers' forward passes and float64, and by ours."""
    batch = tiny_media.batch(student, rows=4)
    batch.input_ids[2] = batch.input_ids[0]  # the same text twice
    texts = [0, 1, 0, 3]
    with torch.no_grad():
        own, other = (model.module(**model.given(batch)) for model in (student, teacher))
    mine, theirs = (out.logits_per_image.double() for out in (own, other))
    task = relations = 0.0
    for one, two in ((mine, theirs), (mine.t(), theirs.t())):
        p, q = two.softmax(-1), one.softmax(-1)
        relations += float((p * (p / q).log()).sum(-1).mean()) / 2
        for row in range(4):
            same = [column for column in range(4) if texts[column] == texts[row]]
            task -= sum(math.log(q[row, column]) for column in same) / len(same) / 8
    vectors = [(own.image_embeds, other.image_embeds), (own.text_embeds, other.text_embeds)]
    missed = [float((a.double() - b.double()).square().sum(-1).mean()) for a, b in vectors]
    total = weights.task * task + weights.relations * relations
    total += weights.features * sum(missed) / 2
    with matching(student, fixed(teacher, student, "cpu", "float32"), weights, batch) as loss:
        found = loss(batch, 0.0)
    assert found.parts["task"][0] == pytest.approx(task, rel=1e-4)
    return total, float(found.value.detach())


@pytest.mark.parametrize(
    "weights", [Weights(1, 0, 0), Weights(0, 2, 0), Weights(0, 0, 3), Weights(1, 2, 3)]
)
def test_the_loss_is_that_of_what_transformers_puts_out(weights):
    student, teacher = tiny_media.tiny("clip", 1), tiny_media.tiny("clip", 2)
    expected, found = wanted(student, teacher, weights)
    assert found == pytest.approx(expected, rel=1e-4)


def test_texts_are_the_same_whatever_pads_them():
    batch = tiny_media.batch(clip(), 3)
    batch.input_ids[1] = batch.input_ids[0]
    batch.attention_mask[1, 6:] = 0
    batch.attention_mask[0, 6:] = 0
    batch.input_ids[0, 6:] = 77
    assert same_texts(batch).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


@pytest.mark.parametrize("width", [24, 40])
def test_a_student_comes_nearer_to_its_teacher(width, tmp_path):
    """Of another width too: a linear brings it to the teacher's, and is left behind."""
    teacher = clip(1, projection_dim=width)
    Full.model_validate({**FAST, "steps": 20}).apply(teacher, context(teacher, tmp_path))
    student = clip(2)
    names = list(student.module.state_dict())
    batch = tiny_media.batch(student)
    settings = {**FAST, "relations": 1.0, "features": 1.0, "interactive": 1.0}
    ctx = context(student, tmp_path, teacher)
    data = held_out(ctx.data("train"), student.tokenizer, "contrastive", 16, 12, None)[0]

    def apart() -> float:
        told = fixed(teacher, student, "cpu", "float32")
        with matching(student, told, Weights(0, 1), data) as loss, torch.no_grad():
            return loss(data, 0.0).parts["relations"][0]

    before = apart()
    pressed = Contrastive.model_validate(settings).apply(student, ctx)
    assert apart() < before / 2
    assert list(pressed.module.state_dict()) == names
    assert pressed.module(**pressed.given(batch)).logits_per_image.isfinite().all()


def test_judged_are_images_among_the_texts_of_the_data(tmp_path):
    model, other = tiny_media.tiny("clip", 1), tiny_media.tiny("clip", 2)
    data = tiny_media.dataset(model, tmp_path, 7)
    data.examples[5] = data.examples[5].__class__(
        data.examples[0].text, where="x", media=data.examples[5].media
    )  # six texts for seven images
    batches = held_out(data, model.tokenizer, "contrastive", 16, 3, None)
    items = judge(model, batches, other)
    base = judge(other, batches)
    assert items.targets == [0, 1, 2, 3, 4, 0, 5]
    logits: list[torch.Tensor] = []
    for one in (model, other):
        read = held_out(data, one.tokenizer, "contrastive", 16, 7, None)[0]
        with torch.no_grad():
            every = one.module(**one.given(read)).logits_per_image.double()
        logits.append(every[:, [0, 1, 2, 3, 4, 6]])
    own, theirs = (each.log_softmax(-1) for each in logits)
    assert items.predictions == own.argmax(-1).tolist()
    assert items.nll == pytest.approx(
        [-float(own[row, target]) for row, target in enumerate(items.targets)], rel=1e-4
    )
    kl = (theirs.exp() * (theirs - own)).sum(-1).tolist()
    assert items.kl == pytest.approx(kl, rel=1e-3, abs=1e-5)
    found = figures(items, base, "contrastive")
    hits = sum(a == b for a, b in zip(items.predictions, items.targets, strict=True))
    assert found["accuracy"].value == pytest.approx(100 * hits / 7)
    assert found["kl"].unit == "nats/image"
    assert compare(items, base).accuracy_drop is not None


@pytest.mark.parametrize(("model_type", "task"), tiny_media.MODELS)
def test_what_computes_nan_is_found(model_type, task):
    model = tiny_media.tiny(model_type)
    assert not computes_nan(model)
    with torch.no_grad():
        next(model.module.parameters()).fill_(math.nan)
    assert computes_nan(model)


def two_folders(tmp_path: Path, build: Callable[[int], Model]) -> tuple[Path, Path]:
    for number, name in enumerate(("teacher", "student")):
        save(build(number), tmp_path / name)
    return tmp_path / "teacher", tmp_path / "student"


def recipe(tmp_path: Path, student: Path, ending: str, *steps: dict[str, object]) -> dict:
    for part in ("train", "test"):
        for number in range(8):
            name = f"data/{part}/{('low', 'high')[number % 2]}/{part}{number}"
            if ending == "wav":
                pitch = (300 if number % 2 == 0 else 2000) + 10 * number + (part == "test")
                tiny_media.write_tone(tmp_path / f"{name}.wav", pitch)
            else:
                tiny_media.write_image(tmp_path / f"{name}.png", number + 20 * (part == "test"))
    read = {"path": str(tmp_path / "data"), "format": "folder", "caption": "w1 {label}"}
    return {
        "model": {"path": str(student), "fresh": True},
        "data": {part: {**read, "split": part} for part in ("train", "test")},
        "steps": list(steps),
        "measures": {"speed": False},
        "guard": {"enabled": False},
        "precision": "float32",
    }


def test_a_recipe_of_two_towers_runs_whole(tmp_path):
    teacher, student = two_folders(tmp_path, lambda seed: clip(seed))
    step = {"distill/contrastive": {**FAST, "steps": 2, "teacher": str(teacher)}}
    found = run(recipe(tmp_path, student, "png", step), home=tmp_path / "home")
    rows = {row.id: row for row in found.report.stages}
    assert set(rows) == {"original", "contrastive"}
    assert 0 <= rows["contrastive"].figures["accuracy"].value <= 100
    assert "kl" in rows["contrastive"].figures
    again = found.load()
    assert (again.task, type(again.tokenizer).__name__) == ("contrastive", "CLIPProcessor")


@pytest.mark.parametrize(
    ("model_type", "ending"), [("vit", "png"), ("audio-spectrogram-transformer", "wav")]
)
def test_a_recipe_of_a_classifier_runs_whole(model_type, ending, tmp_path):
    """A teacher is made for the labels of the data, and a fresh student learns from it."""
    _, folder = two_folders(tmp_path, lambda seed: tiny_media.tiny(model_type, seed))
    full = {"adapt/full": {**FAST, "steps": 2, "id": "taught"}}
    made = run(recipe(tmp_path, folder, ending, full), home=tmp_path / "home")
    step = {"distill/logits": {**FAST, "steps": 2, "teacher": str(made.path)}}
    found = run(recipe(tmp_path, folder, ending, step), home=tmp_path / "home")
    assert found.load().labels == ("high", "low")
    assert found.report.stages[-1].figures["accuracy"].unit == "%"


def test_a_step_for_texts_is_refused_before_anything_loads(tmp_path):
    _, folder = two_folders(tmp_path, lambda seed: tiny_media.tiny("vit", seed))
    step = {"quantize/gptq": {}}
    with pytest.raises(PlanError, match="models that read text"):
        run(recipe(tmp_path, folder, "png", step), home=tmp_path / "home")
    _, folder = two_folders(tmp_path, clip)
    with pytest.raises(PlanError, match=r"works for causal-lm.*task is contrastive"):
        run(recipe(tmp_path, folder, "png", step), home=tmp_path / "home")


def test_data_of_texts_for_a_model_that_sees_is_refused(tmp_path):
    _, folder = two_folders(tmp_path, lambda seed: tiny_media.tiny("vit", seed))
    wrong = recipe(tmp_path, folder, "png")
    (tmp_path / "a.tsv").write_text("one\tlow\ntwo\thigh\n")
    wrong["data"] = {"test": {"path": str(tmp_path / "a.tsv")}}
    with pytest.raises(DataError, match="Set media: COLUMN"):
        run(wrong, home=tmp_path / "home")


def test_a_teacher_that_sees_otherwise_is_refused():
    import copy

    student, teacher = tiny_media.tiny("vit"), tiny_media.tiny("vit", 1)
    teacher.tokenizer = copy.deepcopy(teacher.tokenizer)
    teacher.tokenizer.image_mean = [0.4, 0.4, 0.4]
    with pytest.raises(UserError, match="image_mean"):
        check_fits(teacher, student, 64)
    with pytest.raises(UserError, match="shape"):
        check_fits(tiny_media.tiny("vit", image_size=32), student, 64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"cache": {}}, "kept by the tokens"), ({"also": {"hidden": {}}}, "made of each token")],
)
def test_what_needs_tokens_is_refused(settings, said, tmp_path):
    model = tiny_media.tiny("vit")
    step = Logits.model_validate({"steps": 1, "held_out": None, **settings})
    with pytest.raises(UserError, match=said):
        step.apply(model, context(model, tmp_path, tiny_media.tiny("vit", 1)))


def test_a_step_that_learns_nothing_of_a_teacher_is_refused():
    with pytest.raises(ValidationError, match="adapt/full"):
        Contrastive(relations=0, features=0, interactive=0)


def test_a_pressed_tower_reloads(tmp_path):
    model = tiny_media.tiny("clip")
    save(model, tmp_path)
    assert load(ModelSource(path=str(tmp_path))).task == "contrastive"
    assert load(Files(tmp_path)).vocabulary == tiny_models.VOCABULARY


@pytest.mark.parametrize(("model_type", "task"), tiny_media.MODELS)
def test_it_is_timed_in_rows(model_type, task, tmp_path):
    save(tiny_media.tiny(model_type), tmp_path)
    found = measure(Request(ModelSource(path=str(tmp_path)), task, None, "float32", "cpu"))
    assert found["rows_per_second"].unit == "rows/s"
    assert "images or sounds" in found["latency_p50"].note + found["rows_per_second"].note


def test_where_texts_alone_are_read_it_is_refused(tmp_path):
    save(tiny_media.tiny("vit"), tmp_path)
    with pytest.raises(ExportError, match="not exported yet"):
        export(tmp_path, "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="texts alone are served"):
        locate(Source(name="vit", path=str(tmp_path)))
