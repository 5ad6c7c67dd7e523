"""Let a teacher write texts: from nothing, on from prompts, or as it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from pydantic import Field, model_validator

from attar.core.context import Context
from attar.core.step import DataRef, DataStep, ModelRef, Task, is_address
from attar.data.example import Dataset, Example, classes
from attar.data.tokenize import sequences
from attar.errors import DataError, Problem
from attar.measure.samples import looping, looping_text
from attar.models.model import Model
from attar.train.asking import Asked
from attar.train.served import ByAddress, said_after, without_beams
from attar.train.writing import Writing, asked, nothing, prompt_of, write_after

T = TypeVar("T")


@dataclass(frozen=True)
class _Written:
    """What came after a prompt, alone and with it; `loops` where it ends in a loop."""

    row: Example
    new: str
    whole: str
    loops: bool


class Generate(ByAddress, Writing, DataStep, kind="data/generate"):
    """Texts of a causal language model, which may be any: only its text is used.

    Without `data` it begins from nothing. With `data`, each row is a prompt: a text to go on from,
    or a chat whose last answer is written anew. With `ask`, it is asked in its chat template about
    each row, and its answer alone is the new text, with the row's label. What is empty, ends in a
    loop or was written before is left out.

    `teacher` may also be a server's address and the name of a model there,
    `http://127.0.0.1:8000/v1#name`: it is given chats, and what it is asked, as chats, and goes on
    from other rows as they are. What it has written is kept when it dies, and not asked for again.
    """

    served = frozenset({"teacher"})

    teacher: ModelRef = Field(
        "original",
        description="who writes: the original, an earlier stage, a path, or a server's address",
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
        if is_address(self.teacher):
            if self.data is None:
                raise ValueError(
                    "a teacher behind an address goes on from text; name a dataset in `data`"
                )
            if self.start is not None:
                raise ValueError(
                    "`start` counts tokens, and a teacher behind an address is given text alone; "
                    "give it rows to go on from as they are, or `ask` about them"
                )
            without_beams(self)
        return self

    def asks(self) -> Mapping[str, tuple[Task, ...]]:
        """A causal language model, whatever the recipe's own task; a judge for that task."""
        return {"teacher": ("causal-lm",), "judge": ("causal-lm", "classification")}

    def make(self, ctx: Context) -> Dataset:
        """The texts that were written, and kept."""
        written = self._served(ctx) if is_address(self.teacher) else self._at_hand(ctx)
        found: dict[tuple[str, str | None], Example] = {}
        for one in written:
            if one.new.strip() and not one.loops:
                example = self._example(one)
                found.setdefault((example.text, example.label), example)
        kept = self._agreed(list(found.values()), ctx)
        ctx.note("written", len(written))
        ctx.note("sound", len(found))
        ctx.note("kept", len(kept) / len(written))
        return Dataset(self.kind, kept, "", classes(kept))

    def _at_hand(self, ctx: Context) -> list[_Written]:
        teacher: Model = ctx.model(self.teacher, "causal-lm")
        rows, prompts = self._prompts(teacher, ctx)
        rows, prompts = self._in_turn(rows), self._in_turn(prompts)
        made = write_after(teacher, prompts, self, self.batch, ctx)
        found: list[_Written] = []
        for row, prompt, ids in zip(rows, prompts, made, strict=True):
            new, whole = (
                teacher.tokenizer.decode(some, skip_special_tokens=True)
                for some in (ids, [*prompt, *ids])
            )
            found.append(_Written(row, new, whole, looping(ids)))
        return found

    def _served(self, ctx: Context) -> list[_Written]:
        rows = self._in_turn(ctx.data(str(self.data)).examples[: self.texts])
        prompts = [self._question(row) for row in rows]
        made = said_after(self.teacher, prompts, self, self.server, ctx)
        found: list[_Written] = []
        for row, said in zip(rows, made, strict=True):
            new = "" if said is None else said.text
            cut = said is not None and said.reason != "stop"
            found.append(_Written(row, new, row.text + new, cut and looping_text(new)))
        return found

    def _in_turn(self, items: Sequence[T]) -> list[T]:
        """As many as there are to be texts, the first ones coming again."""
        return [items[at % len(items)] for at in range(self.texts or len(items))]

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
        chat = ({"role": "user", "content": asked_for},)
        return Example(row.text, messages=chat, where=row.where)

    def _example(self, written: _Written) -> Example:
        """What was written, as a row."""
        row = replace(written.row, probabilities=None)
        new = written.new.strip()
        if self.ask is not None:
            return replace(row, text=new, messages=None)
        if row.messages is None:
            return replace(row, text=written.whole)
        chat = (*asked(row), {"role": "assistant", "content": new})
        text = "\n".join(f"{message['role']}: {message['content']}" for message in chat)
        return replace(row, text=text, messages=chat)

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
