"""Tiny decoders with a byte-level tokenizer, for containers that hold one."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from attar.models.model import Model
from tiny_models import tiny

ROWS = 320
TEXT = [
    "the keeper counted the crates twice before he wrote their number down",
    "there were 1234 of them, and that was right",
]


@cache
def byte_level() -> Any:
    """A byte-pair tokenizer like GPT-2's, with three special tokens and a few merges."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(TEXT * 4, trainer)
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    found.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return found


def decoder(kind: str = "llama", **overrides: Any) -> Model:
    """A tiny decoder that reads bytes. Heads of 16, so that rows of queries are turned."""
    sizes = {"vocab_size": ROWS, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    own = {"mlp_bias": False} if kind == "llama" else {}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    model = tiny(kind, **{**sizes, **own, **ids, "sliding_window": None, **overrides})
    return Model(model.module, copy.deepcopy(byte_level()), "causal-lm")  # tests change it
