"""Making a teacher ready: the same tokens and classes as the student, light, and fixed."""

from __future__ import annotations

import copy

import torch

from attar.core.context import Context
from attar.errors import UserError
from attar.models.media import input_shape, settings_of
from attar.models.model import Model
from attar.models.places import length_for, room_for

_ACROSS = {
    "causal-lm": "; or learn by distill/cross-tokenizer, which compares them by spans of text",
    "classification": "; or let the teacher give each text the probability of every class "
    "(data/label with `probabilities: yes`), and train on these (adapt/full)",
}


def ready(teacher: Model, student: Model, length: int, ctx: Context) -> Model:
    """The teacher for inference on texts that the student is given, `length` tokens at most.

    Raises UserError where teacher and student do not speak of the same tokens or classes, and
    where such a text is too long for the teacher.
    """
    check_fits(teacher, student, length)
    return fixed(teacher, student, ctx.device, ctx.precision)


def ready_by_name(name: str, student: Model, length: int, ctx: Context) -> Model:
    """One of several teachers, made ready; where it does not fit, the error names it."""
    teacher = ctx.model(name)
    try:
        return ready(teacher, student, length, ctx)
    except UserError as error:
        raise UserError(f"teacher {name!r}: {error}") from error


def fixed(teacher: Model, student: Model, device: str, precision: str) -> Model:
    """The teacher for inference on a device, in bf16 where that is what is computed in."""
    module = teacher.module
    wide = any(p.dtype == torch.float32 for p in module.parameters())
    if teacher.module is student.module or (precision == "bf16" and wide):
        module = copy.deepcopy(module)  # the caller's model stays as it is
    if precision == "bf16":
        _to_bf16(module)
    elif any(p.dtype != torch.float32 for p in module.parameters() if p.is_floating_point()):
        module = copy.deepcopy(module).float()
    module = module.to(device).eval().requires_grad_(False)
    return Model(module, teacher.tokenizer, teacher.task, teacher.labels)


def learner(teacher: Model, student: Model, length: int, device: str) -> Model:
    """A copy of the teacher that is to be trained itself; refused as by `ready`."""
    check_fits(teacher, student, length)
    module = copy.deepcopy(teacher.module).to(device).requires_grad_(True)
    return Model(module, teacher.tokenizer, teacher.task, teacher.labels)


def _to_bf16(module: torch.nn.Module) -> None:
    """Weights only: rotary frequencies and other computed buffers need float32."""
    for parameter in module.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.bfloat16()


def check_fits(teacher: Model, student: Model, length: int) -> None:
    """Raise UserError where the teacher cannot tell of what the student is given, as by `ready`."""
    check_task(teacher, student)
    if student.family.media:
        _check_media(teacher, student)
    if student.vocabulary or teacher.vocabulary:
        _check_vocabulary(teacher, student)
    _check_classes(teacher, student)
    _check_places(teacher, student, length)


def check_task(teacher: Model, student: Model) -> None:
    """Raise UserError where teacher and student are for different tasks."""
    if teacher.task != student.task:
        raise UserError(
            f"the teacher is a model for {teacher.task} and the student one for {student.task}; "
            "take a teacher of the same task"
        )


def _check_vocabulary(teacher: Model, student: Model) -> None:
    theirs, own = teacher.vocabulary, student.vocabulary
    one, other = (getattr(m.tokenizer, "tokenizer", m.tokenizer) for m in (teacher, student))
    differ = "" if theirs == own else f"{theirs} and {own} tokens"
    if not differ and one is not None and other is not None:
        differ = "tokens of other numbers" if one.get_vocab() != other.get_vocab() else ""
    if differ:
        raise UserError(
            f"teacher and student have different vocabularies ({differ}), so their predictions "
            "cannot be compared position by position. Take a teacher of the student's own family, "
            "or make the student from the teacher (prune/depth, prune/width)"
            f"{_ACROSS.get(student.task, '')}"
        )


def _check_media(teacher: Model, student: Model) -> None:
    """Raise UserError where the two would make other numbers of an image or a sound."""
    both = [settings_of(model.tokenizer) for model in (teacher, student)]
    shapes = [input_shape(model.config) for model in (teacher, student)]
    theirs, own = ({**found, "shape": shape} for found, shape in zip(both, shapes, strict=True))
    differ = sorted(name for name in theirs | own if theirs.get(name) != own.get(name))
    if differ:
        name = differ[0]
        raise UserError(
            f"teacher and student take in files in different ways ({', '.join(differ)}; {name} is "
            f"{theirs.get(name)} and {own.get(name)}), and each file is read once for both. Give "
            "the student the teacher's preprocessor_config.json and input size"
        )


def _check_classes(teacher: Model, student: Model) -> None:
    if student.task == "classification" and teacher.labels != student.labels:
        raise UserError(
            f"the teacher's classes are {', '.join(teacher.labels)} and the student's "
            f"{', '.join(student.labels)}; they must be the same, in the same order. Fine-tune "
            "the teacher on this data first (adapt/full)"
        )


def _check_places(teacher: Model, student: Model, length: int) -> None:
    given = length_for(student, length)
    room = room_for(teacher, given)
    if room < given:
        raise UserError(
            f"texts of up to {given} tokens do not fit the teacher, which has {room} positions. "
            f"Set length: {room}, or less"
        )
