"""What judging a model yields: a few numbers for each sequence, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from attar.core.step import Task


@dataclass
class Items:
    """Numbers of each judged sequence, in the order of the held-out data.

    Language models: `nll` and `kl` are sums in nats over a sequence's judged `tokens`, `agreed`
    counts those where model and reference have the same likeliest token. Classifiers: one text
    is one judged item; `tokens` is 1 where it has a label and 0 where not, `predictions` and
    `targets` are class numbers (target -100: no label). `kl` is KL(reference || model); `kl`
    and `agreed` are None without a reference, or with one of another vocabulary or classes.
    Two towers: one image is one item, and the texts of the data, each once, are its classes.
    Encoders: `cosine` to the reference's vector of each text, None without one as wide.
    `nan`: something that the model computed is NaN or infinite.
    """

    task: Task
    nll: list[float] = field(default_factory=list[float])
    tokens: list[int] = field(default_factory=list[int])
    kl: list[float] | None = None
    agreed: list[int] | None = None
    predictions: list[int] = field(default_factory=list[int])
    targets: list[int] = field(default_factory=list[int])
    cosine: list[float] | None = None
    nan: bool = False

    @property
    def compared(self) -> list[int]:
        """How many tokens, or texts, of each sequence are held against the reference."""
        choosing = self.task in ("classification", "contrastive")
        return [1] * len(self.tokens) if choosing else self.tokens

    def to_plain(self) -> dict[str, Any]:
        """Data that strict JSON holds: NaN and infinity become null."""
        plain = asdict(self)
        for name in ("nll", "kl", "cosine"):
            if plain[name] is not None:
                plain[name] = [value if math.isfinite(value) else None for value in plain[name]]
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """The items that `to_plain` wrote; null reads as NaN."""
        items = cls(**plain)
        items.nll = [math.nan if value is None else value for value in items.nll]
        if items.kl is not None:
            items.kl = [math.nan if value is None else value for value in items.kl]
        if items.cosine is not None:
            items.cosine = [math.nan if value is None else value for value in items.cosine]
        return items
