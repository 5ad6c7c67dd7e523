"""How each figure is written, which columns there are, and what a run came to in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attar.core.report import Figure, Report, StageReport
from attar.present.plain import bytes_text, clean, count_text, ratio_text, significant
from attar.present.words import Words

ORDER = (
    "perplexity",
    "kl",
    "agreement",
    "accuracy",
    "macro_f1",
    "cosine",
    "tokens_per_second",
    "texts_per_second",
    "rows_per_second",
    "latency_p50",
    "latency_p95",
    "peak_memory",
    "size",
    "parameters",
    "rows",
    "kept",
)
SHARES = frozenset({"agreement", "accuracy", "macro_f1"})
LATENCIES = frozenset({"latency_p50", "latency_p95"})
SPEEDS = frozenset({"tokens_per_second", "texts_per_second", "rows_per_second"})
TIMED = SPEEDS | LATENCIES
BYTES = frozenset({"peak_memory", "size"})
HIGHER_IS_BETTER = SHARES | SPEEDS | {"cosine"}
LOWER_IS_BETTER = frozenset({"perplexity", "kl", "forgetting"}) | LATENCIES | BYTES
# A ratio of these says something; for shares and divergences it does not.
COMPARED = frozenset({"perplexity", "parameters"}) | TIMED | BYTES


@dataclass(frozen=True)
class Cell:
    """One figure, written: `27.95`, its interval `[27.1, 28.8]`, and `0.31×` the original's."""

    value: str
    interval: str = ""
    simulated: bool = False
    compared: str = ""

    @property
    def marked(self) -> str:
        """The value, starred where PyTorch only simulates it."""
        return self.value + "*" * self.simulated

    @property
    def text(self) -> str:
        """The value and its interval on one line."""
        return f"{self.marked} {self.interval}".rstrip()


def columns(stages: Iterable[StageReport]) -> list[str]:
    """The figures that some stage has: the known ones in order, then the others."""
    present = list(dict.fromkeys(name for stage in stages for name in stage.figures))
    return [name for name in ORDER if name in present] + [n for n in present if n not in ORDER]


def label(name: str, words: Words) -> str:
    """What a figure is called."""
    what, on, data = name.partition(" on ")
    if on:
        return words("figure.on", what=label(what, words), data=clean(data))
    return words.get(f"figure.{name}", clean(name).replace("_", " "))


def unit_label(name: str, stages: Iterable[StageReport], words: Words) -> str:
    """The unit to put into the heading: empty where the cells carry it or the name says it."""
    if name in SPEEDS:
        return ""
    for stage in stages:
        figure = stage.figures.get(name)
        if figure is not None and figure.unit and _form(name, figure) == "number":
            return words.get(f"unit.{figure.unit}", clean(figure.unit))
    return ""


def kind(name: str) -> str:
    """What a figure is one of: `accuracy` for `accuracy on reviews`."""
    return name.partition(" on ")[0]


def _form(name: str, figure: Figure) -> str:
    if name in BYTES or figure.unit == "bytes":
        return "bytes"
    if name in ("parameters", "rows"):
        return "count"
    if name in SHARES or figure.unit == "%":
        return "share"
    return "time" if name in LATENCIES or figure.unit in ("ms", "s") else "number"


def number(name: str, figure: Figure, value: float, bound: bool = False) -> str:
    """One value of a figure; a bound of its interval has no unit and a digit less."""
    form = _form(name, figure)
    if form == "bytes":
        return bytes_text(value)
    if form == "count":
        return count_text(value)
    if form == "share":
        value = value if figure.unit == "%" else 100 * value
        digits = f"{value:.1f}" if math.isfinite(value) else significant(value, 3)
        return digits if bound or not math.isfinite(value) else f"{digits}%"
    if form == "time":
        digits = significant(value * 1000 if figure.unit == "s" else value, 3)
        return digits if bound or not math.isfinite(value) else f"{digits} ms"
    short = bound or abs(value) < 1 or name in SPEEDS
    return significant(value, 3 if short else 4)


def cell(stage: StageReport, name: str, original: StageReport | None = None) -> Cell | None:
    """A stage's figure, written, and compared with the original's where that says something."""
    figure = stage.figures.get(name)
    if figure is None:
        return None
    interval = ""
    if figure.low is not None and figure.high is not None:
        low, high = (number(name, figure, end, bound=True) for end in (figure.low, figure.high))
        interval = f"[{low}, {high}]"
    times = None
    if original is not None and original is not stage and name in COMPARED:
        times = ratio(figure, original.figures.get(name))
    return Cell(
        value=number(name, figure, figure.value),
        interval=interval,
        simulated=stage.simulated and name in TIMED,
        compared="" if times is None else f"{ratio_text(times)}×",
    )


