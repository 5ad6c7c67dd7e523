"""Texts in two tokenizers' tokens: where they meet, rows, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
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

from attar.data.aligned import align
from attar.data.batches import IGNORED, Shuffled
from attar.data.example import Dataset, Example
from attar.data.paired import PairedBatch, PairedRows, _cut
from attar.data.spelling import Spelling, shared
from attar.errors import UserError

TEXT = (
    "The whale, the white whale! He was seen from the mast-head at dawn, spouting; and the men "
    "who had sworn to hunt him round the world ran to the boats. Naïve café — déjà vu? "
) * 4
DATA = Dataset("train", [Example(TEXT), Example("A second text, shorter."), Example(TEXT[7:])], "f")


def byte_level(size: int, end: str | None = "<end>", **settings: Any) -> Any:
    """A tokenizer over bytes, of so many tokens, trained on the text."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<begin>", *([end] if end else [])]
    plain.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if settings.pop("begins", False):
        plain.post_processor = processors.TemplateProcessing(
            single="<begin> $A", special_tokens=[("<begin>", 0)]
        )
        settings["bos_token"] = "<begin>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=end, pad_token=end, **settings
    )


def metaspace() -> Any:
    """A tokenizer that writes spaces as a mark and unknown letters as bytes."""
    plain = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "</s>", *bytes_], show_progress=False
    )
    plain.train_from_iterator([TEXT.encode("ascii", "ignore").decode()], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="</s>", unk_token="<unk>"
    )


