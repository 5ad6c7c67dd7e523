"""Write variants of texts by letting a masked language model fill words in (TinyBERT's way)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.step import FileRef, ModelRef, Task
from attar.data.batches import IGNORED, Batch
from attar.data.example import Dataset
from attar.data.files import located
from attar.data.synonyms import as_written
from attar.data.vectors import Vectors, read_vectors
from attar.errors import UserError
from attar.models.model import Model, inference
from attar.models.padding import filler
from attar.models.places import room_for
from attar.techniques.data._variants import VariantsStep, by_pieces

_BEGINNINGS = ("\u0120", "\u2581")  # how tokens of other tokenizers than BERT's begin a word
_CONTINUES = "##"
_SPARE = 16  # tokens looked at beside those wanted: pieces of words and marks are no candidates


class Mlm(VariantsStep, kind="data/mlm"):
    """Data augmentation of TinyBERT (Jiao et al. 2020, arXiv 1909.10351, algorithm 1).

    A word that is one token is masked, and the likeliest words there may stand for it; one of
    several tokens has its nearest neighbors in `vectors`, and without such a file stays as it is.
    Each word is then replaced with the probability `share`, in `variants` texts. What lies between
    words is not touched.
    """

    mlm: ModelRef = Field(
        "original", description="the masked language model: the original, or a path"
    )
    share: float = Field(0.4, gt=0, le=1, description="how likely a word is replaced")
    candidates: int = Field(15, ge=1, description="words that may stand for a word")
    vectors: FileRef | None = Field(
        None,
        description="word vectors for words of several tokens: a file of GloVe's form, `word "
        "number number ...` a line",
    )

    def asks(self) -> Mapping[str, tuple[Task, ...]]:
        """A masked language model too, whatever the recipe's own task."""
        return {**super().asks(), "mlm": ("masked-lm",)}

    def make(self, ctx: Context) -> Dataset:
        """The rows and their variants."""
        model: Model = ctx.model(self.mlm, "masked-lm")
        if model.tokenizer.mask_token_id is None or not model.tokenizer.is_fast:
            raise UserError(
                f"`mlm` {self.mlm} has no mask token in a fast tokenizer (tokenizer.json). Take "
                "a model such as BERT"
            )
        vectors = None if self.vectors is None else read_vectors(located(self.vectors))
        room = room_for(model, self.length)
        filling = _Filling(model, ctx, self.batch, room, self.candidates, vectors)

        def vary(texts: Sequence[str], seed: int) -> list[list[str]]:
            return self._variants(texts, filling, seed)

        return self.grown(ctx, by_pieces(vary, room))

    def _variants(self, texts: Sequence[str], filling: _Filling, seed: int) -> list[list[str]]:
        words = filling.words(texts)
        draws = [
            [self._drawn(text, len(found), seed, number) for number in range(self.variants)]
            for text, found in zip(texts, words, strict=True)
        ]
        # Only of words that some variant replaces are candidates needed.
        wanted = [sorted({index for draw in some for index in draw}) for some in draws]
        known = filling.candidates_of(texts, words, wanted)
        return [
            [_replaced(text, found, draw, own) for draw in some]
            for text, found, some, own in zip(texts, words, draws, known, strict=True)
        ]

    def _drawn(self, text: str, count: int, seed: int, number: int) -> dict[int, float]:
        """The words to replace, each with a number in [0, 1) that chooses what by."""
        draw = random.Random(seed_of(seed, text, number))
        pairs = [(draw.random(), draw.random()) for _ in range(count)]
        return {index: which for index, (p, which) in enumerate(pairs) if p <= self.share}


@dataclass(frozen=True)
class _Word:
    """Where a word is in its text, and its token among the text's; -1 where it has several."""

    start: int
    end: int
    token: int


