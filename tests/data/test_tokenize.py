import copy
import logging
from pathlib import Path

import pytest
import torch

from attar.data import Dataset, Example
from attar.data.tokenize import PIECE, Encoded, check_ids, encode, pieces, sequences
from attar.errors import DataError, ModelError


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{number % 50}" for number in range(start, start + count))


def dataset(*texts: str, labels: tuple[str, ...] | None = None) -> Dataset:
    given = labels or (None,) * len(texts)
    examples = [
        Example(text, label, where=f"x.tsv:{number}")
        for number, (text, label) in enumerate(zip(texts, given, strict=True), 1)
    ]
    return Dataset("train", examples, "key")


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, inner) -> None:
        self.inner, self.characters = inner, 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def __call__(self, texts: list[str], **settings):
        self.characters += sum(map(len, texts))
        return self.inner(texts, **settings)


def test_documents_are_packed_with_the_end_token_between(tokenizer) -> None:
    packed = sequences(dataset("w0 w1 w2", "w3 w4"), tokenizer, 3)
    assert packed.dtype == torch.long
    end = tokenizer.eos_token_id
    first = tokenizer.convert_tokens_to_ids("w0")
    assert packed.tolist() == [[first, first + 1, first + 2], [end, first + 3, first + 4]]


def test_no_end_token_where_the_tokenizer_has_none(tokenizer) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    assert sequences(dataset("w0 w1", "w2 w3"), tokenizer, 4).shape == (1, 4)


def test_the_begin_token_opens_every_sequence_where_the_tokenizer_puts_it(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    opens = copy.deepcopy(tokenizer)
    begin = opens.convert_tokens_to_ids("[BOS]")
    opens.bos_token = "[BOS]"
    opens.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", begin)]
    )
    packed = sequences(dataset(words(9)), opens, 4)
    assert packed[:, 0].tolist() == [begin] * 3
    assert (
        packed[:, 1:].flatten()[:9].tolist()
        == sequences(dataset(words(9)), tokenizer, 9)[0].tolist()
    )


def test_limit_tokenizes_no_more_than_it_needs(tokenizer) -> None:
    counting = Counting(tokenizer)
    long = "\n".join(words(100) for _ in range(10_000))
    assert sequences(dataset(long), counting, 32, limit=4).shape == (4, 32)
    assert counting.characters < 10 * PIECE < len(long)


def test_limit_gives_the_first_sequences(tokenizer) -> None:
    data = dataset(*[words(40, number) for number in range(30)])
    everything = sequences(data, tokenizer, 16)
    assert torch.equal(sequences(data, tokenizer, 16, limit=5), everything[:5])
    assert sequences(data, tokenizer, 16, limit=10**6).shape == everything.shape


def test_pieces_lose_nothing_and_are_tokenized_like_the_whole(tokenizer) -> None:
    text = "\n".join(words(30, number) for number in range(1000))
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert len(cut) > 3
    assert all(piece.endswith("\n") for piece in cut[:-1])
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    packed = sequences(dataset(text), tokenizer, 100)
    assert packed.flatten().tolist() == whole[: packed.numel()]


@pytest.mark.parametrize("text", ["x" * 50_000, "ab " * 20_000, "", "a\n"])
def test_pieces_of_texts_without_lines(text: str) -> None:
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert all(len(piece) <= PIECE for piece in cut)


def test_too_little_text(tokenizer) -> None:
    words = r"data train: 3 tokens are too few for one sequence of 8 \(4 x 8 = 32 were asked for\)"
    with pytest.raises(DataError, match=words):
        sequences(dataset("w0 w1"), tokenizer, 8, limit=4)


def test_no_remark_about_long_texts(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    try:
        tokenizer(words(40))
        assert "longer than" in caplog.text
        caplog.clear()
        tokenizer.deprecation_warnings.clear()
        sequences(dataset(words(40)), tokenizer, 8)
        encode(dataset(words(40)), tokenizer, 64, None)
        assert caplog.text == ""
    finally:
        logger.propagate = propagate


CHAT = ({"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"})


def test_chat_goes_through_the_template(tokenizer, monkeypatch) -> None:
    template = "{% for m in messages %}{{ m.content }} [EOS] {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    data = Dataset("train", [Example("plain", None, CHAT)], "key")
    ids = sequences(data, tokenizer, 6).tolist()
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["w1", "w2", "[EOS]", "w3", "w4", "[EOS]"]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="refuses these messages: roles must alternate"):
        sequences(data, tokenizer, 2)


def test_chat_without_a_template(tokenizer) -> None:
    data = Dataset("train", [Example("plain", None, CHAT, "a.jsonl:1")], "key")
    with pytest.raises(DataError, match=r"a\.jsonl:1.*no chat template"):
        sequences(data, tokenizer, 2)


def test_encode(tokenizer) -> None:
    data = dataset(words(3), words(30), labels=("pos", "neg"))
    rows = encode(data, tokenizer, 8, ["neg", "pos"])
    assert [(len(row.ids), row.label) for row in rows] == [(3, 1), (8, 0)]
    assert [row.label for row in encode(data, tokenizer, 8, None)] == [None, None]
    with pytest.raises(DataError, match=r'x.tsv:1: .*"pos".*it has "neg"'):
        encode(data, tokenizer, 8, ["neg"])


def test_check_ids() -> None:
    for ids in (torch.tensor([[1, 9]]), [1, 9], [[1], [9]], [Encoded([9], None)]):
        check_ids(ids, 10)
        with pytest.raises(ModelError, match=r"ids up to 9 but the model's vocabulary is 9"):
            check_ids(ids, 9)
    check_ids([], 1)


def test_a_real_file_to_tokens(rows, tokenizer, tmp_path: Path) -> None:
    read = rows("a.txt", words(100), task="causal-lm")
    assert sequences(read, tokenizer, 10).shape == (10, 10)
