from collections.abc import Callable
from pathlib import Path

import pytest

from attar.core.recipe import DataSource
from attar.data import Dataset, load

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file below tmp_path and give its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def rows(write: Write):
    """What a file of this content is read as."""

    def rows(name: str, content: str | bytes, task: str = "classification", **settings) -> Dataset:
        return load(DataSource(path=str(write(name, content)), **settings), task, "train")

    return rows


@pytest.fixture(scope="session")
def tokenizer():
    """Words and punctuation, with a pad, an end and a mask token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[EOS]", "[MASK]", "[UNK]", "[CLS]", "[SEP]", "[BOS]"]
    words = [f"w{number}" for number in range(50)]
    vocabulary = {word: number for number, word in enumerate(special + words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        eos_token="[EOS]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    made.model_max_length = 16
    return made
