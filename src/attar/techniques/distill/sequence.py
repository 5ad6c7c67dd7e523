"""Learn the texts that a teacher writes after prompts; it may have other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import DataRef, ModelRef, Step, is_address
from attar.core.traits import FLOAT
from attar.data.batches import Batch
from attar.data.example import Dataset, Example
from attar.data.tokenize import pieces
from attar.errors import UserError
from attar.measure.samples import ends_of
from attar.models.model import Model
from attar.models.places import length_for
from attar.techniques.distill._guided import GuidedUpdating
from attar.train.answers import Answered, Answers, encoded
from attar.train.beginnings import opening
from attar.train.fit import fit
from attar.train.losses import plain
from attar.train.processes import join
from attar.train.served import ByAddress, said_after, without_beams
from attar.train.signals import toward
from attar.train.teacher import check_fits, fixed
from attar.train.writing import Writing, prompt_of, write_after

_HELD_OUT = 16  # prompts to judge on, unless `evaluate_on` says otherwise


class SequenceLevel(ByAddress, Writing, GuidedUpdating, Step, kind="distill/sequence"):
    """Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947).

    The teacher writes once, before training, what comes after each prompt, and the student is
    fine-tuned on that and not on what the data says. Only text goes from one to the other, so
    teacher and student may differ in everything. With `also`, the student follows besides what the
    teacher makes of these texts on its way; then both must have the same tokens. A prompt is a
    chat up to its last answer, or the first words of a text, `prompt_tokens` at most; running text
    is cut into pieces of `length` tokens first.

    `teacher` may also be a server's address and the name of a model there,
    `http://127.0.0.1:8000/v1#name`; then it is the student's tokens that are counted.
    """

    version = 2
    needs = frozenset({FLOAT})
    tasks = ("causal-lm",)
    shares = True
    any_vocabulary = True
    promises = frozenset({"changed"})
    served = frozenset({"teacher"})

    teacher: ModelRef = Field(
        "original",
        description="who writes: the original, an earlier stage, a path, or a server's address",
    )
    data: DataRef = Field("train", description="the dataset with the prompts")
    held_out: DataRef | None = Field(
        "dev",
        description="the dataset with other prompts; what the teacher writes after these tells "
        "which state is best; none: the last is kept",
    )
    prompts: int | None = Field(None, ge=1, description="how many prompts to take; all by default")
    prompt_tokens: int = Field(32, ge=1, description="tokens of a text that are the prompt")
    temperature: float = Field(
        0.0, ge=0, description="what logits are divided by; 0: always the likeliest token"
    )
    learning_rate: float = Field(1e-4, gt=0, description="the highest learning rate")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if is_address(self.teacher):
            without_beams(self)
            if self.also.signals():
                raise ValueError(
                    "`also` reads what a teacher makes on its way, which no server tells. Leave "
                    "out `also`, or take a teacher at hand"
                )
        return self

    def apply(self, model: Model, ctx: Context) -> Model:
        """Let the teacher write, train the student on it, and leave the best state in it."""
        teacher: Model = model if is_address(self.teacher) else ctx.model(self.teacher)
        length_for(model, self.length)  # refused before it writes, which takes long
        if self.also.signals():
            _check_tokens(teacher, model, self.length)
        rows = self._written("writing", ctx.data(self.data), self.prompts, teacher, ctx)
        answers = self._batches(rows, model, ctx)
        answers.check(model.config.vocab_size)
        held = self._held_out(model, teacher, ctx)
        ctx.note("prompts", len(rows))
        starts: list[tuple[str, Model, Batch]] = []
        if self.also.signals():
            guide = fixed(teacher, model, ctx.device, ctx.precision)
            starts.append(("", guide, answers.batch(0)))
        with self.training(model, ctx), self.guides(model, starts) as guides:
            objective = toward(model, None, plain, guides)
            fit(model, objective, answers, self, ctx, objective.score(held) if held else None)
        return model

    def _held_out(self, model: Model, teacher: Model, ctx: Context) -> list[Batch]:
        """Batches to judge on; none where the recipe has no data of that name."""
        if self.held_out is None:
            return []
        try:
            dataset: Dataset = ctx.data(self.held_out)
        except KeyError:
            return []
        count = self.evaluate_on or _HELD_OUT
        rows = self._written("writing to judge on", dataset, count, teacher, ctx)
        return self._batches(rows, model, ctx).in_order()

    def _batches(self, rows: Sequence[Answered], model: Model, ctx: Context) -> Answers:
        found = encoded(rows, model.tokenizer, self.length)
        return Answers(found, model.tokenizer, self.batch, ctx.seed)

    def _written(
        self, label: str, dataset: Dataset, count: int | None, teacher: Model, ctx: Context
    ) -> list[Answered]:
        """Prompts of a dataset, and what the teacher writes after them; one process lets it.

        teacher: the student where the teacher is behind an address, for its tokens.
        """
        rows = self._prompts(dataset, teacher.tokenizer)[:count]
        write = self._served if is_address(self.teacher) else self._at_hand
        found = join(ctx.device).lead(lambda: write(rows, teacher, ctx, label))
        answers = [
            Answered(row, text, ends)
            for row, (text, ends) in zip(rows, found, strict=True)
            if text.strip()
        ]
        if not answers:
            raise UserError(
                f"the teacher writes nothing after the prompts of {dataset.name!r}. Take prompts "
                "that it goes on from, or another number of prompt_tokens"
            )
        return answers

    def _at_hand(
        self, rows: Sequence[Example], teacher: Model, ctx: Context, label: str
    ) -> list[tuple[str, bool]]:
        """Texts, and whether each ends where it does."""
        ids, ends = [prompt_of(row, teacher.tokenizer) for row in rows], ends_of(teacher)
        found = write_after(teacher, ids, self, self.batch, ctx, label)
        texts = teacher.tokenizer.batch_decode(found, skip_special_tokens=True)
        pairs = zip(texts, found, strict=True)
        return [(text, bool(ends.intersection(new))) for text, new in pairs]

    def _served(
        self, rows: Sequence[Example], student: Model, ctx: Context, label: str
    ) -> list[tuple[str, bool]]:
        found = said_after(self.teacher, rows, self, self.server, ctx, label)
        return [("", False) if one is None else (one.text, one.reason == "stop") for one in found]

    def _prompts(self, dataset: Dataset, tokenizer: Any) -> list[Example]:
        """Chats as they are, and the beginnings of texts and of pieces of long ones."""
        found: list[Example] = []
        for example in dataset.examples:
            if example.messages is not None:
                found.append(example)
                continue
            for piece in pieces(example.text, 4 * self.length):
                ids: Sequence[int] = tokenizer(piece, add_special_tokens=False).input_ids
                text = opening(piece, ids, self.prompt_tokens, tokenizer)
                if text.strip():
                    found.append(Example(text, where=example.where))
        return found


def _check_tokens(teacher: Model, student: Model, length: int) -> None:
    """Raise UserError where what the two make of a text does not compare token by token."""
    try:
        check_fits(teacher, student, length)
    except UserError as error:
        raise UserError(f"{error}; or leave out `also`, and only text goes over") from error
