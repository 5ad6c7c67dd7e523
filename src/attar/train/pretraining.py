"""BERT's own two tasks on raw text: telling what is masked, and whether one text follows another.

With a teacher, or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from pydantic import Field
from torch import Tensor

from attar.core.context import Context
from attar.core.scope import ModuleFact
from attar.core.step import DataRef
from attar.data.batches import Batch
from attar.data.masking import IGNORED
from attar.data.pairs import Pairs, Rules
from attar.models.model import NEXT, Model
from attar.models.places import length_for
from attar.ops.chunked import Mix, Side, chunked
from attar.train.fit import fit
from attar.train.losses import Loss, averaged, plain, side
from attar.train.schedule import Training
from attar.train.scoped import without_dropout
from attar.train.signals import Guide

_JUDGED = 256  # held-out rows


class Pretraining(Training):
    """How raw text is made into rows, mixed into a step as fields of its own."""

    next_sentence: float = Field(
        1.0,
        ge=0,
        description="weight of telling whether the second of two texts follows the first, beside "
        "1 for what is masked; 0: texts one by one, for models that have no head for it",
    )
    mask_rate: float = Field(0.15, gt=0, lt=1, description="the share of the tokens to be told")
    whole_words: bool = Field(
        False,
        description="choose or leave all tokens of a word together; of Chinese, a character is one",
    )
    dropout: bool = Field(
        True,
        description="draw the model's own dropout while it trains; no: more is learned of texts "
        "that are read few times, as ALBERT was pretrained (arXiv 1909.11942, section 4.8)",
    )
    learning_rate: float = Field(3e-4, gt=0, description="the highest learning rate")
    data: DataRef = Field("train", description="raw text: each row or text file is a document")
    held_out: DataRef | None = Field(
        "dev", description="the dataset that tells which state is best; none: the last is kept"
    )

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether there is a head for next sentences, where it is to learn them."""
        if self.next_sentence and not any(fact.name == NEXT for fact in modules):
            yield (
                "the model has no head that tells next sentences. Set next_sentence: 0, or begin "
                "with a model whose config.json says BertForPreTraining"
            )

    def rows(self, name: str, model: Model, ctx: Context) -> Pairs:
        """The rows of a dataset. Raises ModelError where ids and model do not fit."""
        rules = Rules(self.next_sentence > 0, self.mask_rate, self.whole_words)
        length = length_for(model, self.length)
        found = Pairs(ctx.data(name), model.tokenizer, length, self.batch, ctx.seed, rules)
        found.check(model.config.vocab_size)
        return found

    def learn(self, objective: Heads, rows: Pairs, ctx: Context) -> None:
        """Train what wants a gradient, and leave the best state in it."""
        held = self._held(objective.model, ctx)
        score = objective.score(held) if held else None
        module = objective.model.module
        with nullcontext() if self.dropout else without_dropout(module):
            fit(objective.model, objective, rows, self, ctx, score)
        if held and self.next_sentence:
            ctx.note("next sentences told", round(objective.told(held), 4))

    def _held(self, model: Model, ctx: Context) -> list[Batch]:
        if self.held_out is None:
            return []
        try:
            ctx.data(self.held_out)
        except KeyError:
            return []
        return self.rows(self.held_out, model, ctx).held_out(self.evaluate_on or _JUDGED)


class Heads:
    """The loss of both heads of a model on a batch of `Pairs`, at a share of the training done.

    Each is the mix of a teacher's divergence and what the text itself says, a mean over what is
    masked and over the pairs; `next_sentence` weighs the second. `beside` adds signals.
    """

    def __init__(
        self,
        model: Model,
        next_sentence: float,
        teacher: Model | None = None,
        mix: Callable[[float], Mix] = plain,
        beside: Guide | None = None,
    ) -> None:
        self.model, self.next_sentence, self.teacher = model, next_sentence, teacher
        self.mix, self.beside = mix, beside

    def __call__(self, batch: Batch, progress: float) -> Loss:
        """The loss of a batch."""
        theirs = None
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self.teacher.hidden(batch)
        own, mix = self.model.hidden(batch), self.mix(progress)
        words = self._words(own, theirs, batch, mix)
        total, parts = words.value, dict(words.parts)
        if self.next_sentence and batch.follows is not None:
            pairs = self._pairs(own, theirs, batch.follows, mix)
            total, parts = total + self.next_sentence * pairs.value, {**parts, **pairs.parts}
        loss = Loss(total, words.count, parts)
        return loss if self.beside is None else self.beside.added(loss, batch, progress)

    def score(self, batches: Sequence[Batch]) -> Callable[[], float]:
        """A function that tells the loss on held-out batches, weights as they are half way."""
        return averaged(self, batches, self.model.device)

    def told(self, batches: Sequence[Batch]) -> float:
        """The share of pairs of which the model says rightly whether one follows the other."""
        right = count = 0
        for batch in (batch.to(self.model.device) for batch in batches):
            if batch.follows is not None:
                with torch.no_grad():
                    answers = self.model.next_sentence(self.model.hidden(batch)).argmax(-1)
                right += int((answers == batch.follows).sum())
                count += batch.size
        return right / max(count, 1)

    def _words(self, own: Tensor, theirs: Tensor | None, batch: Batch, mix: Mix) -> Loss:
        judged = batch.labels != IGNORED
        labels = batch.labels[judged]
        teacher = None
        if theirs is not None and self.teacher is not None:
            teacher = side(self.teacher, theirs[judged])
        losses = chunked(side(self.model, own[judged]), teacher, labels, mix)
        parts = {"task": (float(losses.task), len(labels))}
        if teacher is not None:
            parts["divergence"] = (float(losses.divergence), len(labels))
        return Loss(losses.total, len(labels), parts)

    def _pairs(self, own: Tensor, theirs: Tensor | None, follows: Tensor, mix: Mix) -> Loss:
        teacher = None
        if theirs is not None and self.teacher is not None:
            with torch.no_grad():
                teacher = Side(_same, self.teacher.next_sentence(theirs))
        losses = chunked(Side(_same, self.model.next_sentence(own)), teacher, follows, mix)
        parts = {"next sentence": (float(losses.task), len(follows))}
        return Loss(losses.total, len(follows), parts)


def _same(states: Tensor) -> Tensor:
    return states
