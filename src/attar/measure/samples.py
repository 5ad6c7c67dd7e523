"""What a model writes: greedy continuations, and whether they end in a loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from attar.core.context import Bar, Progress, Silent
from attar.data.batches import Batch
from attar.layers import drop_floats, keep_floats
from attar.measure.machine import free_memory
from attar.models.model import Model, autocast

PROMPT = 16  # tokens of a held-out sequence to go on from
_PERIOD, _TIMES = 16, 4  # the longest cycle, and how often it must come, to be called a loop
_SHORTEST = 12  # tokens that the cycles must span: four full stops are no loop yet
_AT_ONCE = 8
_WORDS = re.compile(r"[A-Za-z0-9_À-ɏ]+|\S")


def write(
    model: Model,
    prompts: Sequence[str],
    new_tokens: int,
    precision: str = "float32",
    chat: bool = False,
) -> list[str]:
    """What the model writes after each prompt, greedily: always its likeliest next token.

    A prompt is a text to go on from. With `chat` it is a user's message instead, put into the
    tokenizer's chat template where it has one.
    """
    rows = [_encode(model, prompt, chat) for prompt in prompts]
    with dense(model, precision):
        written = [
            ids
            for start in range(0, len(rows), _AT_ONCE)
            for ids in continued(model, rows[start : start + _AT_ONCE], new_tokens, precision)
        ]
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]


def looping(token_ids: Sequence[int]) -> bool:
    """Whether tokens end in a cycle of at most 16 tokens that comes at least 4 times.

    The cycles must span 12 tokens, so that a row of dots or an ellipsis is no loop yet.
    """
    ids = list(token_ids)
    for period in range(1, _PERIOD + 1):
        span = max(_TIMES * period, _SHORTEST)
        tail = ids[-span:]
        if len(tail) == span and tail[period:] == tail[:-period]:
            return True
    return False


def looping_text(text: str) -> bool:
    """The same of a text that was cut off, by its words; of Chinese by its characters."""
    words = _WORDS.findall(text)
    return looping(words) or looping(words[:-1])  # the last one may be cut


def looping_share(
    model: Model,
    batches: Sequence[Batch],
    precision: str = "float32",
    progress: Progress | None = None,
    prompts: int = 8,
    new_tokens: int = 48,
) -> float:
    """The share of continuations that end in a loop: 48 tokens after the first 16 of a text.

    The prompts are the first held-out sequences; a continuation that ends by itself is no
    loop. 0 where there is nothing to go on from.
    """
    rows = _beginnings(batches, prompts)
    if not rows:
        return 0.0
    with (
        dense(model, precision),
        (progress or Silent()).bar("looking for repetition", new_tokens) as bar,
    ):
        written = continued(model, rows, new_tokens, precision, _ticking(bar))
    ends = ends_of(model)
    loops = [looping(ids) for ids in written if not ends.intersection(ids)]
    return sum(loops) / len(written)


@contextmanager
def dense(model: Model, precision: str) -> Iterator[None]:
    """Unpack quantized weights once, and not for every token, as long as the block runs.

    The numbers are the same ones; only the time differs. Where memory is short, nothing
    happens.
    """
    dtype = torch.bfloat16 if precision == "bf16" else next(model.module.parameters()).dtype
    try:
        if 2 * model.parameters_count() * dtype.itemsize <= free_memory():
            keep_floats(model.module, dtype)
        yield
    finally:
        drop_floats(model.module)


def _encode(model: Model, prompt: str, chat: bool) -> list[int]:
    tokenizer = model.tokenizer
    if chat and tokenizer.chat_template:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False).input_ids
    ids: list[int] = tokenizer(prompt).input_ids
    return ids or [next((i for i in (tokenizer.bos_token_id, *ends_of(model)) if i is not None), 0)]


def _beginnings(batches: Sequence[Batch], count: int) -> list[list[int]]:
    """The first tokens of the first sequences that are long enough."""
    found: list[list[int]] = []
    for batch in batches:
        length = min(PROMPT, batch.input_ids.shape[1])
        whole = batch.attention_mask[:, :length].bool().all(1)
        found += batch.input_ids[whole, :length].tolist()
        if len(found) >= count:
            break
    shortest = min((len(row) for row in found), default=0)
    return [row[:shortest] for row in found[:count]]


class _Tick:
    """Advances a bar at each token; to transformers it is a processor that changes nothing."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._bar.advance()
        return scores


def _ticking(bar: Bar) -> dict[str, Any]:
    return {"logits_processor": [_Tick(bar)]}


def continued(
    model: Model,
    rows: Sequence[list[int]],
    new_tokens: int,
    precision: str,
    how: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The new tokens of each row, together, padded on the left; the end token is kept.

    Greedily, unless `how` says otherwise in the words of transformers' `generate`.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    new_tokens = min(new_tokens, limit - 1)
    rows = [row[-(limit - new_tokens) :] for row in rows]
    width, ends = max(len(row) for row in rows), ends_of(model)
    filler = model.tokenizer.pad_token_id
    filler = next(iter(ends), 0) if filler is None else filler
    ids = torch.tensor([[filler] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    # Not inference mode: only outside it does autocast keep the weights it has made bf16 of.
    with torch.no_grad(), autocast(model.device, precision):
        made = model.module.generate(
            input_ids=ids,
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            pad_token_id=filler,
            **{**_GREEDY, **(how or {})},
        )
    return [_until_end(row, ends) for row in made[:, width:].tolist()]


# A model's own generation config may ask for sampling or punish repetition: not here.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


def ends_of(model: Model) -> set[int]:
    """The tokens that end a text."""
    config = model.module.generation_config or model.config
    found = config.eos_token_id
    if found is None:
        return set()
    return {found} if isinstance(found, int) else set(cast("list[int]", found))


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    last = next((number for number, token in enumerate(ids) if token in ends), len(ids))
    return ids[: last + 1]
