"""A tokenizer as GGUF holds it: tokens, kinds, merges or scores, special ids, chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attar.models import Model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# How a text is cut before merging, told by what becomes of a probe: bytes, runs of digits, whether
# contractions are cut off in capitals too. Its last word is another where letters are made alike.
_PROBE = "I'LL 1234567 Éﬁ"
_INNER = "##"  # begins a piece that goes on with a word, in WordPiece
_SPACE = "\u2581"  # begins one that opens a word, in GGUF
_KINDS = {"causal-lm": "BPE", "embedding": "WordPiece"}
_WORDS = "É don't ﬁt 中文-x"
_WORDS_CUT = ["e", "don", "'", "t", "ﬁt", "中", "文", "-", "x"]
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unk", "pad": "pad"}  # GGUF's names: transformers'
_PIECES_SPECIAL = {**_SPECIAL, "bos": "cls", "eos": "sep", "sep": "sep", "mask": "mask"}
_CUTS = {
    "I ' LL Ġ1234567 ĠÃīï¬ģ": "gpt-2",
    "I ' LL Ġ 1 2 3 4 5 6 7 ĠÃīï¬ģ": "smollm",
    "I 'LL Ġ 1 2 3 4 5 6 7 ĠÃīï¬ģ": "qwen2",
    "I 'LL Ġ 123 456 7 ĠÃīï¬ģ": "llama-bpe",
}


@dataclass(frozen=True)
class Vocabulary:
    """What the file holds of a tokenizer: `merges` of byte-level ones, `scores` of others with
    merges, and of WordPiece neither.
    """

    model: str
    cut: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] | None
    scores: list[float] | None


def vocabulary_problem(model: Model) -> Iterator[str]:
    """Why a model's tokenizer cannot be written into a GGUF file."""
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield "its tokenizer has no tokenizer.json, which is what a GGUF file's is made of"
        return
    plain = json.loads(backend.to_str())
    kind, wanted = plain["model"]["type"], _KINDS[model.task]
    if kind != wanted:
        yield f"its tokenizer is a {kind}, and one for {model.task} is written if it is a {wanted}"
    elif kind == "WordPiece":
        yield from _pieces_problem(model, backend, plain)
    elif plain["model"]["byte_fallback"] and _rewrites(backend):
        yield "its tokenizer changes letters before it cuts texts, and llama.cpp does not"
    elif not plain["model"]["byte_fallback"] and _cut(backend) is None:
        yield (
            "its tokenizer cuts texts in a way that has no name here, is none of bytes or changes "
            f"texts before; those that have one: {', '.join(_CUTS.values())}. Export to hf or onnx"
        )


def _pieces_problem(model: Model, backend: Any, plain: dict[str, Any]) -> Iterator[str]:
    """What of WordPiece llama.cpp does otherwise, which does it as BERT does."""
    tokenizer, normalizer, cut = model.tokenizer, backend.normalizer, backend.pre_tokenizer
    inner = plain["model"]["continuing_subword_prefix"]
    if inner != _INNER:
        yield f"its tokenizer begins the inner pieces of words with {inner!r}, and not {_INNER!r}"
    words = normalizer.normalize_str(_WORDS) if normalizer else _WORDS
    parts = [part for part, _ in cut.pre_tokenize_str(words)] if cut else [words]
    if parts != _WORDS_CUT:
        yield (
            f"its tokenizer makes {parts} of {_WORDS!r}, and llama.cpp makes letters small and "
            "plain, and cuts at punctuation and Chinese characters"
        )
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    ids = tokenizer("a").input_ids
    if None in (*ends, tokenizer.unk_token_id) or [ids[0], ids[-1]] != ends:
        yield (
            "its tokenizer does not name a first, a last and an unknown token ([CLS], [SEP] and "
            "[UNK]) that it writes around texts, as llama.cpp will"
        )
    written = Counter(vocabulary(tokenizer, model.config.vocab_size).tokens)
    twice = [token for token, count in written.items() if count > 1]
    if twice:
        yield f"two of its tokens are the same in GGUF: {twice[0]!r}"


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The tokens of every row of the embedding, and how texts become tokens."""
    backend = tokenizer.backend_tokenizer
    plain = json.loads(backend.to_str())
    tokens, kinds = _tokens(plain, tokenizer, rows)
    if plain["model"]["type"] == "WordPiece":
        tokens = [_piece(*both) for both in zip(tokens, kinds, strict=True)]
        return Vocabulary("bert", "default", tokens, kinds, None, None)
    pairs = [p.split(" ", 1) if isinstance(p, str) else p for p in plain["model"]["merges"]]
    if not plain["model"]["byte_fallback"]:
        merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
        return Vocabulary("gpt2", _cut(backend) or "", tokens, kinds, merges, None)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    scores = [-float(ranks.get(token, 0)) for token in tokens]
    return Vocabulary("llama", "default", tokens, kinds, None, scores)


def _piece(token: str, kind: int) -> str:
    """WordPiece: what goes on with a word is bare there, what opens one has a mark before it."""
    if kind != NORMAL:
        return token
    return token[len(_INNER) :] if token.startswith(_INNER) else _SPACE + token


def add_vocabulary(writer: Any, model: Model) -> None:
    """Add the tokenizer and its chat template to the file."""
    tokenizer = model.tokenizer
    found = vocabulary(tokenizer, model.config.vocab_size)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.cut)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.merges is not None:
        writer.add_token_merges(found.merges)
    if found.scores is not None:
        writer.add_token_scores(found.scores)
    special = _PIECES_SPECIAL if found.model == "bert" else _SPECIAL
    special = {name: getattr(tokenizer, f"{own}_token_id") for name, own in special.items()}
    for name, id_ in special.items():
        if id_ is not None:
            getattr(writer, f"add_{name}_token_id")(id_)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == special["bos"])
    writer.add_add_eos_token(ids[-1] == special["eos"])
    writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    generation = getattr(model.module, "generation_config", None)  # decoders have one
    ends = getattr(generation, "eos_token_id", None)
    others = (
        [id_ for id_ in ends if id_ != tokenizer.eos_token_id] if isinstance(ends, list) else []
    )
    if others:
        writer.add_eot_token_id(others[0])
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)


def _tokens(plain: dict[str, Any], tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    tokens, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    in_bytes = plain["model"].get("byte_fallback", False)
    for token, id_ in tokenizer.get_vocab().items():
        if id_ < rows:
            tokens[id_], kinds[id_] = token, NORMAL
            if in_bytes and len(token) == 6 and token.startswith("<0x"):
                kinds[id_] = BYTE
    for added in plain["added_tokens"]:
        if added["id"] < rows:
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = tokenizer.unk_token_id
    if in_bytes and unknown is not None:
        kinds[unknown] = UNKNOWN
    return tokens, kinds


def _rewrites(backend: Any) -> bool:
    """Whether more becomes of a word than the mark of a space before it."""
    normalizer, word = backend.normalizer, _PROBE.split()[-1]
    return normalizer is not None and normalizer.normalize_str(word).strip(_SPACE) != word


def _cut(backend: Any) -> str | None:
    """llama.cpp's name for how a text is cut before merging; None where it has none here.

    None too where texts are changed before that, or bytes are no tokens: nothing of it is read.
    """
    normalizer, cut = backend.normalizer, backend.pre_tokenizer
    if cut is None:
        return None
    text = normalizer.normalize_str(_PROBE) if normalizer else _PROBE
    parts = " ".join(part for part, _ in cut.pre_tokenize_str(text))
    known = {*parts} - {" "} <= backend.get_vocab().keys()
    return _CUTS.get(parts) if known else None
