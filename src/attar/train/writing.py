"""A teacher that writes: what it puts after each prompt, by its own choice or at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from attar.core.context import Context
from attar.data.example import Example
from attar.data.tokenize import beginning, templated
from attar.errors import DataError, Problem
from attar.measure.samples import continued, dense, ends_of
from attar.models.model import Model
from attar.train.parts import in_parts


class Choice(BaseModel):
    """How a model chooses what it writes: settings that are mixed into a step as its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        1.0, ge=0, description="what logits are divided by; 0: always the likeliest token"
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="only the likeliest tokens that have so much probability together are drawn",
    )
    beams: int = Field(
        1, ge=1, description="beams of a search for the likeliest text, at temperature 0"
    )

    @model_validator(mode="after")
    def _one_search(self) -> Self:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beams search for the likeliest text; set temperature: 0 with them")
        return self

    def choice(self) -> dict[str, Any]:
        """The same in the words of transformers' `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "num_beams": self.beams}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
        }


class Writing(Choice):
    """How a model writes, and how much."""

    new_tokens: int = Field(128, ge=1, description="tokens to write after a prompt, at most")


def write_after(
    model: Model,
    prompts: Sequence[list[int]],
    how: Writing,
    batch: int,
    ctx: Context,
    label: str = "writing",
) -> list[list[int]]:
    """The new tokens after each prompt, the one that ends a text kept; goes on after a kill."""

    def work(part: Sequence[list[int]], seed: int) -> list[list[int]]:
        with seeded(seed, ctx.device):
            return continued(model, part, how.new_tokens, ctx.precision, how.choice())

    with dense(model, ctx.precision):
        return in_parts(prompts, batch, work, ctx, label)


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Random numbers from a seed as long as the block runs, and afterwards as before."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def prompt_of(example: Example, tokenizer: Any) -> list[int]:
    """The tokens to go on from: a text, or a chat up to the answer that is to be given."""
    if example.messages is None:
        return beginning(tokenizer) + tokenizer(example.text, add_special_tokens=False).input_ids
    messages = asked(example)
    if not getattr(tokenizer, "chat_template", None):
        text = f"{example.where}: chat messages need a model with a chat template"
        raise DataError([Problem(text)])
    text = templated(messages, tokenizer, example.where, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def asked(example: Example) -> list[dict[str, Any]]:
    """The messages of a chat without the answers at its end."""
    messages = list(example.messages or ())
    while len(messages) > 1 and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def nothing(model: Model) -> list[int]:
    """The prompt of a text that begins from nothing: the token that begins or ends texts."""
    tokenizer = model.tokenizer
    found = (tokenizer.bos_token_id, *sorted(ends_of(model)), tokenizer.eos_token_id)
    return [next((token for token in found if token is not None), 0)]
