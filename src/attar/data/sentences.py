"""Sentences of a text, by Chinese and English punctuation."""

from __future__ import annotations

import re

_CLOSING = r"[\"'”’」』）)\]》]*"
_END = re.compile(rf"[。！？…]+{_CLOSING}|[.!?]+{_CLOSING}(?=\s|$)|\n+")
# A dot after these ends no sentence: initials, titles, and what is written short.
_SHORT = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Gen|Rev|vs|cf|e\.g|i\.e)$")
_CLAUSE = re.compile(r"[，、；：,;:\s]+")
_REACH = 6  # characters before a dot that tell whether it is one of these


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, without the space around them.

    A line ends one too. Quotes and brackets that close after the end belong to the sentence.
    """
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if end[0][0] == "." and _SHORT.search(text[max(start, end.start() - _REACH) : end.start()]):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def halves(sentence: str) -> list[str]:
    """A sentence in two parts, at the end of a clause or a word that is nearest its middle.

    Chinese that has neither is cut in its middle; a single word stays whole.
    """
    middle = len(sentence) / 2
    ends = [end.end() for end in _CLAUSE.finditer(sentence) if 0 < end.end() < len(sentence)]
    if not ends and not sentence.isascii():
        ends = [len(sentence) // 2]
    if not ends:
        return [sentence]
    cut = min(ends, key=lambda end: abs(end - middle))
    return [part for part in (sentence[:cut].strip(), sentence[cut:].strip()) if part]
