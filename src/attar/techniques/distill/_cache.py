"""A teacher's answers on disk: what is kept of them, where, and who is asked for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.core.context import Context
from attar.core.keys import key_of
from attar.core.step import is_address
from attar.data.endpoint import Endpoint
from attar.data.teacher_cache import TeacherCache
from attar.errors import UserError
from attar.models.model import Model
from attar.train.cached import Asked, Cached, Drawn, Likeliest, Local, Served, Sketch
from attar.train.served import Server, connect
from attar.train.teacher import ready

_FORMAT = 2
_TEXT = 500  # characters by which a server's tokenizer is compared with the student's


class Cache(BaseModel):
    """What is kept of a language model's answer to a token; a classifier's are kept whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="so many likeliest tokens, and the mass of all others as one number: 64 of "
        "them by default, in 200 bytes. For any divergence; what it leaves out is the shape of "
        "the rest",
    )
    sampled: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="so many tokens instead: the likeliest as they are, and others drawn for the "
        "rest, unbiased on average; for the forward divergence at temperature 1",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.top is not None and self.sampled is not None:
            raise ValueError("top and sampled both say what is kept; keep one")
        return self

    @property
    def sketch(self) -> Sketch:
        """What is kept, ready for work."""
        return Drawn(self.sampled) if self.sampled is not None else Likeliest(self.top or 64)


@contextmanager
def cached(
    cache: Cache, limit: float, model: Model, ctx: Context, teacher: str, asked: Asked
) -> Iterator[Cached]:
    """A teacher whose answers are kept, in a folder that other runs read too."""
    vocabulary = None if model.tokenizer is None else sorted(model.tokenizer.get_vocab().items())
    what = "whole" if model.task == "classification" else repr(cache.sketch)
    # What is packed is read by the number of classes, which a table may have more of than tokens.
    name = key_of(_FORMAT, what, list(model.labels), vocabulary, model.config.vocab_size)
    with ExitStack() as stack:
        among = None
        if ctx.beside is not None:
            base = ctx.beside(teacher)
            among = base.parent  # of all teachers
        else:
            temporary = TemporaryDirectory(prefix="attar-") if ctx.scratch is None else None
            base = Path(stack.enter_context(temporary)) if temporary else ctx.scratch or Path()
        kept = TeacherCache(base / name, limit * 1e9, ctx.warn, among=among)
        found = Cached(asked, kept, cache.sketch, model.task, model.config.vocab_size)
        try:
            yield found
        finally:
            kept.flush()
        ctx.note("teacher", {"rows read": found.read, "rows asked": found.missed})


def asked_of(
    teacher: str,
    cache: Cache,
    server: Server,
    model: Model,
    length: int,
    ctx: Context,
    text: str,
) -> Asked:
    """Whoever answers for the teacher of this name, opened when it is first asked.

    text: some text, by which the tokens of a server and of the student are compared.
    """
    if not is_address(teacher):
        loaded = partial(_loaded, teacher, model, length, ctx)
        return Local(loaded, cache.sketch, ctx.precision)
    endpoint = connect(teacher, server, ctx)
    return Served(
        partial(_checked, endpoint, model, server, text), cache.top or 64, model.config.vocab_size
    )


def _loaded(name: str, student: Model, length: int, ctx: Context) -> Model:
    return ready(ctx.model(name), student, length, ctx)


def _checked(endpoint: Endpoint, model: Model, server: Server, text: str) -> Endpoint:
    """The server, where its tokens are the student's."""
    theirs = endpoint.tokens(text[:_TEXT])
    own = model.tokenizer(text[:_TEXT], add_special_tokens=False).input_ids
    if theirs is None and not server.same_tokens:
        raise UserError(
            f"{endpoint.address} does not tell its tokens (/tokenize), so whether they are the "
            "student's cannot be seen, and a student of another vocabulary would learn nonsense. "
            "Where you know that they are, write server: {same_tokens: yes}"
        )
    if theirs is not None and list(theirs) != list(own):
        raise UserError(
            f"{endpoint.address} makes other tokens of a text than the student does, so what it "
            "says cannot be compared position by position. Serve a model of the student's family"
        )
    return endpoint
