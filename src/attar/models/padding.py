"""What shorter texts are padded with, which is also how some classifiers find where one ends."""

from __future__ import annotations

from typing import Any


def filler(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, or the end-of-text token, or 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def pad_alike(config: Any, tokenizer: Any) -> None:
    """Let texts be padded with the token by which a decoder that classifies finds their ends.

    It reads the last token that is not the config's padding. The tokenizer takes that one where
    it is special; a word made so would be cut out of texts. Else the config takes what the
    tokenizer pads with.
    """
    config = config.get_text_config()
    if config.pad_token_id not in tokenizer.all_special_ids:
        config.pad_token_id = filler(tokenizer)
    elif config.pad_token_id != filler(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
