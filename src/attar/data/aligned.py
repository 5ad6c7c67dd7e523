"""Where two tokenizers spell the same stretches of a text, and how much of it that is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from attar.data.spelling import Placed, Spelling
from attar.errors import UserError

_LONGEST = 16  # tokens of either side; a longer stretch was never meant to be one
_SPACES = b" \t\n\r\x0b\x0c"


@dataclass
class Stretches:
    """Stretches of texts, one after another: the shortest that both tokenizers end.

    own, theirs: [tokens], all ids. own_ends, their_ends: [stretches], how many tokens there are
    up to the end of each. good: [stretches], whether both spell the stretch as it is, in no more
    tokens than it has characters. characters: how many there are; missed: how many of them are in
    a stretch that is not good, by the reason.
    """

    own: np.ndarray
    theirs: np.ndarray
    own_ends: np.ndarray
    their_ends: np.ndarray
    good: np.ndarray
    characters: int = 0
    missed: Counter[str] = field(default_factory=Counter[str])

    def insist(self, least: float, name: str) -> None:
        """Raise UserError where less than this share of the characters is in good stretches."""
        share = 1 - self.missed.total() / max(self.characters, 1)
        if self.characters and share >= least:
            return
        reasons = "; ".join(
            f"{count / self.characters:.1%} {why}" for why, count in self.missed.most_common()
        )
        raise UserError(
            f"data {name!r}: teacher and student spell {share:.1%} of {self.characters} characters "
            f"in the same stretches, and `aligned` asks for {least:.1%}: {reasons}. Take a teacher "
            "whose tokenizer keeps texts as they are and has words of this script, or let the "
            "teacher write texts for the student to learn from"
        )


def align(text: str, own: tuple[Spelling, Placed], theirs: tuple[Spelling, Placed]) -> Stretches:
    """The stretches of a text; what is left after the last common end is one that is not good."""
    (_, mine), (_, yours) = own, theirs
    (at, one), (other_at, other) = mine.edges(), yours.edges()
    ends, first, second = np.intersect1d(at, other_at, assume_unique=True, return_indices=True)
    own_ends, their_ends = one[first], other[second]
    done = (own_ends[-1], their_ends[-1]) if len(ends) else (0, 0)
    if done != (len(mine.ids), len(yours.ids)):
        ends = np.append(ends, len(text))
        own_ends = np.append(own_ends, len(mine.ids))
        their_ends = np.append(their_ends, len(yours.ids))
    good, missed = np.ones(len(ends), dtype=bool), Counter[str]()
    begin = a = c = 0
    stops = zip(ends.tolist(), own_ends.tolist(), their_ends.tolist(), strict=True)
    for number, (end, b, d) in enumerate(stops):
        why = _wrong(text[begin:end], (own[0], mine.ids[a:b]), (theirs[0], yours.ids[c:d]))
        if why:
            good[number] = False
            missed[why] += end - begin
        begin, a, c = end, b, d
    return Stretches(mine.ids, yours.ids, own_ends, their_ends, good, len(text), missed)


def _wrong(text: str, *sides: tuple[Spelling, np.ndarray]) -> str:
    """Why a stretch tells nothing of the two models, or nothing."""
    said = text.encode("utf-8", "surrogatepass").translate(None, _SPACES)
    for spelling, ids in sides:
        whose = f"the {spelling.whose}'s tokenizer"
        if b"".join(spelling.tokens[number] for number in ids).translate(None, _SPACES) != said:
            return f"are not given back by {whose}"
        if len(ids) > len(text):
            return f"are cut into more tokens than characters by {whose}"
        if len(ids) > _LONGEST:
            return f"are in stretches of more than {_LONGEST} tokens of {whose}"
        if not len(ids):
            return f"are passed over by {whose}"
    return ""


def chained(parts: list[Stretches]) -> Stretches:
    """Stretches one after another."""
    own = np.cumsum([0, *(len(part.own) for part in parts)])
    theirs = np.cumsum([0, *(len(part.theirs) for part in parts)])
    missed = Counter[str]()
    for part in parts:
        missed.update(part.missed)
    return Stretches(
        np.concatenate([part.own for part in parts]),
        np.concatenate([part.theirs for part in parts]),
        np.concatenate([part.own_ends + at for part, at in zip(parts, own, strict=False)]),
        np.concatenate([part.their_ends + at for part, at in zip(parts, theirs, strict=False)]),
        np.concatenate([part.good for part in parts]),
        sum(part.characters for part in parts),
        missed,
    )
