"""Which tokens a masked language model has to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ModelError

IGNORED = -100

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Random numbers for the places of rows, each [rows, length].

    choice: whether a place is chosen; from 0 to below 1, or 1 where it never is. act: what
    becomes of it; from 0 to below 1. others: any tokens.
    """

    choice: Floats
    act: Floats
    others: Ids


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
        choice, act = np.empty(ids.shape), np.empty(ids.shape)
        others = np.empty(ids.shape, np.int64)
        for row, generator in enumerate(np.random.Generator(np.random.PCG64(s)) for s in seeds):
            choice[row], act[row] = generator.random((2, ids.shape[1]))
            others[row] = generator.integers(self.vocabulary, size=ids.shape[1])
        masked, labels = self.masked(ids.numpy(), Draws(choice, act, others))
        return torch.from_numpy(masked), torch.from_numpy(labels)

    def masked(self, ids: Ids, draws: Draws, starts: Flags | None = None) -> tuple[Ids, Ids]:
        """The same with numbers that were drawn elsewhere.

        starts: [rows, length], True where a word begins, as each row does; words are then chosen
        or left as a whole.
        """
        choice = draws.choice
        if starts is not None:
            choice = choice.take(np.flatnonzero(starts)[np.cumsum(starts) - 1]).reshape(ids.shape)
        choice = np.where(self._special[ids], 1.0, choice)
        # At least one place in every row: a batch with nothing to judge has no loss.
        least = (choice == choice.min(1, keepdims=True)) & (choice < 1)
        chosen = (choice < self.rate) | least
        labels = np.where(chosen, ids, IGNORED)
        masked = np.where(chosen & (draws.act < 0.8), self.mask_id, ids)
        return np.where(chosen & (draws.act >= 0.9), draws.others, masked), labels
