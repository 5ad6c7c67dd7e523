"""A teacher behind an address: how it is asked, and what it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from attar.core.context import Context
from attar.core.step import Unkeyed
from attar.data.endpoint import Endpoint, Patience, Refused, Said
from attar.data.example import Example
from attar.errors import UserError
from attar.train.parts import one_by_one
from attar.train.writing import Choice, Writing, asked

_OF_THE_PROMPT = (400, 413, 422)  # statuses that may be this prompt's fault: too long, unfit
_FILTERED = "content_filter"


class Server(BaseModel):
    """How a teacher behind an address is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the environment variable that holds the server's key; its value is kept "
        "nowhere",
    )
    timeout: float = Field(default=120.0, gt=0, description="seconds that an answer may take")
    tries: int = Field(default=5, ge=1, description="how often to ask where the server fails")
    at_once: int = Field(default=4, ge=1, le=256, description="questions at a time")
    same_tokens: bool = Field(
        default=False,
        description="where log-probabilities are asked for: its tokens are the student's, though "
        "it does not tell them",
    )


class ByAddress(BaseModel):
    """A teacher that may be behind an address, mixed into a step as a field of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: Annotated[Server, Unkeyed()] = Field(
        Server(),
        description="how a teacher behind an address is asked: {key: the environment variable with "
        "its key, timeout: 120 seconds, tries: 5, at_once: 4, same_tokens: no}",
    )

    def secrets(self) -> Iterable[str]:
        """The environment variable that holds the server's key, where it wants one."""
        return () if self.server.key is None else (self.server.key,)


def without_beams(how: Choice) -> None:
    """Raise ValueError where a served teacher is to search, for which servers have no setting."""
    if how.beams > 1:
        raise ValueError("a teacher behind an address searches with no beams; write beams: 1")


def connect(address: str, server: Server, ctx: Context) -> Endpoint:
    """The server at an address, with the key that the user's environment holds for it."""
    key = None if server.key is None else ctx.secret(server.key)
    if server.key is not None and not (key or "").strip():
        raise UserError(no_key(server.key))
    return Endpoint(address, key, Patience(server.timeout, server.tries, server.at_once))


def no_key(name: str) -> str:
    """What to say where an environment variable is not set."""
    return (
        f"`server.key` names the environment variable {name}, which is not set. Set it to the "
        "server's key, or leave `key` out where it wants none"
    )


def said_after(
    address: str,
    prompts: Sequence[Example],
    how: Writing,
    server: Server,
    ctx: Context,
    label: str = "writing",
) -> list[Said | None]:
    """What a served teacher writes on from texts, and answers to chats; goes on after a kill.

    None where it gave nothing to use: an empty answer, one that a filter stopped, or a prompt
    that it refused. Such prompts are asked again by a step that goes on. Each has a seed of its
    own, so a prompt that comes twice is answered twice.
    """
    lacking: dict[int, str] = {}
    refusals: dict[int, str] = {}

    def work(item: tuple[int, Example], seed: int) -> list[str] | None:
        number, row = item
        words = row.text if row.messages is None else asked(row)
        small = seed >> 32  # servers differ in how large a seed may be; all take 31 bits
        try:
            said = endpoint.write(words, how.new_tokens, how.temperature, how.top_p, small)
        except Refused as error:
            if number == 0 or error.status not in _OF_THE_PROMPT:  # so it would refuse all of them
                raise
            lacking[number], refusals[number] = "refused", f"{row.where or number}: {error}"
            return None
        if said.text.strip() and said.reason != _FILTERED:
            return [said.text, said.reason]
        lacking[number] = _FILTERED if said.reason == _FILTERED else "empty"
        return None

    with closing(connect(address, server, ctx)) as endpoint:
        made = one_by_one(list(enumerate(prompts)), work, server.at_once, ctx, label)
    found = [None if one is None else Said(*one) for one in made]
    _tell(found, list(lacking.values()), [refusals[at] for at in sorted(refusals)], ctx, label)
    return found


def _tell(
    found: Sequence[Said | None],
    lacking: Sequence[str],
    refusals: Sequence[str],
    ctx: Context,
    label: str,
) -> None:
    """Put into the report why texts ended, and warn of prompts that were refused."""
    reasons = Counter([said.reason or "untold" for said in found if said] + list(lacking))
    counts: dict[str, Any] = dict(sorted(reasons.items()))
    ctx.note(label, counts)
    if refusals:
        ctx.warn(
            f"{len(refusals)} of {len(found)} prompts were refused and left out; the first is "
            f"{refusals[0]}"
        )
    if not any(found):
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise UserError(
            f"the served teacher wrote nothing after any of {len(found)} prompts ({told}). Look at "
            "what the server says of one, and give it prompts and new_tokens enough to answer"
        )
