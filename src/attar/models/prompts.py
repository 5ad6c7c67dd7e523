"""Continuous prompts: what a causal language model reads before every text, learned as numbers.

A prompt is one more submodule of the whole model, called `prompt`. It stands before the base
model while that is called, so hidden states, logits and `generate` all come after it, and
nothing of the model is wrapped or renamed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from attar.errors import UserError
from attar.layers.swap import dtype_of, swappable

NAME = "prompt"
_CACHE, _MASK, _PLACES = "past_key_values", "attention_mask", "position_ids"


class Prompt(nn.Module):
    """Numbers for `length` positions, [length, width], before the first token of every text.

    `maker`, if there is one, makes them of its own parameters as long as it is trained.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.weight = nn.Parameter(torch.empty(length, width))
        self.maker: Callable[[], Tensor] | None = None

    def fill(self, weight: Tensor) -> Self:
        """Take these numbers."""
        self.weight = nn.Parameter(weight)
        return self

    def shown(self) -> Tensor:
        """The numbers as they are now."""
        return self.weight if self.maker is None else self.maker()

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the numbers as they are now, and forget what made them."""
        weight = self.shown().detach().clone()
        if self.maker is not None:
            del self.maker
            self.maker = None
        self.fill(weight)

    def attach(self, owner: Any) -> None:
        """Stand before the base model."""
        base = owner.base_model
        base.forward = partial(self._called, base, base.forward)

    def detach(self, owner: Any) -> None:
        """Go away again."""
        owner.base_model.__dict__.pop("forward", None)
        del owner._modules[NAME]

    def begin(self, base: Any, forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Call the base model on the beginning of texts."""
        raise NotImplementedError

    def _called(self, base: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}
        cache, mask, places = (given.get(name) for name in (_CACHE, _MASK, _PLACES))
        if mask is not None:
            if mask.dim() != 2:
                raise UserError(
                    "a model with a prompt writes with the default cache; leave out "
                    "cache_implementation"
                )
            given[_MASK] = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        if places is not None:
            given[_PLACES] = places + self.length
        if cache is not None and cache.get_seq_length() > 0:  # the prompt is in it
            return forward(**given)
        return self.begin(base, forward, given)


@swappable
class SoftPrompt(Prompt):
    """Embeddings of tokens that there are not, [length, hidden]."""

    def begin(self, base: Any, forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        tokens, embeds = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        if embeds is None:
            embeds = base.get_input_embeddings()(tokens)
        own = self.shown().to(embeds.dtype).expand(len(embeds), -1, -1)
        given["inputs_embeds"] = torch.cat([own, embeds], 1)
        places = given.get(_PLACES)
        if places is not None:
            first = torch.arange(self.length, device=places.device).expand(len(places), -1)
            given[_PLACES] = torch.cat([first, places], 1)
        output = forward(**given)
        if isinstance(output, tuple):
            return output[0][:, self.length :], *output[1:]
        output.last_hidden_state = output.last_hidden_state[:, self.length :]
        return output

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {"length": self.length, "width": self.width}

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape, in the dtype of the model's other weights."""
        return cls(**spec).to(dtype_of(model))


@swappable
class Prefix(Prompt):
    """Keys and values that every block's attention finds in its cache.

    A position's row holds, block by block, the keys of all heads and then the values.
    """

    def __init__(self, length: int, blocks: int, heads: int, head: int) -> None:
        super().__init__(length, blocks * 2 * heads * head)
        self.blocks, self.heads, self.head = blocks, heads, head

    def begin(self, base: Any, forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        tokens = given.get("input_ids")
        shown: Any = given.get("inputs_embeds") if tokens is None else tokens
        rows, cache = len(shown), given.get(_CACHE)
        if cache is None:
            cache = DynamicCache(config=base.config)
        for index, (keys, values) in enumerate(self._pairs()):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return forward(**{**given, _CACHE: cache})

    def _pairs(self) -> Tensor:
        """[blocks, 2, heads, length, head], in the dtype that the model computes in."""
        own, device = self.shown(), self.weight.device.type
        if torch.is_autocast_enabled(device):
            own = own.to(torch.get_autocast_dtype(device))
        shape = (self.length, self.blocks, 2, self.heads, self.head)
        return own.view(shape).permute(1, 2, 3, 0, 4)

    def spec(self) -> dict[str, Any]:
        """Its shape."""
        return {
            "length": self.length,
            "blocks": self.blocks,
            "heads": self.heads,
            "head": self.head,
        }

    @classmethod
    def rebuild(cls, spec: dict[str, Any], model: nn.Module) -> nn.Module:
        """An empty one of the same shape, in the dtype of the model's other weights."""
        return cls(**spec).to(dtype_of(model))


@torch.no_grad()
def embeddings_of(module: Any, tokens: Tensor) -> Tensor:
    """The embeddings of tokens [length], [length, hidden]: a prompt that says the same."""
    return module.base_model.get_input_embeddings()(tokens).clone()


@torch.no_grad()
def keys_and_values_of(module: Any, tokens: Tensor) -> Tensor:
    """What a model caches of tokens [length], as a Prefix holds it: one that says the same."""
    cache: Any = DynamicCache()
    module.base_model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(len(tokens), -1).contiguous()


def has_prompt(module: nn.Module) -> bool:
    """Whether the model reads a prompt before every text."""
    return isinstance(getattr(module, NAME, None), Prompt)
