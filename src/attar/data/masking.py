"""Which tokens a masked language model has to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ModelError

IGNORED = -100
_NEVER = 2.0  # above all that is drawn

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
        rows, length = ids.shape
        generators = [drawing(seed) for seed in seeds]
        masked, labels = self.rows(ids.numpy(), [length] * rows, generators, [None] * rows)
        return torch.from_numpy(masked), torch.from_numpy(labels)

    def rows(
        self,
        ids: Ids,
        sizes: Sequence[int],
        generators: Sequence[np.random.Generator],
        starts: Sequence[Flags | None],
    ) -> tuple[Ids, Ids]:
        """The same for rows that are padded, [rows, length], each with a generator of its own.

        sizes: tokens of each. starts, each [size] or None: True where a word begins, the first
        token included; words are then chosen or left as a whole.
        """
        draw, act, others = np.full(ids.shape, _NEVER), np.zeros(ids.shape), np.zeros_like(ids)
        for row, (size, generator, words) in enumerate(zip(sizes, generators, starts, strict=True)):
            first, act[row, :size] = generator.random((2, size))
            others[row, :size] = generator.integers(self.vocabulary, size=size)
            if words is not None:
                first = first[np.flatnonzero(words)[np.cumsum(words) - 1]]
            draw[row, :size] = first
        draw[self._special[ids]] = _NEVER
        # At least one place in every row: a batch with nothing to judge has no loss.
        least = (draw == draw.min(1, keepdims=True)) & (draw < _NEVER)
        chosen = (draw < self.rate) | least
        labels = np.where(chosen, ids, IGNORED)
        masked = np.where(chosen & (act < 0.8), self.mask_id, ids)
        return np.where(chosen & (act >= 0.9), others, masked), labels


def drawing(seed: int) -> np.random.Generator:
    """A generator that draws the same for the same seed, on every machine."""
    return np.random.Generator(np.random.PCG64(seed))
