"""What a model lost of earlier tasks while it learned others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attar.core.report import Figure


def forgetting(stages: Sequence[Mapping[str, Figure]], names: Sequence[str]) -> Figure | None:
    """What the last stage lost, a mean over datasets of what is missing to the best stage so far.

    stages: figures of each stage, in order; names: of the figures that are one dataset's each, all
    perplexities or all accuracies. In nats a token or points (Chaudhry et al. 2018,
    arXiv:1801.10112, section 2; there over the tasks learned so far, here over all datasets, of
    which one not learned yet adds little). None where the last stage lacks a figure.
    """
    if not stages or not all(name in stages[-1] for name in names):
        return None
    lost: list[float] = []
    unit = ""
    for name in names:
        known = [figures[name] for figures in stages if name in figures]
        unit = known[-1].unit
        scores = [f.value if unit == "%" else -math.log(f.value) for f in known]
        lost.append(max(scores) - scores[-1])
    value = sum(lost) / len(lost)
    note = "what is missing to the best stage so far, a mean over " + ", ".join(names)
    return Figure(value=value, unit="points" if unit == "%" else "nats/token", note=note)
