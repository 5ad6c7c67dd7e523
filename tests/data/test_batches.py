import copy

import pytest
import torch

from attar.data import Dataset, Example
from attar.data.batches import IGNORED, Batch, Stream, held_out
from attar.errors import DataError, ModelError


def text_of(lengths: list[int], labels: bool = True) -> Dataset:
    """Rows of so many tokens; the first token tells the row."""
    examples = [
        Example(" ".join([f"w{number % 50}"] * length), str(number % 2) if labels else None)
        for number, length in enumerate(lengths)
    ]
    return Dataset("train", examples, "key", ("0", "1") if labels else ())


def novel(tokens: int = 320) -> Dataset:
    text = " ".join(f"w{(number * number + number // 7) % 50}" for number in range(tokens))
    return Dataset("train", [Example(text)], "key")


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("input_ids", "attention_mask", "labels")
    )


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.input_ids.tolist()]


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "classification"])
def test_a_batch_depends_on_its_number_alone(tokenizer, task: str) -> None:
    data = text_of([3 + n % 9 for n in range(60)]) if task == "classification" else novel()
    labels = ["0", "1"]
    made = [Stream(data, tokenizer, task, 8, 4, seed=1, labels=labels) for _ in range(3)]
    forward = [made[0].batch(step) for step in range(40)]
    backward = [made[1].batch(step) for step in reversed(range(40))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert same(made[2].batch(33), forward[33])
    other = Stream(data, tokenizer, task, 8, 4, seed=2, labels=labels)
    assert not all(
        a.input_ids.shape == b.input_ids.shape and same(a, b)
        for a, b in ((other.batch(step), forward[step]) for step in range(8))
    )


def test_an_epoch_has_every_row_once_and_the_next_another_order(tokenizer) -> None:
    stream = Stream(novel(), tokenizer, "causal-lm", 8, 4, seed=0)
    assert (stream.rows, stream.per_epoch) == (40, 10)
    first = rows_of([stream.batch(step) for step in range(10)])
    second = rows_of([stream.batch(step) for step in range(10, 20)])
    assert sorted(first) == sorted(second) == sorted(rows_of([stream.batch(n) for n in range(10)]))
    assert first != second


def test_epochs_follow_on_inside_a_batch(tokenizer) -> None:
    stream = Stream(novel(80), tokenizer, "causal-lm", 8, 4, seed=0)  # 10 rows
    assert (stream.rows, stream.per_epoch) == (10, 3)
    rows = rows_of([stream.batch(step) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:])


def test_more_in_a_batch_than_there_is(tokenizer) -> None:
    stream = Stream(novel(16), tokenizer, "causal-lm", 8, 5, seed=0)
    assert stream.batch(0).size == 5
    assert stream.per_epoch == 1


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_ranks_share_out_the_rows_of_one(tokenizer, task: str) -> None:
    alone = Stream(novel(), tokenizer, task, 8, 8, seed=3)
    shared = Stream(novel(), tokenizer, task, 8, 4, seed=3)
    for step in (0, 4, 7):
        halves = [shared.batch(step, rank, 2) for rank in range(2)]
        joined = Batch(
            *(
                torch.cat([getattr(half, name) for half in halves])
                for name in ("input_ids", "attention_mask", "labels")
            )
        )
        assert same(joined, alone.batch(step))


def test_ranks_have_no_row_in_common_for_classification(tokenizer) -> None:
    data = text_of([4] * 48)
    stream = Stream(data, tokenizer, "classification", 8, 4, seed=0, labels=["0", "1"])
    seen = rows_of([stream.batch(step, rank, 3) for step in range(4) for rank in range(3)])
    assert len(set(seen)) == 48


def test_causal_labels_are_the_inputs(tokenizer) -> None:
    batch = Stream(novel(), tokenizer, "causal-lm", 8, 4, seed=0).batch(0)
    assert torch.equal(batch.labels, batch.input_ids)
    assert batch.attention_mask.all()
    assert (batch.size, batch.to("cpu").size) == (4, 4)
    parts = (batch.input_ids, batch.attention_mask, batch.labels)
    assert {tensor.dtype for tensor in parts} == {torch.int64}
    assert batch.segments is None


def test_masked_labels(tokenizer) -> None:
    data = novel(32_000)
    stream = Stream(data, tokenizer, "masked-lm", 64, 500, seed=0)
    masked = stream.batch(0)
    plain = Stream(data, tokenizer, "causal-lm", 64, 500, seed=0).batch(0)
    chosen = masked.labels != IGNORED
    assert torch.equal(masked.labels[chosen], plain.input_ids[chosen])
    assert torch.equal(masked.input_ids[~chosen], plain.input_ids[~chosen])
    share = chosen.float().mean().item()
    assert 0.14 < share < 0.16
    became = masked.input_ids[chosen]
    assert 0.77 < (became == tokenizer.mask_token_id).float().mean() < 0.83
    assert 0.08 < (became == masked.labels[chosen]).float().mean() < 0.13
    second = Stream(data, tokenizer, "masked-lm", 64, 500, seed=0).batch(1)
    assert not torch.equal(masked.labels, second.labels)


def test_special_tokens_are_never_masked_and_each_row_has_a_mask(tokenizer) -> None:
    data = Dataset("train", [Example("w1")] * 400, "key")  # every other token is [EOS]
    batch = Stream(data, tokenizer, "masked-lm", 8, 100, seed=0).batch(0)
    assert (batch.labels != tokenizer.eos_token_id).all()
    assert ((batch.labels != IGNORED).sum(1) >= 1).all()


def test_no_mask_token(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        Stream(novel(), tokenizer, "masked-lm", 8, 4, seed=0)


def test_classification_pads_to_the_right(tokenizer) -> None:
    batches = held_out(
        text_of([3, 9, 30]), tokenizer, "classification", 20, 2, None, labels=["0", "1"]
    )
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(2, 16), (1, 20)]
    first = batches[0]
    assert first.labels.tolist() == [0, 1]
    assert first.attention_mask.sum(1).tolist() == [3, 9]
    assert (first.input_ids[0, 3:] == tokenizer.pad_token_id).all()


def test_padding_with_the_end_token(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    data = text_of([3, 9])
    (batch,) = held_out(data, tokenizer, "classification", 16, 2, None, labels=["0", "1"])
    assert (batch.input_ids[0, 3:] == tokenizer.eos_token_id).all()


def test_no_row_at_all(tokenizer) -> None:
    with pytest.raises(DataError, match="data train: it holds no row"):
        held_out(text_of([]), tokenizer, "classification", 16, 2, None, labels=["0", "1"])


def test_unlabeled_rows(tokenizer) -> None:
    data = text_of([3, 4], labels=False)
    (batch,) = held_out(data, tokenizer, "classification", 16, 2, None, labels=["0", "1"])
    assert batch.labels.tolist() == [IGNORED, IGNORED]


def test_probabilities_of_classes_come_with_the_rows(tokenizer) -> None:
    given = ({"1": 0.75, "0": 0.25}, None, None, {"0": 1.0})
    labels = (None, "1", None, "0")
    rows = [
        Example(f"w{n} w5", label, probabilities=shares)
        for n, (label, shares) in enumerate(zip(labels, given, strict=True))
    ]
    (batch,) = held_out(
        Dataset("train", rows, ""), tokenizer, "classification", 16, 4, None, labels=["0", "1"]
    )
    assert batch.shares is not None
    assert batch.shares.tolist() == [[0.25, 0.75], [0, 1], [0, 0], [1, 0]]
    strange = Dataset("train", [Example("w1", where="a.tsv:3", probabilities={"2": 1.0})], "")
    with pytest.raises(DataError, match=r'a\.tsv:3: .*"2", which the model was not made for'):
        held_out(strange, tokenizer, "classification", 16, 4, None, labels=["0", "1"])


def test_like_lengths_come_together(tokenizer) -> None:
    lengths = [1 + (n * 37) % 64 for n in range(512)]
    stream = Stream(text_of(lengths), tokenizer, "classification", 64, 8, seed=0, labels=["0", "1"])
    batches = [stream.batch(step) for step in range(stream.per_epoch)]
    assert sum(batch.attention_mask.sum().item() for batch in batches) == sum(lengths)
    padded = sum(batch.input_ids.numel() for batch in batches)
    assert padded < 1.35 * sum(lengths)
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths != sorted(widths)


def test_held_out_is_in_order_and_always_the_same(tokenizer) -> None:
    causal = held_out(novel(), tokenizer, "causal-lm", 8, 4, 10)
    assert [batch.size for batch in causal] == [4, 4, 2]
    ids = torch.cat([batch.input_ids for batch in causal]).flatten().tolist()
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["w0", "w1"]
    one, two = (held_out(novel(), tokenizer, "masked-lm", 8, size, 10) for size in (5, 10))
    assert torch.equal(torch.cat([b.labels for b in one]), two[0].labels)
    few = held_out(text_of([3] * 9), tokenizer, "classification", 8, 4, 6, labels=["0", "1"])
    assert [batch.size for batch in few] == [4, 2]


def test_a_stream_knows_the_tokenizer_of_another_model(tokenizer) -> None:
    stream = Stream(text_of([3, 4]), tokenizer, "classification", 8, 2, seed=0, labels=["0", "1"])
    stream.check(len(tokenizer))
    with pytest.raises(ModelError, match="of another model"):
        stream.check(5)


def test_limit(tokenizer) -> None:
    assert Stream(novel(), tokenizer, "causal-lm", 8, 4, seed=0, limit=6).rows == 6
    data = text_of([3] * 9)
    assert Stream(data, tokenizer, "classification", 8, 4, 0, ["0", "1"], limit=6).rows == 6


def test_what_a_mask_may_draw_is_looked_at_too(tokenizer) -> None:
    stream = Stream(text_of([30]), tokenizer, "masked-lm", 8, 1, 0)
    stream.check(len(tokenizer))
    with pytest.raises(ModelError, match=f"ids up to {len(tokenizer) - 1} "):
        stream.check(len(tokenizer) - 1)  # which holds all of the text's own
