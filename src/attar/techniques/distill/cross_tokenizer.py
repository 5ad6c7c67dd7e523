"""Learn from a teacher with another vocabulary, by the spans of text that both spell."""

from __future__ import annotations

import torch
from pydantic import Field

from attar.core.context import Context
from attar.core.step import DataRef, ModelRef, Step
from attar.core.traits import FLOAT
from attar.data.batches import Batch, Shuffled
from attar.data.example import Dataset
from attar.data.paired import PairedRows
from attar.data.spelling import Spelling, shared
from attar.data.tokenize import check_ids
from attar.models.model import Model
from attar.models.places import length_for
from attar.ops.spans import Common
from attar.techniques.distill._answers import Weighed
from attar.train.fit import fit
from attar.train.paired import Matching, PairedObjective
from attar.train.teacher import check_task, fixed
from attar.train.tuned import Updating

_SEQUENCES = 16  # held out, by default


class CrossTokenizer(Weighed, Updating, Step, kind="distill/cross-tokenizer"):
    """Distillation between tokenizers that differ.

    Both models read the same texts, each in its own tokens. Where both end a token at the same
    character a span of text ends, and the models are compared by how they begin each span and how
    likely they find it as it is. `merged` compares the tokens that both vocabularies have, and the
    span itself, directly, and the others by their sorted mass, as TRL's GOLD trainer does; `sorted`
    compares sorted probabilities alone (ULD, Boizard et al. 2024, arXiv:2402.12030). The loss is
    weight x distance + (1 - weight) x the student's own loss.

    There is no `also` here: hidden states and attention are of single tokens, and those of the one
    model are not at the places of the other's. Only vectors of whole texts would compare.
    """

    version = 2
    needs = frozenset({FLOAT})
    shares = True
    promises = frozenset({"changed"})
    tasks = ("causal-lm",)
    any_vocabulary = True

    teacher: ModelRef = Field(
        description="whom to learn from: a path, an earlier stage, or the original"
    )
    matching: Matching = Field(
        "merged",
        description="merged: tokens that both vocabularies have are compared directly, the others "
        "by sorted mass; sorted: all of them by sorted mass",
    )
    weight: float = Field(
        0.5, ge=0, le=1, description="weight of the distance; the task's own loss has the rest"
    )
    aligned: float = Field(
        0.9,
        gt=0,
        le=1,
        description="the least share of the characters that both tokenizers must spell in the same "
        "stretches; with less of them the pairing is refused",
    )
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="the dataset to learn on")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    def apply(self, model: Model, ctx: Context) -> Model:
        """Train the student, and leave the best state in it."""
        teacher = ctx.model(self.teacher)
        check_task(teacher, model)
        sides = Spelling(model.tokenizer, "student"), Spelling(teacher.tokenizer, "teacher")
        rows = self._rows(ctx.data(self.data), model, teacher, sides, None)
        pairs = torch.tensor(shared(*sides), dtype=torch.long).reshape(-1, 2)
        own_size, their_size = model.config.vocab_size, teacher.config.vocab_size
        common = Common.of(pairs[:, 0], pairs[:, 1], own_size, their_size)
        self._note(ctx, rows, common)
        teacher = fixed(teacher, model, ctx.device, ctx.precision)
        objective = PairedObjective(model, teacher, common, self.matching, self.weight_at)
        held = self._held_out(model, teacher, sides, ctx)
        stream = Shuffled(rows, self.batch, ctx.seed)
        with self.training(model, ctx):
            fit(model, objective, stream, self, ctx, objective.score(held) if held else None)
        return model

    def _rows(
        self,
        dataset: Dataset,
        model: Model,
        teacher: Model,
        sides: tuple[Spelling, Spelling],
        limit: int | None,
    ) -> PairedRows:
        """Rows of a dataset; raises where the two tokenizers hardly ever meet."""
        lengths = length_for(model, self.length), length_for(teacher, self.length)
        rows = PairedRows(dataset, *sides, lengths, self.aligned, limit)
        check_ids(torch.from_numpy(rows.stretches.own), model.config.vocab_size)
        check_ids(torch.from_numpy(rows.stretches.theirs), teacher.config.vocab_size)
        return rows

    def _held_out(
        self, model: Model, teacher: Model, sides: tuple[Spelling, Spelling], ctx: Context
    ) -> list[Batch]:
        if self.held_out is None:
            return []
        try:
            dataset = ctx.data(self.held_out)
        except KeyError:
            return []
        limit = self.evaluate_on or _SEQUENCES
        return self._rows(dataset, model, teacher, sides, limit).batches(self.batch)

    def _note(self, ctx: Context, rows: PairedRows, common: Common) -> None:
        found = rows.stretches
        ctx.note("shared_tokens", len(common.own))
        ctx.note("spans", len(found.good))
        share = 1 - found.missed.total() / max(found.characters, 1)
        ctx.note("aligned_characters", round(share, 4))
