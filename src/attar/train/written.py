"""Batches of which a share is finished by the model that is being trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from torch import Tensor

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.data.batches import Batch, Stream
from attar.data.tokenize import filler
from attar.models.model import Model, inference
from attar.ops.divergence import IGNORED

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
    """Rows of the data cut to prompts, and after those the model's own words or the data's.

    Of n batches floor(share x n) are the model's own, spread evenly. Only what comes after the
    prompt is judged, whoever wrote it, up to the end of the text. A batch depends on its number,
    the seed and the weights as they are, and on nothing else.
    """

    def __init__(
        self, stream: Stream, model: Model, ctx: Context, share: float, prompt: int, heat: float
    ) -> None:
        self._stream, self._model, self._ctx = stream, model, ctx
        self._share, self._prompt, self._heat = share, prompt, heat
        self.per_epoch = stream.per_epoch
        self._tokens = 0

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch that a rank works on in a step."""
        given = self._stream.batch(step, rank, world)
        if floor((step + 1) * self._share) == floor(step * self._share):
            labels = given.labels.clone()
            labels[:, : self._prompt] = IGNORED
            return Batch(given.input_ids, given.attention_mask, labels)
        ids = self._write(given.input_ids[:, : self._prompt], seed_of(self._ctx.seed, step, rank))
        mask = _until_end(ids, self._prompt, _ends(self._model))
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : self._prompt] = IGNORED
        self._tokens += int(mask[:, self._prompt :].sum())
        self._ctx.note("written tokens", self._tokens)
        return OwnWords(ids, mask, labels)

    def _write(self, prompts: Tensor, seed: int) -> Tensor:
        """Prompts and what the model adds to them, sampled from its whole distribution."""
        module, device = self._model.module, self._model.device
        training = module.training
        module.eval()
        try:
            with torch.random.fork_rng(), inference(device, self._ctx.precision):
                torch.manual_seed(seed)
                made = module.generate(
                    input_ids=prompts.to(device),
                    attention_mask=torch.ones_like(prompts, device=device),
                    max_new_tokens=self._stream.length - self._prompt,
                    temperature=self._heat,
                    pad_token_id=filler(self._model.tokenizer),
                    **_WHOLE,
                )
        finally:
            module.train(training)
        return made.cpu()


def _ends(model: Model) -> list[int]:
    """The tokens that end a text."""
    config = model.module.generation_config or model.config
    found = config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _until_end(ids: Tensor, prompt: int, ends: list[int]) -> Tensor:
    """1 for the prompt and up to the first end after it, and 0 behind that."""
    ended = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype))
    ended[:, :prompt] = False
    behind = ended.long().cumsum(1) - ended.long()
    return (behind == 0).long()