@dataclass(frozen=True)
class _Filling:
    """A masked language model, and what it puts in the place of words."""

    model: Model
    ctx: Context
    batch: int
    length: int
    count: int
    vectors: Vectors | None

    def words(self, texts: Sequence[str]) -> list[list[_Word]]:
        """The words of each text, as the tokenizer divides it; up to `length` tokens."""
        if not texts:
            return []
        encoded = self._encoded(texts)
        found: list[list[_Word]] = []
        for number, text in enumerate(texts):
            spans: dict[int, list[int]] = {}
            for token, word in enumerate(encoded.word_ids(number)):
                if word is not None:
                    spans.setdefault(word, []).append(token)
            offsets = encoded["offset_mapping"][number]
            words = [
                _Word(offsets[tokens[0]][0], offsets[tokens[-1]][1], _single(tokens))
                for tokens in spans.values()
            ]
            found.append([word for word in words if _is_word(text[word.start : word.end])])
        return found

    def candidates_of(
        self, texts: Sequence[str], words: Sequence[list[_Word]], wanted: Sequence[list[int]]
    ) -> list[dict[int, list[str]]]:
        """What may stand for each wanted word, by its place among the words."""
        rows = self._encoded(texts)["input_ids"] if texts else []
        known: list[dict[int, list[str]]] = [{} for _ in texts]
        masked: list[tuple[int, int]] = []
        for row, places in enumerate(wanted):
            for place in places:
                word = words[row][place]
                if word.token >= 0:
                    masked.append((row, place))
                elif self.vectors is not None:
                    near = self.vectors.near(texts[row][word.start : word.end], self.count)
                    known[row][place] = near
        for at in range(0, len(masked), self.batch):
            part = masked[at : at + self.batch]
            tokens = [words[row][place].token for row, place in part]
            likely = self._likeliest([rows[row] for row, _ in part], tokens)
            for (row, place), token, ids in zip(part, tokens, likely.tolist(), strict=True):
                known[row][place] = self._whole(ids, rows[row][token])
        return known

    def _encoded(self, texts: Sequence[str]) -> Any:
        return self.model.tokenizer(
            list(texts), truncation=True, max_length=self.length, return_offsets_mapping=True
        )

    def _likeliest(self, rows: Sequence[list[int]], tokens: Sequence[int]) -> Tensor:
        """The likeliest tokens where one is masked, [rows, count and some more]."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), filler(self.model.tokenizer))
        mask = torch.zeros_like(ids)
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            ids[number, : len(row)] = torch.tensor(row)
            ids[number, token] = self.model.tokenizer.mask_token_id
            mask[number, : len(row)] = 1
        batch = Batch(ids, mask, torch.full((len(rows),), IGNORED)).to(self.model.device)
        with inference(self.ctx.device, self.ctx.precision):
            hidden = self.model.hidden(batch)[range(len(rows)), list(tokens)]
            logits = self.model.head(hidden).float()
        return logits.topk(min(self.count + _SPARE, logits.shape[-1])).indices.cpu()

    def _whole(self, ids: Sequence[int], own: int) -> list[str]:
        """Those of the tokens that are whole words, as the masked token is, and others than it."""
        tokenizer = self.model.tokenizer
        begins = tokenizer.convert_ids_to_tokens(own).startswith(_BEGINNINGS)
        found: list[str] = []
        for token in ids:
            written = (
                tokenizer.convert_ids_to_tokens(token) or _CONTINUES
            )  # a row beyond its tokens
            word = tokenizer.decode([token]).strip()
            whole = not written.startswith(_CONTINUES) and written.startswith(_BEGINNINGS) == begins
            if token != own and whole and _is_word(word):
                found.append(word)
        return found[: self.count]


def _is_word(text: str) -> bool:
    """Numbers and marks stay as they are, and stand for nothing else."""
    return text.isalnum() and not text.isdecimal()


def _single(tokens: Sequence[int]) -> int:
    return tokens[0] if len(tokens) == 1 else -1


def _replaced(
    text: str, words: Sequence[_Word], draw: dict[int, float], known: dict[int, list[str]]
) -> str:
    """The text with the words that were drawn replaced, where something may stand for them."""
    parts: list[str] = []
    end = 0
    for place, which in sorted(draw.items()):
        others, word = known.get(place), words[place]
        if others:
            other = others[int(which * len(others))]
            parts += [text[end : word.start], as_written(other, text[word.start : word.end])]
            end = word.end
    return "".join([*parts, text[end:]])
