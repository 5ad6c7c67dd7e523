"""Let a teacher write texts: from nothing, on from prompts, or as it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import DataRef, DataStep, ModelRef, Task
from attar.data.example import Dataset, Example, classes
from attar.data.tokenize import sequences
from attar.errors import DataError, Problem
from attar.measure.samples import looping
from attar.models.model import Model
from attar.train.asking import Asked
from attar.train.writing import Writing, asked, nothing, prompt_of, write_after


class Generate(Writing, DataStep, kind="data/generate"):
    """Texts of a causal language model, which may be any: only its text is used.

    Without `data` it begins from nothing. With `data`, each row is a prompt: a text to go on from,
    or a chat whose last answer is written anew. With `ask`, it is asked in its chat template about
    each row, and its answer alone is the new text, with the row's label. What is empty, ends in a
    loop or was written before is left out.
    """

    teacher: ModelRef = Field(
        "original", description="who writes: the original, an earlier stage, or a path"
    )
    data: DataRef | None = Field(None, description="the dataset with the prompts; none: no prompts")
    texts: int | None = Field(
        None,
        ge=1,
        description="texts to write, prompts coming again in turn; one for each prompt by default",
    )
    start: int | None = Field(
        None,
        ge=1,
        description="tokens of running text to go on from, instead of whole rows",
    )
    ask: str | None = Field(
        None,
        description="what to ask about a row, with {text} and {label} in it: Write a review like "
        "this one: {text}",
    )
    judge: ModelRef | None = Field(
        None,
        description="who must agree: a classifier that gives the row's class, or a language model "
        "that does not find the text too unlikely; none: every text is kept",
    )
    confidence: float = Field(
        0.8, ge=0, le=1, description="the probability that a classifier gives the row's class"
    )
    surprise: float = Field(
        4.0, gt=0, description="nats a token that a language model may find a text unlikely by"
    )
    length: int = Field(256, ge=8, description="tokens that the judge is shown of a text, at most")
    batch: int = Field(8, ge=1, description="texts at a time")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data is None and (self.ask is not None or self.start is not None):
            raise ValueError("`ask` and `start` are for prompts; name a dataset in `data`")
        if self.ask is not None and self.start is not None:
            raise ValueError("`ask` and `start` both make prompts of rows; keep one")
        if self.data is None and self.texts is None:
            raise ValueError("without `data` say in `texts` how many texts to write")
        return self

    def asks(self) -> Mapping[str, Task]:
        """A causal language model, whatever the recipe's own task."""
        return {"teacher": "causal-lm"}

    def make(self, ctx: Context) -> Dataset:
        """The texts that were written, and kept."""
        teacher: Model = ctx.model(self.teacher, "causal-lm")
        rows, prompts = self._prompts(teacher, ctx)
        count = self.texts or len(prompts)
        rows = [rows[at % len(rows)] for at in range(count)]
        prompts = [prompts[at % len(prompts)] for at in range(count)]
        written = write_after(teacher, prompts, self, self.batch, ctx)
        found: dict[tuple[str, str | None], Example] = {}
        for row, prompt, ids in zip(rows, prompts, written, strict=True):
            example = self._example(row, prompt, ids, teacher)
            if example is not None and not looping(ids):
                found.setdefault((example.text, example.label), example)
        kept = self._agreed(list(found.values()), ctx)
        ctx.note("written", count)
        ctx.note("sound", len(found))
        ctx.note("kept", len(kept) / count)
        return Dataset(self.kind, kept, "", classes(kept))

    def _prompts(self, teacher: Model, ctx: Context) -> tuple[list[Example], list[list[int]]]:
        """Rows, and the tokens that the teacher is to go on from."""
        if self.data is None:
            return [Example("")], [nothing(teacher)]
        source: Dataset = ctx.data(self.data)
        if self.start is not None:
            ids = sequences(source, teacher.tokenizer, self.start, self.texts).tolist()
            texts = teacher.tokenizer.batch_decode(ids, skip_special_tokens=True)
            return [Example(text) for text in texts], ids
        rows = source.examples[: self.texts]
        return rows, [prompt_of(self._question(row), teacher.tokenizer) for row in rows]

    def _question(self, row: Example) -> Example:
        if self.ask is None:
            return row
        if "{label}" in self.ask and row.label is None:
            text = f"{row.where}: `ask` speaks of the label, and this row has none"
            raise DataError([Problem(text)])
        asked_for = self.ask.replace("{label}", row.label or "").replace("{text}", row.text)
        return Example(row.text, messages=({"role": "user", "content": asked_for},))

    def _example(
        self, row: Example, prompt: list[int], ids: list[int], teacher: Model
    ) -> Example | None:
        """What was written, as a row; None where that is nothing."""
        tokenizer = teacher.tokenizer
        new = tokenizer.decode(ids, skip_special_tokens=True)
        if not new.strip():
            return None
        if self.ask is not None:
            return Example(new.strip(), row.label, where=row.where)
        if row.messages is not None:
            chat = (*asked(row), {"role": "assistant", "content": new.strip()})
            text = "\n".join(f"{message['role']}: {message['content']}" for message in chat)
            return Example(text, row.label, chat, where=row.where)
        whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
        return Example(whole, row.label, where=row.where)

    def _agreed(self, examples: Sequence[Example], ctx: Context) -> list[Example]:
        """Those that the judge agrees to."""
        if self.judge is None or not examples:
            return list(examples)
        texts = [example.text for example in examples]
        judging = Asked(ctx.model(self.judge), ctx, self.batch, self.length)
        if judging.model.task == "causal-lm":
            nats = judging.nats(texts)
            return [e for e, n in zip(examples, nats, strict=True) if n <= self.surprise]
        sure = judging.sure(texts, [example.label for example in examples], self.confidence)
        return [example for example, good in zip(examples, sure, strict=True) if good]
