"""Which tokens a masked language model has to tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attar.errors import ModelError

IGNORED = -100


class Masker:
    """BERT's rule: of the chosen places 80 % are masked, 10 % get any token, 10 % stay."""

    def __init__(self, tokenizer: Any, rate: float) -> None:
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token, so the model is no masked language model. "
                "Set task: causal-lm, or give a model such as BERT"
            )
        self.mask_id, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        self.rate = rate

    def mask(self, ids: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """The inputs, [rows, length], with masks in them, and the labels at the chosen places."""
        rows = [self.row(row, seed) for row, seed in zip(ids, seeds, strict=True)]
        return torch.stack([row for row, _ in rows]), torch.stack([label for _, label in rows])

    def row(self, ids: Tensor, seed: int, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same for one row, [length].

        `starts`, [length], is True where a word begins, the first token included: words are then
        chosen or left as a whole.
        """
        generator = torch.Generator().manual_seed(seed)
        draw, act = torch.rand(2, len(ids), generator=generator)
        others = torch.randint(self.vocabulary, ids.shape, generator=generator)
        if starts is not None:
            draw = draw[starts.nonzero().flatten()[starts.cumsum(0) - 1]]
        draw = draw.masked_fill(torch.isin(ids, self.special), 2.0)
        # At least one place in every row: a batch with nothing to judge has no loss.
        chosen = (draw < self.rate) | ((draw == draw.min()) & (draw < 2.0))
        labels = ids.masked_fill(~chosen, IGNORED)
        masked = ids.masked_fill(chosen & (act < 0.8), self.mask_id)
        return torch.where(chosen & (act >= 0.9), others, masked), labels
