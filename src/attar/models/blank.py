"""Models to begin from nothing with: a tokenizer learned from text, a config, a processor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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

from attar.models.load import quiet

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


def blank_towers(
    folder: Path,
    texts: Iterable[str],
    size: int,
    text: Mapping[str, Any],
    image: Mapping[str, Any],
    width: int = 256,
    vocabulary: int = 8000,
) -> None:
    """Write a folder that a fresh CLIP begins from: a tower for texts, and one for images.

    `size` is the side of its square images, in pixels, `width` that of the vectors that both
    towers end in. `text` and `image` are the towers' sizes, in the words of transformers'
    CLIPTextConfig and CLIPVisionConfig; the tokenizer is learned from `texts`, as `blank` does.
    """
    tokenizer = _learned(texts, vocabulary)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    special = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    config: Any = transformers.CLIPConfig(
        text_config={"vocab_size": len(tokenizer), **special, **text},
        vision_config={"image_size": size, **image},
        projection_dim=width,
        architectures=["CLIPModel"],
    )
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    side = {"height": size, "width": size}
    with quiet():
        images = transformers.CLIPImageProcessor(size=side, crop_size=side)
        config.save_pretrained(folder)
        transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)


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
