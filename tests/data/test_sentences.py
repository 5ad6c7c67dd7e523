"""Where sentences end, in English and in Chinese."""

from __future__ import annotations

import pytest

from attar.data.sentences import halves, sentences


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It costs 3.50 a piece. Yes.", ["It costs 3.50 a piece.", "Yes."]),
        ("Mr. Smith met J. S. Bach. They spoke.", ["Mr. Smith met J. S. Bach.", "They spoke."]),
        ('"Go on." He did.', ['"Go on."', "He did."]),
        ("我来了。你看见了吗？他说：“看见了！”然后走了", None),
        ("标题没有句号\n第一句。第二句……第三句", None),
        ("no end at all", ["no end at all"]),
        ("  \n\n ", []),
    ],
)
def test_sentences(text: str, found: list[str] | None) -> None:
    chinese = {
        "我": ["我来了。", "你看见了吗？", "他说：“看见了！”", "然后走了"],
        "标": ["标题没有句号", "第一句。", "第二句……", "第三句"],
    }
    assert sentences(text) == (chinese[text[0]] if found is None else found)


def test_nothing_but_space_is_lost() -> None:
    text = "“是吗？”她问。Then what... he said (quietly!) and left. 完！？好。"
    assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("价格还贵的离谱，感觉被坑了。", ["价格还贵的离谱，", "感觉被坑了。"]),
        ("a, bcd efg hij, k", ["a, bcd", "efg hij, k"]),
        ("没有标点的一句话", ["没有标点", "的一句话"]),
        ("word", ["word"]),
        ("字", ["字"]),
    ],
)
def test_halves(sentence: str, found: list[str]) -> None:
    assert halves(sentence) == found
