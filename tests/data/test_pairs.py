"""Rows for pretraining: what follows what, what is masked, and that a number makes a batch."""

from __future__ import annotations

import random
from dataclasses import fields
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from attar.core.keys import seed_of
from attar.data import Dataset, Example
from attar.data.batches import IGNORED, Batch
from attar.data.pairs import Pairs, Rules
from attar.data.splitmix import bits, uniform
from attar.errors import DataError, ModelError

DOCUMENTS, SENTENCES = 5, 10


def documents(count: int = DOCUMENTS, sentences: int = SENTENCES) -> Dataset:
    """Each word is in one document once, and tells its place there: w20 to w29 are the third."""
    texts = [
        "\n".join(f"w{document * SENTENCES + number}" for number in range(sentences))
        for document in range(count)
    ]
    return Dataset("train", [Example(text) for text in texts], "key")


def made(tokenizer: Any, seed: int = 0, batch: int = 4, length: int = 9, **rules: Any) -> Pairs:
    return Pairs(documents(), tokenizer, length, batch, seed, Rules(**rules))


def parts(batch: Batch) -> list[torch.Tensor]:
    every = [getattr(batch, field.name) for field in fields(batch)]
    return [part for part in every if part is not None]


def words(batch: Batch, tokenizer: Any) -> list[tuple[list[int], list[int], int]]:
    """Of each row the words of both texts, unmasked, and what it says of them."""
    assert batch.segments is not None
    assert batch.follows is not None
    whole = batch.input_ids.where(batch.labels == IGNORED, batch.labels)
    found = []
    for row, segments, mask, follows in zip(
        whole, batch.segments, batch.attention_mask, batch.follows, strict=True
    ):
        tokens = tokenizer.convert_ids_to_tokens(row[mask.bool()].tolist())
        parts = segments[mask.bool()].tolist()
        assert tokens[0] == "[CLS]"
        assert tokens[-1] == "[SEP]"
        assert parts == sorted(parts)
        first, second = (
            [int(t[1:]) for t, at in zip(tokens, parts, strict=True) if at == side and t[0] == "w"]
            for side in (0, 1)
        )
        assert len(tokens) == len(first) + len(second) + 3
        found.append((first, second, int(follows)))
    return found


def test_half_of_the_pairs_belong_together_and_the_rest_are_of_another_document(tokenizer) -> None:
    pairs = made(tokenizer)
    seen = [row for step in range(100) for row in words(pairs.batch(step), tokenizer)]
    for first, second, follows in seen:
        assert first
        assert second
        assert all(b == a + 1 for part in (first, second) for a, b in pairwise(part))
        together = second[0] // SENTENCES == first[0] // SENTENCES
        assert together == (follows == 0)
        if not follows:
            assert second[0] == first[-1] + 1
    apart = sum(follows for *_, follows in seen) / len(seen)
    assert 0.43 < apart < 0.57
    # neither length may tell which is which
    sizes = [
        sum(len(second) for _, second, follows in seen if follows == kind)
        / sum(follows == kind for *_, follows in seen)
        for kind in (0, 1)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_a_batch_depends_on_its_number_alone(tokenizer) -> None:
    one, other = made(tokenizer), made(tokenizer)
    forward = [one.batch(step) for step in range(20)]
    backward = [other.batch(step) for step in reversed(range(20))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))
    again = made(tokenizer, seed=1)
    assert any(
        a.input_ids.tolist() != again.batch(step).input_ids.tolist()
        for step, a in enumerate(forward)
    )


def test_ranks_take_turns(tokenizer) -> None:
    pairs = made(tokenizer)
    for step in range(3):
        for rank in (0, 1):
            shared, alone = pairs.batch(step, rank, 2), pairs.batch(2 * step + rank)
            assert torch.equal(shared.input_ids, alone.input_ids)
            assert torch.equal(shared.labels, alone.labels)


def test_every_stretch_comes_once_in_an_epoch_and_masks_are_new_in_the_next(tokenizer) -> None:
    pairs = Pairs(documents(), tokenizer, 9, 1, 0, Rules(pairs=False))
    epochs = [
        [pairs.batch(epoch * pairs.rows + step) for step in range(pairs.rows)] for epoch in (0, 1)
    ]
    unmasked = [
        sorted(tuple(b.input_ids.where(b.labels == IGNORED, b.labels)[0].tolist()) for b in epoch)
        for epoch in epochs
    ]
    assert unmasked[0] == unmasked[1]
    assert len(set(unmasked[0])) == pairs.rows
    masked = [sorted(tuple(b.input_ids[0].tolist()) for b in epoch) for epoch in epochs]
    assert masked[0] != masked[1]
    ids = {id_ for row in unmasked[0] for id_ in row}
    there = set(tokenizer([f"w{n}" for n in range(50)], add_special_tokens=False)["input_ids"][0])
    assert there <= ids


