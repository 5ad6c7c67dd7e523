"""Write variants of texts by translating them into another language and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.core.scope import ModuleFact
from attar.core.step import ModelRef
from attar.data.example import Dataset
from attar.models.translator import Translator, is_translator, open_translator
from attar.techniques.data._variants import VariantsStep, by_pieces
from attar.train.writing import Choice, seeded


class BackTranslation(Choice, VariantsStep, kind="data/back-translation"):
    """Back-translation (Sennrich et al. 2016, arXiv 1511.06709), drawn at random so that variants
    differ (Edunov et al. 2018, arXiv 1808.09381).

    Any two sequence-to-sequence models will do whose tokenizers need no telling of the languages
    (Marian: one model a direction). At temperature 0 there is one variant.
    Long texts are translated in pieces of about `length` tokens.
    """

    there: ModelRef = Field(description="the model into the other language: a folder")
    back: ModelRef = Field(description="the model out of it again: a folder")
    batch: int = Field(8, ge=1, description="rows at a time")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether both are sequence-to-sequence models."""
        for setting in ("there", "back"):
            path = getattr(self, setting)
            if not is_translator(ModelSource(path=path)):
                yield f"`{setting}` {path} is no sequence-to-sequence model such as Marian or T5"

    def make(self, ctx: Context) -> Dataset:
        """The rows and their variants."""
        there, back = (
            open_translator(ModelSource(path=path), ctx.device) for path in (self.there, self.back)
        )

        rounds = self.variants if self.temperature else 1

        def vary(texts: Sequence[str], seed: int) -> list[list[str]]:
            with seeded(seed, ctx.device):
                found = [self._again(texts, (there, back), ctx) for _ in range(rounds)]
            return [list(row) for row in zip(*found, strict=True)]

        return self.grown(ctx, by_pieces(vary, self.length))

    def _again(
        self, texts: Sequence[str], ways: tuple[Translator, Translator], ctx: Context
    ) -> list[str]:
        """The texts there and back; of what came to nothing on the way, nothing."""
        for way in ways:
            texts = way.translate(texts, self.length, ctx.precision, self.choice()) if texts else []
        return list(texts)
