"""Variants of rows, with a teacher that says which still mean the same: shared settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from attar.core.context import Context
from attar.core.step import DataRef, DataStep, ModelRef, Task
from attar.data.example import Dataset, Example, classes
from attar.data.tokenize import pieces
from attar.errors import UserError
from attar.train.asking import Asked
from attar.train.parts import in_parts

# Variants of each text, from texts and a seed; the same text may come several times.
Vary = Callable[[Sequence[str], int], list[list[str]]]
_LABEL = "writing variants"


class VariantsStep(DataStep):
    """Settings of every step that writes variants of rows, and the loop over the rows."""

    data: DataRef = Field("train", description="the dataset to write variants of")
    variants: int = Field(
        4, ge=1, description="variants to try of each row; those that are equal count once"
    )
    originals: bool = Field(True, description="whether the rows themselves are kept too")
    teacher: ModelRef | None = Field(
        None,
        description="who says whether a variant still means the same: the original, an earlier "
        "stage, or a path; none: every variant is kept",
    )
    confidence: float = Field(
        0.8,
        ge=0,
        le=1,
        description="a variant is kept where the teacher gives it the row's class with at least "
        "this probability; a row without a label has the class that the teacher gives it",
    )
    surprise: float = Field(
        0.5,
        ge=0,
        description="of language models: a variant is kept where the teacher finds it less likely "
        "than the row by at most so many nats a token",
    )
    length: int = Field(128, ge=8, description="tokens that a model is shown of a text, at most")
    batch: int = Field(32, ge=1, description="rows at a time")

    def asks(self) -> Mapping[str, tuple[Task, ...]]:
        """A teacher that can judge whole texts, for the recipe's own task."""
        return {"teacher": ("causal-lm", "classification")}

    def grown(self, ctx: Context, vary: Vary) -> Dataset:
        """The dataset with its variants, each after the row that it is of.

        Rows of chat messages have no variants.
        """
        source: Dataset = ctx.data(self.data)
        agrees = self._judge(ctx)

        def work(part: Sequence[Example], seed: int) -> list[Any]:
            plain = [example for example in part if example.messages is None]
            found = vary([example.text for example in plain], seed)
            new = [_new(row, texts) for row, texts in zip(plain, found, strict=True)]
            kept = iter(zip(new, agrees(plain, new), strict=True))
            rows = [next(kept) if example.messages is None else ([], []) for example in part]
            return [[len(tried), good] for tried, good in rows]

        found = in_parts(source.examples, self.batch, work, ctx, _LABEL)
        tried, kept = sum(count for count, _ in found), sum(len(good) for _, good in found)
        rows: list[Example] = []
        for example, (_, good) in zip(source.examples, found, strict=True):
            rows += [example] * self.originals
            rows += [replace(example, text=text, probabilities=None) for text in good]
        self._tell(ctx, source, tried, kept)
        return Dataset(self.kind, rows, "", classes(rows))

    def _tell(self, ctx: Context, source: Dataset, tried: int, kept: int) -> None:
        ctx.note("read", len(source.examples))
        ctx.note("written", tried)
        ctx.note("variants", kept)
        ctx.note("kept", kept / tried if tried else 0.0)
        chats = sum(example.messages is not None for example in source.examples)
        if chats:
            ctx.warn(f"{chats} rows are chat messages, which have no variants")
        if not tried:
            ctx.warn("no row has a variant: nothing in it could be replaced")

    def _judge(self, ctx: Context) -> Callable[..., list[list[str]]]:
        """Those variants of each row that the teacher agrees to."""
        if self.teacher is None:
            return lambda rows, variants: variants
        if ctx.task == "masked-lm":
            raise UserError(
                "a masked language model does not say how likely a whole text is. Leave `teacher` "
                "out, or give the recipe task: classification and a classifier as the teacher"
            )
        asked = Asked(ctx.model(self.teacher), ctx, self.batch, self.length)
        return self._same_class(asked) if ctx.task == "classification" else self._as_likely(asked)

    def _same_class(self, asked: Asked) -> Callable[..., list[list[str]]]:
        def agrees(rows: Sequence[Example], variants: Sequence[list[str]]) -> list[list[str]]:
            labels = [row.label for row in rows]
            if None in labels:
                own = asked.likeliest([row.text for row in rows])
                labels = [label or best for label, best in zip(labels, own, strict=True)]
            wanted = [label for label, texts in zip(labels, variants, strict=True) for _ in texts]
            flat = [text for texts in variants for text in texts]
            sure = iter(asked.sure(flat, wanted, self.confidence))
            return [[text for text in texts if next(sure)] for texts in variants]

        return agrees

    def _as_likely(self, asked: Asked) -> Callable[..., list[list[str]]]:
        def agrees(rows: Sequence[Example], variants: Sequence[list[str]]) -> list[list[str]]:
            own = asked.nats([row.text for row in rows])
            nats = iter(asked.nats([text for texts in variants for text in texts]))
            return [
                [text for text in texts if next(nats) - before <= self.surprise]
                for before, texts in zip(own, variants, strict=True)
            ]

        return agrees


def by_pieces(vary: Vary, length: int) -> Vary:
    """The same for texts of any length: cut into pieces of about `length` tokens, and joined."""

    def whole(texts: Sequence[str], seed: int) -> list[list[str]]:
        parts = [list(pieces(text, 3 * length if text.isascii() else length)) for text in texts]
        found = iter(vary([part for some in parts for part in some], seed))
        return [_joined(some, [next(found) for _ in some]) for some in parts]

    return whole


def _joined(parts: Sequence[str], variants: Sequence[list[str]]) -> list[str]:
    """Variants of a whole text from those of its parts, with the space between these as it was."""
    spaces = [part[len(part.rstrip()) :] for part in parts]
    rounds = min((len(some) for some in variants), default=0)
    return [
        "".join(some[at].rstrip() + space for some, space in zip(variants, spaces, strict=True))
        for at in range(rounds)
    ]


def _new(row: Example, texts: Sequence[str]) -> list[str]:
    """The texts that are none of the others, nor the row's own."""
    found = dict.fromkeys(text for text in texts if text.strip())
    return [text for text in found if text.strip() != row.text.strip()]