def test_a_single_text_has_no_segments(tokenizer) -> None:
    batch = made(tokenizer, pairs=False).batch(0)
    assert batch.segments is None
    assert batch.follows is None
    assert batch.input_ids.shape[1] <= 9


def test_the_share_that_is_masked(tokenizer) -> None:
    pairs = made(tokenizer, mask_rate=0.3, length=24)
    batches = [pairs.batch(step) for step in range(60)]
    judged = sum(int((b.labels != IGNORED).sum()) for b in batches)
    real = sum(int(b.attention_mask.sum()) - 3 * b.size for b in batches)
    assert judged / real == pytest.approx(0.3, abs=0.04)
    hidden = sum(int((b.input_ids == tokenizer.mask_token_id).sum()) for b in batches)
    assert hidden / judged == pytest.approx(0.8, abs=0.05)
    special = torch.tensor(tokenizer.all_special_ids)
    assert not any(torch.isin(b.labels, special).any() for b in batches)


def uneven(tokenizer: Any) -> tuple[Dataset, list[list[list[int]]]]:
    """Documents of sentences of 1 to 13 words, and the ids of their pieces of at most 10."""
    drawn = random.Random(0)
    texts = [
        [
            " ".join(f"w{drawn.randrange(50)}" for _ in range(drawn.randint(1, 13)))
            for _ in range(drawn.randint(2, 12))
        ]
        for _ in range(40)
    ]
    sentences = [[tokenizer.encode(line, add_special_tokens=False) for line in t] for t in texts]
    pieces = [[ids[at : at + 10] for ids in t for at in range(0, len(ids), 10)] for t in sentences]
    return Dataset("train", [Example("\n".join(text)) for text in texts], "key"), pieces