def words(lower: bool = False) -> Any:
    """A tokenizer of whole words and nothing else."""
    found = sorted({w for t in (TEXT, TEXT.lower()) for w in t.split()})
    plain = Tokenizer(
        models.WordLevel({w: n for n, w in enumerate(["[UNK]", *found])}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lower:
        plain.normalizer = normalizers.Lowercase()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")


def spelling(tokenizer: Any, whose: str = "student") -> Spelling:
    return Spelling(tokenizer, whose)


@pytest.mark.parametrize("make", [lambda: byte_level(300), metaspace])
def test_tokens_say_what_the_text_says(make: Any) -> None:
    spells = spelling(make())
    [placed] = spells.place([TEXT])
    said = b"".join(spells.tokens[number] for number in placed.ids)
    assert said.decode().strip() == TEXT.strip()


@pytest.mark.parametrize("make", [lambda: byte_level(280), metaspace, words])
def test_stretches_are_the_shortest_that_both_end(make: Any) -> None:
    own, theirs = spelling(byte_level(400)), spelling(make(), "teacher")
    [mine], [yours] = own.place([TEXT]), theirs.place([TEXT])
    found = align(TEXT, (own, mine), (theirs, yours))
    assert found.own_ends[-1] == len(mine.ids)
    assert found.their_ends[-1] == len(yours.ids)
    wanted: list[tuple[int, int]] = []
    for place in range(1, len(TEXT) + 1):  # by brute force: no token of either goes over it
        sides = [(mine.starts, mine.ends), (yours.starts, yours.ends)]
        over = [any((s < place) & (e > place)) for s, e in sides]
        ends = [place in e for _, e in sides]
        if all(ends) and not any(over):
            wanted.append((int((mine.ends <= place).sum()), int((yours.ends <= place).sum())))
    pairs = list(zip(found.own_ends.tolist(), found.their_ends.tolist(), strict=True))
    assert pairs[: len(wanted)] == wanted
    assert (
        len(pairs) - len(wanted) <= 1
    )  # a space at the end, which only one of them has a token for
    assert found.good.mean() > 0.9


def test_shared_tokens_are_the_same_text() -> None:
    own, theirs = spelling(byte_level(400)), spelling(metaspace(), "teacher")
    pairs = shared(own, theirs)
    ends = own.tokenizer.eos_token_id, theirs.tokenizer.eos_token_id
    assert pairs[-1] == ends
    assert len(pairs) > 50
    assert all(own.tokens[a] == theirs.tokens[b] for a, b in pairs[:-1])
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


@pytest.mark.parametrize("begins", [False, True])
def test_spans_of_a_batch_spell_the_same_text(begins: bool) -> None:
    own, theirs = byte_level(300, begins=begins), byte_level(500, begins=not begins)
    rows = PairedRows(DATA, spelling(own), spelling(theirs, "teacher"), (24, 16))
    batch = rows.batch(list(range(len(rows))), [])
    assert isinstance(batch, PairedBatch)
    assert batch.input_ids.shape[1] <= 24
    assert batch.theirs.input_ids.shape[1] <= 16
    sides = [(own, batch, batch.own_spans), (theirs, batch.theirs, batch.their_spans)]
    said = []
    for tokenizer, part, spans in sides:
        labels = part.labels[:, 1:]
        judged = labels[labels != IGNORED]
        assert len(judged) == int(part.attention_mask.sum()) - len(part.input_ids)
        said.append([tokenizer.decode(judged[a:b]).strip() for a, b in spans.tolist()])
    assert [s for s in said[0] if s != "<end>"] == [s for s in said[1] if s != "<end>"]
    assert said[0].count("<end>") == len(DATA.examples)
    assert (batch.own_spans[1:, 0] >= batch.own_spans[:-1, 1]).all()
    kept = len(batch.own_spans) / len(rows.stretches.good)
    assert kept > 0.8  # a row without a beginning has no first prediction


def test_all_rows_together_are_the_text() -> None:
    own, theirs = byte_level(300), byte_level(500)
    rows = PairedRows(DATA, spelling(own), spelling(theirs, "teacher"), (24, 24))
    for batch in rows.batches(2):
        assert isinstance(batch, PairedBatch)
    texts = [
        tokenizer.decode(torch.cat([part[mask.bool()] for part, mask in parts]))
        for tokenizer, parts in (
            (own, [(b.input_ids, b.attention_mask) for b in rows.batches(2)]),
            (theirs, [(b.theirs.input_ids, b.theirs.attention_mask) for b in _paired(rows)]),
        )
    ]
    assert texts[0] == texts[1] == "".join(e.text + "<end>" for e in DATA.examples)


def _paired(rows: PairedRows) -> list[PairedBatch]:
    return [batch for batch in rows.batches(2) if isinstance(batch, PairedBatch)]


@pytest.mark.parametrize(("least", "rows"), [(1, [(0, 1), (1, 2)]), (2, [(0, 1)])])
def test_a_row_of_which_nothing_is_predicted_is_left_out(
    least: int, rows: list[tuple[int, int]]
) -> None:
    """Of two stretches, the second is one token: without a token that begins texts, too few."""
    ends = np.array([8, 9])
    assert _cut(ends, ends, (8, 8), (least, least)) == rows


def test_batches_go_by_their_number() -> None:
    own, theirs = spelling(byte_level(300)), spelling(byte_level(500), "teacher")
    streams = [Shuffled(PairedRows(DATA, own, theirs, (24, 24)), 3, seed=1) for _ in range(2)]
    later = [stream.batch(5) for stream in streams]
    assert torch.equal(later[0].input_ids, later[1].input_ids)
    assert len(PairedRows(DATA, own, theirs, (24, 24), limit=2)) == 2


@pytest.mark.parametrize(
    ("text", "teacher", "why"),
    [
        (TEXT.title(), lambda: words(lower=True), r"are not given back by the teacher's tokenizer"),
        ("Съешь ещё этих мягких булок", lambda: words(), r"not given back by the teacher's"),
        (
            "敏捷的棕色狐狸跳过了懒狗身上",
            lambda: byte_level(300),
            r"0\.0% of 14 characters .* more tokens than characters by the teacher's",
        ),
        (
            "supercalifragilistic" * 4,
            lambda: words(),
            "100.0% are in stretches of more than 16 tokens",
        ),
    ],
)
def test_a_wrong_pairing_is_refused_with_numbers(text: str, teacher: Any, why: str) -> None:
    own = spelling(chars(text + TEXT))
    data = Dataset("train", [Example(text)], "f")
    with pytest.raises(UserError, match=why):
        PairedRows(data, own, spelling(teacher(), "teacher"), (64, 64), 0.9)


def chars(text: str) -> Any:
    """A tokenizer of single characters."""
    plain = Tokenizer(models.BPE())
    found = sorted(set(text))
    plain = Tokenizer(models.BPE({c: n for n, c in enumerate(found)}, []))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain)


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"the teacher's tokenizer does not say which characters"):
        Spelling(Slow(), "teacher")


def test_what_is_missed_is_left_out_of_spans_and_kept_in_the_rows() -> None:
    own, theirs = spelling(byte_level(400)), spelling(byte_level(300), "teacher")
    data = Dataset("train", [Example("a whale \N{WHALE} he said")], "f")
    rows = PairedRows(data, own, theirs, (64, 64))
    assert rows.stretches.missed.total() in (1, 2)  # the emoji is four tokens of one character
    assert not rows.stretches.good.all()
    batch = rows.batch([0], [])
    assert len(batch.own_spans) < np.count_nonzero(rows.stretches.good) + 1
    assert "\N{WHALE}" in own.tokenizer.decode(batch.input_ids[0])
