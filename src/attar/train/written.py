"""Batches of which a share is finished by the model that is being trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.data.batches import Batch
from attar.measure.samples import continued
from attar.models.model import Model
from attar.models.padding import filler
from attar.train.answers import Answers, padded, prompts_in
from attar.train.writing import seeded

# A model's own generation config may ask for less than its whole distribution: not here.
_WHOLE: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "top_p": 1.0,
    "top_k": 0,
    "use_cache": True,
    # A model gone astray must write something, for the loss to say so: nothing is drawn from NaN.
    "remove_invalid_values": True,
}


@dataclass
class OwnWords(Batch):
    """A batch that the model wrote: its words are judged by a teacher, and are no labels."""


class Written:
    """Prompts of rows, and after those the model's own words or the data's.

    Of n batches floor(share x n) are the model's own, spread evenly. Only what comes after the
    prompt is judged, whoever wrote it, up to the end of the text. A batch depends on its number,
    the seed and the weights as they are, and on nothing else. Prompt and words together are
    `length` tokens at most.
    """

    def __init__(
        self, rows: Answers, model: Model, ctx: Context, length: int, share: float, heat: float
    ) -> None:
        self._rows, self._model, self._ctx = rows, model, ctx
        self._length, self._share, self._heat = length, share, heat
        self.per_epoch = rows.per_epoch
        self._tokens = 0

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        given = self._rows.batch(step, rank, world)
        if floor((step + 1) * self._share) == floor(step * self._share):
            return given
        prompts = prompts_in(given)
        words = self._write(prompts, seed_of(self._ctx.seed, step, rank))
        made = padded(list(zip(prompts, words, strict=True)), filler(self._model.tokenizer))
        self._tokens += sum(map(len, words))
        self._ctx.note("written tokens", self._tokens)
        return OwnWords(made.input_ids, made.attention_mask, made.labels)

    def _write(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        """What the model adds to prompts, sampled from its whole distribution."""
        module, room = self._model.module, self._length - max(map(len, prompts))
        training = module.training
        module.eval()
        try:
            with seeded(seed, self._ctx.device):
                how = {**_WHOLE, "temperature": self._heat}
                return continued(self._model, prompts, room, self._ctx.precision, how)
        finally:
            module.train(training)
