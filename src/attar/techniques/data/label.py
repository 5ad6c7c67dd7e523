"""Let a teacher label texts, and keep the rows that it is sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from attar.core.context import Context
from attar.core.step import DataRef, DataStep, ModelRef, Task
from attar.data.example import Dataset, Example, classes
from attar.data.tokenize import beginning
from attar.errors import UserError
from attar.models.places import room_for
from attar.train.asking import Asked
from attar.train.parts import in_parts
from attar.train.writing import prompt_of

_ENOUGH = 10  # rows for each class that tell what a teacher leans to, whatever it is asked


class Label(DataStep, kind="data/label"):
    """Labels of a classifier (pseudo-labels, Lee 2013), or of a language model that is asked.

    A language model is given `ask`, and the class is the likeliest of `classes` as its answer. How
    likely it finds each over all rows is divided out (Zhou et al. 2023, Batch Calibration, arXiv
    2309.17249), so every class has about its even share of the rows; below ten rows a class, which
    do not tell, answers are taken as they are.
    Labels that rows have are not read, but the report tells how many of them are the teacher's too.
    """

    version = 3

    data: DataRef = Field("train", description="the dataset to label; it needs no labels")
    teacher: ModelRef = Field(
        "original", description="who labels: the original, an earlier stage, or a path"
    )
    confidence: float = Field(
        0.0, ge=0, le=1, description="rows are kept whose class has at least this probability"
    )
    probabilities: bool = Field(
        False,
        description="whether each row keeps the probability of every class, to which adapt/full "
        "then trains: soft labels, also of a teacher with other tokens than the student",
    )
    beside: DataRef | None = Field(
        None, description="a dataset whose rows come first, with the labels that they have"
    )
    ask: str | None = Field(
        None,
        description="of a language model, what to ask, with {text} in it: Is this mail spam or "
        "ham? {text}",
    )
    classes: tuple[str, ...] = Field(
        (), description="of a language model, the classes, as it would answer them"
    )
    length: int = Field(128, ge=8, description="tokens of a text to show the teacher, at most")
    batch: int = Field(32, ge=1, description="rows at a time")

    @model_validator(mode="after")
    def _asks_for(self) -> Self:
        if (self.ask is None) != (not self.classes):
            raise ValueError("`ask` and `classes` go together: what to ask, and the answers")
        if self.ask is not None and "{text}" not in self.ask:
            raise ValueError("`ask` must have {text} in it, where the row's text goes")
        if len(set(self.classes)) < len(self.classes) or len(self.classes) == 1:
            raise ValueError("`classes` must be two or more, all different")
        return self

    def asks(self) -> Mapping[str, tuple[Task, ...]]:
        """A classifier, or a language model where it is asked in words."""
        return {"teacher": ("classification" if self.ask is None else "causal-lm",)}

    def make(self, ctx: Context) -> Dataset:
        """The rows with the teacher's labels."""
        source: Dataset = ctx.data(self.data)
        labels, judge = self._judge(ctx)

        def work(part: Sequence[Example], seed: int) -> list[Any]:
            return judge([example.text for example in part]).double().tolist()

        given = torch.tensor(in_parts(source.examples, self.batch, work, ctx, "labeling")).double()
        if self.ask is not None and len(given) >= _ENOUGH * len(self.classes):
            given /= given.mean(0)
            given /= given.sum(1, keepdim=True)
        elif self.ask is not None:
            ctx.warn(
                f"{len(given)} rows are too few to tell which answers the teacher leans to "
                f"whatever it is asked ({_ENOUGH} for each class are enough), so its answers are "
                "taken as they are. Give more rows, or look at the labels"
            )
        likeliest = given.argmax(-1).tolist()
        found: list[Example] = []
        for example, shares, best in zip(source.examples, given.tolist(), likeliest, strict=True):
            if shares[best] >= self.confidence:
                every = dict(zip(labels, shares, strict=True)) if self.probabilities else None
                found.append(replace(example, label=labels[best], probabilities=every))
        self._tell(ctx, source, [labels[best] for best in likeliest], found)
        rows = [*(ctx.data(self.beside).examples if self.beside else ()), *found]
        return Dataset(self.kind, rows, "", classes(rows))

    def _tell(self, ctx: Context, source: Dataset, chosen: list[str], found: list[Example]) -> None:
        ctx.note("labeled", len(found))
        ctx.note("kept", len(found) / len(source.examples))
        for label in dict.fromkeys(chosen):
            ctx.note(f"rows of {label}", sum(example.label == label for example in found))
        pairs = [
            (example.label, label)
            for example, label in zip(source.examples, chosen, strict=True)
            if example.label is not None
        ]
        if pairs:
            ctx.note("agrees with labels", sum(one == other for one, other in pairs) / len(pairs))

    def _judge(self, ctx: Context) -> tuple[list[str], Any]:
        """The classes, and what gives texts the probability of each, [texts, classes]."""
        (task,) = self.asks()["teacher"]
        asked = Asked(ctx.model(self.teacher, task), ctx, self.batch, self.length)
        if self.ask is None:
            return list(asked.model.labels), asked.classes
        return list(self.classes), lambda texts: self._answers(asked, texts)

    def _answers(self, asked: Asked, texts: Sequence[str]) -> Tensor:
        """The probability of every class as an answer, among them, [texts, classes]."""
        tokenizer = asked.model.tokenizer
        chat = bool(getattr(tokenizer, "chat_template", None))
        words = [
            tokenizer(name if chat else f" {name}", add_special_tokens=False).input_ids
            for name in self.classes
        ]
        if not all(words):
            raise UserError(f"the teacher's tokenizer has no tokens for {', '.join(self.classes)}")
        prompts = [self._prompt(text, asked, chat) for text in texts]
        tokens = max(map(len, prompts)) + max(map(len, words))
        room = room_for(asked.model, tokens)
        if room < tokens:
            raise UserError(
                f"question, text and answer make {tokens} tokens, and the teacher has {room} "
                "positions. Lower `length`, or ask in fewer words"
            )
        pairs = [(prompt, word) for prompt in prompts for word in words]
        known = torch.tensor(asked.likelihoods(pairs), dtype=torch.float64)
        return known.view(len(texts), len(words)).softmax(-1)

    def _prompt(self, text: str, asked: Asked, chat: bool) -> list[int]:
        """What a teacher is asked about a text, which is cut to `length` tokens."""
        tokenizer = asked.model.tokenizer
        ids = tokenizer(text, add_special_tokens=False).input_ids[: asked.room]
        question = str(self.ask).replace("{text}", tokenizer.decode(ids))
        if chat:
            message = {"role": "user", "content": question}
            return prompt_of(Example(question, messages=(message,), where="`ask`"), tokenizer)
        return beginning(tokenizer) + tokenizer(question, add_special_tokens=False).input_ids
