"""Write variants of texts by translating them into another language and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pydantic import Field

from attar.core.context import Context
from attar.core.recipe import ModelSource
from attar.core.scope import ModuleFact
from attar.core.step import ModelRef
from attar.data.example import Dataset
from attar.errors import AttarError
from attar.models.translator import Languages, Translator, open_translator, translator_problem
from attar.techniques.data._variants import VariantsStep, by_pieces
from attar.train.writing import Choice, seeded

Way = Callable[[Sequence[str]], list[str]]


class BackTranslation(Choice, VariantsStep, kind="data/back-translation"):
    """Back-translation (Sennrich et al. 2016, arXiv 1511.06709), drawn at random so that variants
    differ (Edunov et al. 2018, arXiv 1808.09381).

    Any two sequence-to-sequence models will do: Marian, with a model for each direction; one that
    is told `languages`, twice (mBART, NLLB, M2M100); one that is told what to do in words, with
    `prefixes` (T5). At temperature 0 there is one variant. Long texts are translated in pieces of
    about `length` tokens.
    """

    there: ModelRef = Field(description="the model into the other language: a folder")
    back: ModelRef = Field(description="the model out of it again: a folder")
    languages: tuple[str, str] | None = Field(
        None,
        description="codes of the texts' language and of the other, for models of many languages, "
        "as their cards have them: [eng_Latn, fra_Latn] for NLLB",
    )
    prefixes: tuple[str, str] | None = Field(
        None,
        description="what is written before each text on the way there and on the way back, for "
        'models that are told in words: ["translate English to French: ", ...] for T5',
    )
    batch: int = Field(8, ge=1, description="rows at a time")

    def check(self, modules: Sequence[ModuleFact]) -> Iterable[str]:
        """Whether both are sequence-to-sequence models, and know the languages."""
        for number, (setting, path) in enumerate((("there", self.there), ("back", self.back))):
            try:
                problem = translator_problem(ModelSource(path=path), self._codes(number))
            except AttarError as error:
                yield f"`{setting}`: {error}"
            else:
                if problem is not None:
                    yield f"`{setting}` {path} {problem}"

    def make(self, ctx: Context) -> Dataset:
        """The rows and their variants."""
        models = [
            open_translator(ModelSource(path=path), ctx.device, self._codes(number))
            for number, path in enumerate((self.there, self.back))
        ]
        length = min(model.room(self.length) for model in models)
        ways = [self._way(number, model, length, ctx) for number, model in enumerate(models)]
        rounds = self.variants if self.temperature else 1

        def vary(texts: Sequence[str], seed: int) -> list[list[str]]:
            with seeded(seed, ctx.device):
                found = [self._again(texts, ways) for _ in range(rounds)]
            return [list(row) for row in zip(*found, strict=True)]

        return self.grown(ctx, by_pieces(vary, length))

    def _way(self, number: int, model: Translator, length: int, ctx: Context) -> Way:
        """One direction: what it makes of texts."""
        prefix = self.prefixes[number] if self.prefixes else ""

        def translated(texts: Sequence[str]) -> list[str]:
            told = [prefix + text for text in texts]
            return model.translate(told, length, ctx.precision, self.choice())

        return translated

    def _codes(self, number: int) -> Languages | None:
        """The languages that a direction reads and writes."""
        return self.languages and (self.languages[number], self.languages[1 - number])

    def _again(self, texts: Sequence[str], ways: Sequence[Way]) -> list[str]:
        """The texts there and back; of what came to nothing on the way, nothing."""
        for way in ways:
            texts = way(texts) if texts else []
        return list(texts)