def one_by_one(documents: list[list[list[int]]], room: int) -> list[tuple[list[int], list[int]]]:
    """Both texts of every held-out row, by the rules in words, and with the numbers of its key."""

    def size(pieces: list[list[int]]) -> int:
        return sum(map(len, pieces))

    spans: list[tuple[int, list[list[int]]]] = []
    for number, left in enumerate(documents):
        while len(left) >= 2:
            end = 2
            while end < len(left) and size(left[:end]) < room:
                end += 1
            end = len(left) if len(left) - end < 2 else end
            spans.append((number, left[:end]))
            left = left[end:]
    keys = bits(np.uint64(seed_of(0, "held out")), np.arange(len(spans)))
    found = []
    for (own, span), key in zip(spans, keys, strict=True):
        cut_at, apart, which, where = uniform(key, np.arange(4))
        cut = 1 + int(cut_at * (len(span) - 1))
        first, second = span[:cut], span[cut:]
        wanted = size(second)
        if apart >= 0.5:
            other = [pieces for number, pieces in enumerate(documents) if number != own]
            pieces = other[int(which * len(other))]
            start = int(where * len(pieces))
            end = start + 1
            while end < len(pieces) and size(pieces[start:end]) + len(pieces[end]) / 2 <= wanted:
                end += 1
            second = pieces[start:end]
        before, after = (list(chain.from_iterable(text)) for text in (first, second))
        before = before[-(room - min(wanted, room // 2)) :]
        found.append((before, after[: room - len(before)]))
    return found


@pytest.mark.parametrize("batch", [1, 7])
def test_a_batch_at_once_is_what_its_rows_are_one_by_one(tokenizer, batch: int) -> None:
    data, pieces = uneven(tokenizer)
    pairs = Pairs(data, tokenizer, 24, batch, 0, Rules())
    wanted = one_by_one(pieces, 24 - 3)
    begin, close = tokenizer.cls_token_id, tokenizer.sep_token_id
    found = []
    for made in pairs.held_out(pairs.rows):
        assert made.input_ids.shape[1] % 8 == 0
        whole = made.input_ids.where(made.labels == IGNORED, made.labels)
        assert made.segments is not None
        for ids, segments, there in zip(whole, made.segments, made.attention_mask, strict=True):
            size = int(there.sum())
            assert there[:size].all()
            assert (ids[size:] == tokenizer.pad_token_id).all()
            assert not segments[size:].any()
            found.append((ids[:size].tolist(), segments[:size].tolist()))
    assert found == [
        (
            [begin, *first, close, *second, close],
            [0] * (len(first) + 2) + [1] * (len(second) + 1),
        )
        for first, second in wanted
    ]


def test_a_row_is_masked_alike_whatever_is_beside_it(tokenizer) -> None:
    data, _ = uneven(tokenizer)
    alone, beside = (Pairs(data, tokenizer, 24, size, 0, Rules()).held_out(30) for size in (1, 30))
    for number, one in enumerate(alone):
        width = one.input_ids.shape[1]
        for a, b in zip(parts(one), parts(beside[0]), strict=True):
            assert torch.equal(a[0], b[number] if b.dim() == 1 else b[number, :width])


def test_rows_are_spread_as_those_that_were_drawn_one_by_one(tokenizer) -> None:
    """The figures are of 150,000 rows of these texts, each drawn by a generator of its own."""
    pairs = Pairs(uneven(tokenizer)[0], tokenizer, 24, 100, 0, Rules())
    judged = hidden = kept = 0
    rows: list[tuple[int, int, int]] = []  # what follows, and the tokens of row and second text
    for made in map(pairs.batch, range(200)):
        assert made.follows is not None
        assert made.segments is not None
        sizes = made.attention_mask.sum(1), made.segments.sum(1)
        rows += zip(*(each.tolist() for each in (made.follows, *sizes)), strict=True)
        judged += int((made.labels != IGNORED).sum())
        hidden += int((made.input_ids == tokenizer.mask_token_id).sum())
        kept += int((made.input_ids == made.labels).sum())
    follows, sizes, seconds = np.array(rows).T
    assert follows.mean() == pytest.approx(0.5, abs=0.015)
    assert (sizes.mean(), sizes.std()) == pytest.approx((20.92, 4.84), abs=0.15)
    for kind, mean, deviation in ((0, 10.67, 4.51), (1, 9.58, 4.30)):
        found = seconds[follows == kind]
        assert (found.mean(), found.std()) == pytest.approx((mean, deviation), abs=0.15)
    assert judged / (sizes - 3).sum() == pytest.approx(0.1545, abs=0.003)
    assert hidden / judged == pytest.approx(0.8, abs=0.008)
    assert kept / judged == pytest.approx(0.102, abs=0.006)


def test_held_out_rows_are_always_the_same(tokenizer) -> None:
    one, other = (made(tokenizer, seed=seed).held_out(6) for seed in (0, 1))
    assert sum(batch.size for batch in one) == 6
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, other, strict=True))


def test_words_are_masked_whole(tmp_path) -> None:
    from transformers import AutoTokenizer

    from attar.models.blank import blank

    text = "unhappiness unhappy happiness happily kindness unkind kindly " * 3
    blank(tmp_path, ["un happ kind ness ly i a b c d " * 5, text], vocabulary=40)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    data = Dataset("train", [Example(text), Example(text)], "key")

    def split(whole: bool) -> int:
        """Words of which a part is masked and a part is not."""
        rules = Rules(pairs=False, mask_rate=0.4, whole_words=whole)
        count = 0
        for batch in (Pairs(data, tokenizer, 40, 2, 0, rules).batch(step) for step in range(10)):
            ids = batch.input_ids.where(batch.labels == IGNORED, batch.labels)
            for row, labels in zip(ids.tolist(), batch.labels.tolist(), strict=True):
                tokens = tokenizer.convert_ids_to_tokens(row)
                told = [label != IGNORED for label in labels]
                count += sum(  # the first token is [CLS]
                    tokens[at].startswith("##") and told[at] != told[at - 1]
                    for at in range(2, len(tokens))
                )
        return count

    assert split(False) > 0
    assert split(True) == 0


def test_what_makes_no_pairs_is_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="holds 1 documents"):
        Pairs(documents(1), tokenizer, 9, 4, 0, Rules())
    with pytest.raises(DataError, match="no document has two parts"):
        Pairs(documents(3, 1), tokenizer, 9, 4, 0, Rules())
    bare = type("Bare", (), {"mask_token_id": None})()
    with pytest.raises(ModelError, match="no mask token"):
        Pairs(documents(), bare, 9, 4, 0, Rules())
