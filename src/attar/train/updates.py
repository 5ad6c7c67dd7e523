"""Ways to train few numbers instead of the weights: adapters of low rank, continuous prompts.

Only what is trained has a gradient and moments; the weights are held as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.scope import ModuleFact, Scope
from attar.core.traits import MASKED, SHARED, Trait
from attar.errors import UserError
from attar.layers import swap
from attar.layers.shared import sharing
from attar.layers.swap import dtype_of
from attar.models import adapters, prompts
from attar.models.check import of_head
from attar.models.masks import is_masked
from attar.models.model import Model
from attar.train.scoped import frozen, in_float32

BYTES = 4  # for each weight of the model, which is held in float32


class Update(BaseModel):
    """What is trained instead of the weights, mixed into a step's settings or one of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shifts: ClassVar[bool] = False  # whether blocks see positions that the texts do not have
    widens: ClassVar[bool] = False  # whether attention alone sees them
    forbids: ClassVar[frozenset[Trait]] = frozenset()

    def around(
        self, model: Model, scope: Scope, length: int, ctx: Context
    ) -> AbstractContextManager[None]:
        """Let this be trained, and nothing else, as long as it lasts.

        `length` is how many tokens texts have at most.
        """
        raise NotImplementedError

    def lasting(self, modules: Sequence[ModuleFact], scope: Scope) -> list[str]:
        """The modules whose weights something learned goes with afterwards."""
        raise NotImplementedError


class LoraUpdate(Update):
    """Two thin matrices beside every linear of the blocks in scope; a classifier's head too."""

    decomposed: ClassVar[bool] = False
    # Merged into a weight of several blocks, each block's adapter would change all of them.
    forbids: ClassVar[frozenset[Trait]] = frozenset({MASKED, SHARED})

    rank: int = Field(8, ge=1, description="the rank of each linear's adapter")
    alpha: float | None = Field(
        None,
        gt=0,
        description="alpha / rank is what an adapter is multiplied with; twice the rank by default",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an adapter's inputs that are left out in training"
    )
    leaves: Literal["merged", "adapter"] = Field(
        "merged",
        description="merged: a model as before, of other weights; adapter: the weights as they "
        "were, and the adapter beside them in PEFT's own files",
    )

    @contextmanager
    def around(self, model: Model, scope: Scope, length: int, ctx: Context) -> Iterator[None]:
        module, dtype = model.module, dtype_of(model.module)
        names = _inner(model.facts(), scope)
        _check_fresh(model)
        if not names:
            raise UserError(f"the scope {list(scope.patterns)} holds no linear in a block to adapt")
        for name in names:
            if is_masked(module.get_submodule(name)):
                raise UserError(
                    f"{name} is pruned, and merging would fill its zeros. Take heal/lora"
                )
        if both := sorted(sharing(module).intersection(names)):
            raise UserError(
                f"{both[0]} shares its weight with another block, and an adapter is of one. Train "
                "all weights instead (adapt/full, or leave out `update`)"
            )
        low = adapters.Low(self.rank, self.alpha or 2.0 * self.rank, self.dropout, self.decomposed)
        with in_float32(module), frozen(module):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(ctx.seed, "adapters"))
                adapters.put(module, names, low)
            trained = [*adapters.numbers_of(module), *_head(model, scope)]
            _only(trained, ctx)
            try:
                yield
            except BaseException:
                adapters.take_out(module, merged=False)
                raise
            if self.leaves == "merged":
                adapters.take_out(module)
        for parameter in adapters.numbers_of(module):
            parameter.data = parameter.data.to(dtype)

    def lasting(self, modules: Sequence[ModuleFact], scope: Scope) -> list[str]:
        return _inner(modules, scope) if self.leaves == "adapter" else []


class DoraUpdate(LoraUpdate):
    """The same, and the size of each of the weight's rows apart from its direction."""

    decomposed: ClassVar[bool] = True


