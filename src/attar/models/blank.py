"""A model to begin from nothing with: a tokenizer learned from text, and a config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def blank(folder: Path, texts: Iterable[str], vocabulary: int = 8000, **sizes: Any) -> None:
    """Write a folder that `model: {path: FOLDER, fresh: yes}` begins from: a BERT, both heads.

    Its WordPiece vocabulary is learned from `texts`: pieces of words where spaces part words,
    and single characters of Chinese; the same texts give the same one. `sizes` are those of
    transformers' BertConfig, such as num_hidden_layers, hidden_size, num_attention_heads,
    intermediate_size.
    """
    tokenizer = _learned(texts, vocabulary)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), architectures=["BertForPreTraining"], **sizes
    )
    tokenizer.model_max_length = config.max_position_embeddings
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _learned(texts: Iterable[str], vocabulary: int) -> Any:
    texts = list(texts)
    learned = _empty({})
    # What may go on in a word is numbered beforehand: the trainer would number it as it meets
    # words, in another order in each process, and break ties between pieces by these numbers.
    normal, cut = learned.normalizer.normalize_str, learned.pre_tokenizer.pre_tokenize_str
    words = (word for text in texts for word, _ in cut(normal(text)))
    within = Counter(char for word in words for char in word[1:])
    inner = [f"##{char}" for char in sorted(dict(within.most_common(vocabulary)))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*_SPECIAL, *inner],
        limit_alphabet=vocabulary,  # by default 1,000 characters, too few for Chinese
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    plain = _empty(learned.get_vocab())
    begin, close = (plain.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", begin), ("[SEP]", close)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _empty(vocabulary: dict[str, int]) -> Any:
    """A WordPiece tokenizer as BERT's, with this vocabulary."""
    kind: Any = models.WordPiece
    made = Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made
