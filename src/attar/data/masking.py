"""Which tokens a masked language model has to tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ModelError

IGNORED = -100

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Masker:
    """BERT's rule: of the chosen places 80 % are masked, 10 % get any token, 10 % stay.

    Rows are NumPy's, which is several times as fast as torch for so few numbers at once.
    """

    def __init__(self, tokenizer: Any, rate: float) -> None:
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token, so the model is no masked language model. "
                "Set task: causal-lm, or give a model such as BERT"
            )
        self.mask_id, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.rate = rate
        special = list(set(tokenizer.all_special_ids))
        self._special = np.zeros(max([self.vocabulary - 1, *special]) + 1, dtype=np.bool_)
        self._special[special] = True

    def mask(self, ids: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """The inputs, [rows, length], with masks in them, and the labels at the chosen places."""
        pairs = zip(ids.numpy(), map(drawing, seeds), strict=True)
        rows = [self.row(row, generator) for row, generator in pairs]
        masked, labels = (np.stack(some) for some in zip(*rows, strict=True))
        return torch.from_numpy(masked), torch.from_numpy(labels)

    def row(
        self, ids: Ids, generator: np.random.Generator, starts: Flags | None = None
    ) -> tuple[Ids, Ids]:
        """The same for one row, [length].

        `starts`, [length], is True where a word begins, the first token included: words are then
        chosen or left as a whole.
        """
        draw, act = generator.random((2, len(ids)))
        others = generator.integers(self.vocabulary, size=len(ids))
        if starts is not None:
            draw = draw[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
        draw = np.where(self._special[ids], 2.0, draw)
        # At least one place in every row: a batch with nothing to judge has no loss.
        chosen = (draw < self.rate) | ((draw == draw.min()) & (draw < 2.0))
        labels = np.where(chosen, ids, IGNORED)
        masked = np.where(chosen & (act < 0.8), self.mask_id, ids)
        return np.where(chosen & (act >= 0.9), others, masked), labels


def drawing(seed: int) -> np.random.Generator:
    """A generator that draws the same for the same seed, on every machine."""
    return np.random.Generator(np.random.PCG64(seed))