class PromptUpdate(Update):
    """Something that is read before every text; language models that write alone."""

    size: int = Field(20, ge=1, description="positions that the prompt takes")
    text: str | None = Field(
        None,
        min_length=1,
        description="a text that the prompt begins as, over and over up to its size; tokens drawn "
        "at random by default",
    )

    @contextmanager
    def around(self, model: Model, scope: Scope, length: int, ctx: Context) -> Iterator[None]:
        self._check(model, length)
        module, dtype = model.module, dtype_of(model.module)
        with in_float32(module), frozen(module):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(ctx.seed, "prompt"))
                prompt = self.begun(model, self._tokens(model)).to(model.device)
            swap(module, prompts.NAME, prompt)
            trained = list(prompt.parameters())
            if prompt.maker is not None:
                trained.remove(prompt.weight)
            _only(trained, ctx)
            try:
                yield
            except BaseException:
                prompt.detach(module)
                raise
            prompt.settle()
        prompt.to(dtype)

    def begun(self, model: Model, tokens: Tensor) -> prompts.Prompt:
        """The prompt that training begins with, from tokens [size]."""
        raise NotImplementedError

    def lasting(self, modules: Sequence[ModuleFact], scope: Scope) -> list[str]:
        return _inner(modules, Scope.everything())

    def _check(self, model: Model, length: int) -> None:
        _check_fresh(model)
        if model.task != "causal-lm":
            raise UserError(
                f"a prompt is read before the texts of a causal language model, and this is one "
                f"for {model.task}. Take `lora` instead"
            )
        places = getattr(model.config, "max_position_embeddings", None)
        if places is not None and length + self.size > places:
            raise UserError(
                f"a prompt of {self.size} positions and texts of {length} tokens do not fit the "
                f"model's {places} positions. Lower `length` or `size`"
            )

    def _tokens(self, model: Model) -> Tensor:
        """The tokens that the prompt begins as."""
        tokenizer = model.tokenizer
        if self.text is None:
            special = set(tokenizer.all_special_ids)
            usual = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - special))
            usual = usual[usual < model.config.vocab_size]
            return usual[torch.randint(len(usual), (self.size,))].to(model.device)
        ids: list[int] = tokenizer(self.text, add_special_tokens=False).input_ids
        if not ids:
            raise UserError(f"the text {self.text!r}, which the prompt begins as, holds no token")
        return torch.tensor((ids * self.size)[: self.size], device=model.device)


class SoftUpdate(PromptUpdate):
    """Embeddings of tokens that there are not."""

    shifts: ClassVar[bool] = True

    def begun(self, model: Model, tokens: Tensor) -> prompts.Prompt:
        start = prompts.embeddings_of(model.module, tokens)
        return prompts.SoftPrompt(*start.shape).fill(start)


class PTuningUpdate(SoftUpdate):
    """The same, made by a small network that is left behind at the end."""

    neurons: int | None = Field(
        None, ge=1, description="the network's inner width; the model's hidden size by default"
    )

    def begun(self, model: Model, tokens: Tensor) -> prompts.Prompt:
        prompt = super().begun(model, tokens)
        prompt.maker = _Encoded(prompt.weight.detach(), self.neurons or prompt.width)
        return prompt


class PrefixUpdate(PromptUpdate):
    """Keys and values in every block."""

    widens: ClassVar[bool] = True

    def begun(self, model: Model, tokens: Tensor) -> prompts.Prompt:
        sizes, count = model.sizes, len(model.blocks)
        start = prompts.keys_and_values_of(model.module, tokens)
        return prompts.Prefix(len(tokens), count, sizes.keys, sizes.head).fill(start)


class Few(BaseModel):
    """One of these, or none where the weights themselves are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraUpdate | None = Field(default=None, description="as adapt/lora")
    dora: DoraUpdate | None = Field(default=None, description="as adapt/dora")
    soft: SoftUpdate | None = Field(default=None, description="as prompt/soft")
    p_tuning: PTuningUpdate | None = Field(default=None, description="as prompt/p-tuning")
    prefix: PrefixUpdate | None = Field(default=None, description="as prompt/prefix")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what is trained; keep one")
        return self

    def chosen(self) -> Update | None:
        """The one that is there."""
        every = (self.lora, self.dora, self.soft, self.p_tuning, self.prefix)
        return next((update for update in every if update is not None), None)


class _Encoded(nn.Module):
    """What PEFT's encoder makes of its own embeddings, beside what the prompt began as."""

    def __init__(self, start: Tensor, neurons: int) -> None:
        super().__init__()
        length, width = start.shape
        peft = adapters.peft()
        config = peft.PromptEncoderConfig(
            num_virtual_tokens=length,
            token_dim=width,
            num_transformer_submodules=1,
            encoder_hidden_size=neurons,
        )
        self.encoder = peft.PromptEncoder(config)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self) -> Tensor:
        return self.start + self.encoder(self.places)


def _inner(modules: Sequence[ModuleFact], scope: Scope) -> list[str]:
    """The linears of the blocks that are in scope."""
    chosen = set(scope.select(modules))
    return [f.name for f in modules if f.name in chosen and f.linear and f.block is not None]


def _check_fresh(model: Model) -> None:
    if prompts.has_prompt(model.module) or any(map(adapters.is_adapted, model.module.modules())):
        raise UserError("the model has an adapter or a prompt already; start from one without")


def _head(model: Model, scope: Scope) -> list[nn.Parameter]:
    """What reads a classifier's classes off the last states, which may be fresh; in scope."""
    if model.task != "classification":
        return []
    chosen = set(model.select(scope))
    return [
        value
        for name, value in model.module.named_parameters()
        if of_head(name) and name.rpartition(".")[0] in chosen
    ]


def _only(trained: Sequence[nn.Parameter], ctx: Context) -> None:
    for parameter in trained:
        parameter.requires_grad_(True)
    count = sum(parameter.numel() for parameter in trained)
    ctx.note("trained", f"{count:,} numbers".replace(",", " "))
