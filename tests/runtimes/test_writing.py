"""Writing by logits: prompts go to an engine in pieces, and what is written is the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attar.runtimes._writing import Following, LogitsDecoder
from attar.runtimes.runtime import Floats


class Counting(LogitsDecoder):
    """After every token comes the number of all before it; tells what it was given at once."""

    engine, context = "fake", 2000

    def __init__(self) -> None:
        self.given: list[int] = []

    def logprobs(self, ids: Sequence[int]) -> Floats:
        raise NotImplementedError

    def close(self) -> None:
        self.given.clear()

    def begin(self, length: int) -> Following:
        self.given.clear()

        def following(ids: Sequence[int]) -> Floats:
            self.given.append(len(ids))
            return np.eye(self.context, dtype=np.float32)[sum(self.given)]

        return following


def test_a_long_prompt_is_read_in_pieces() -> None:
    decoder = Counting()
    for length, pieces in ((1, [1]), (256, [256]), (257, [256, 1]), (600, [256, 256, 88])):
        found = [token.id for token in decoder.generate([7] * length, 3)]
        assert found == [length, length + 1, length + 2]
        assert decoder.given == [*pieces, 1, 1]