def ratio(figure: Figure | None, base: Figure | None) -> float | None:
    """`figure / base`, where there is such a number."""
    if figure is None or base is None or not base.value:
        return None
    quotient = figure.value / base.value
    return quotient if math.isfinite(quotient) else None


def apart(left: Figure, right: Figure) -> bool:
    """Whether the two intervals do not overlap; a figure without one is a point."""
    bounds = [
        (f.value if f.low is None else f.low, f.value if f.high is None else f.high)
        for f in (left, right)
    ]
    return bounds[0][1] < bounds[1][0] or bounds[1][1] < bounds[0][0]


def is_simulated(stages: Iterable[StageReport]) -> bool:
    """Whether some stage shows a speed that PyTorch only simulates."""
    return any(stage.simulated and TIMED & stage.figures.keys() for stage in stages)


def quality(report: Report) -> str | None:
    """The figure that says how good the model still is."""
    order = ["perplexity", "accuracy", "macro_f1", "agreement", "kl", "cosine"]
    if report.task in ("classification", "contrastive"):
        order = ["accuracy", "macro_f1", "agreement", "kl", "perplexity"]
    return next((n for n in order if any(n in s.figures for s in report.stages)), None)


def speed(report: Report) -> str | None:
    """The figure that says how fast the model is."""
    return next((n for n in ORDER if n in SPEEDS and n in columns(report.stages)), None)


def conditions(stages: Sequence[StageReport], words: Words) -> list[str]:
    """What the figures' notes say, each once, with the stages it holds for if not for all."""
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in columns(stages):
        having = [stage for stage in stages if name in stage.figures]
        by_note: dict[str, list[str]] = {}
        for stage in having:
            by_note.setdefault(clean(stage.figures[name].note), []).append(stage_name(stage, words))
        for note, ids in by_note.items():
            if note:
                who = tuple(ids) if len(ids) < len(having) else ()
                lines.setdefault((note, who), []).append(label(name, words))
    comma, gap = words("comma"), words("gap")
    return [
        comma.join(labels)
        + (gap + words("within", what=comma.join(who)) if who else "")
        + f"{words('colon')}{note}"
        for (note, who), labels in lines.items()
    ]


def stage_name(stage: StageReport, words: Words) -> str:
    """A stage's id, the original's in the reader's language."""
    return words("original") if stage.id == "original" else clean(stage.id)


def headline(report: Report, words: Words) -> str:
    """What the run came to: how much smaller, how much worse, how much faster."""
    if report.pressed is None:
        return words("headline.original")
    first, last = report.stages[0], report.pressed
    parts = [_size(first, last, words), _quality(report, words), _speed(report, words)]
    return words("headline.comma").join(part for part in parts if part)


def _size(first: StageReport, last: StageReport, words: Words) -> str:
    times = ratio(last.figures.get("size"), first.figures.get("size"))
    if not times or times < 0:
        return ""
    if 0.99 < times < 1.01:
        return words("headline.same")
    word = "smaller" if times < 1 else "larger"
    return words(f"headline.{word}", ratio=ratio_text(max(times, 1 / times)))


def _quality(report: Report, words: Words) -> str:
    name = quality(report)
    first, last = report.stages[0], report.pressed
    if last is None or name is None or name not in last.figures:
        return ""
    times = ratio(last.figures[name], first.figures.get(name))
    if name == "perplexity" and times is not None:
        return words("headline.perplexity", ratio=ratio_text(times))
    before, after = cell(first, name), cell(last, name)
    return words(
        "headline.quality",
        label=label(name, words),
        before="–" if before is None else before.value,
        after="–" if after is None else after.value,
    )


def _speed(report: Report, words: Words) -> str:
    name, first, last = speed(report), report.stages[0], report.pressed
    if last is None or name is None or last.simulated:
        return ""
    times = ratio(last.figures.get(name), first.figures.get(name))
    if not times or 0.95 < times < 1.05:
        return ""
    word = "faster" if times > 1 else "slower"
    return words(f"headline.{word}", ratio=ratio_text(max(times, 1 / times)))
