"""The plots of the page, as inline SVG whose colors and fonts are the page's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attar.core.report import Figure, Report, StageReport
from attar.present import figures
from attar.present.plain import clean, significant
from attar.present.svg import ACCENT, GRID, INK, PAPER, SOFT, blank, place_labels, to_svg
from attar.present.words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_WIDE_SPREAD = 5.0  # from here on a linear axis hides the good stages
_BY = " by "  # in a curve's name, between what it tells and what that hangs on
_POINTS = 400  # as many as a curve needs to look smooth


@dataclass(frozen=True)
class Plot:
    """A picture, its title, and what to know to read it; the SVG says its numbers in words too."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class _Point:
    stage: StageReport
    name: str
    x: float
    y: float
    figure: Figure


def plots(report: Report, words: Words) -> list[Plot]:
    """Every plot that the report has numbers for."""
    found: list[Plot | None] = [
        _quality_plot(report, "size", words),
        _quality_plot(report, figures.speed(report), words),
    ]
    for stage in report.stages:
        found.append(_loss_plot(stage, words))
        for curve in stage.curves:
            if curve.startswith("block"):
                found.append(_block_plot(stage, curve, words))
            elif _BY in curve:
                found.append(_trade_plot(stage, curve, words))
    return [plot for plot in found if plot is not None]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _quality_plot(report: Report, against: str | None, words: Words) -> Plot | None:
    name = figures.quality(report)
    if name is None or against is None:
        return None
    points, dropped = _points(report, against, name, words)
    if len(points) < 2:
        return None
    figure, axes = blank()
    hollow = against in figures.SPEEDS
    _draw_path(axes, points, hollow, report.pressed or report.stages[0])
    label = figures.label(against, words) if against != "size" else words("axis.size")
    axes.set_xlabel(label)
    axes.set_title(_axis_title(name, report, words), loc="left")
    axes.set_xlim(0, 1.18 * max(point.x for point in points) or 1)
    _spread(axes, [point.y for point in points])
    place_labels(axes, [(point.name, point.x, point.y) for point in points])
    title = words("plot.size" if against == "size" else "plot.speed")
    alt = "; ".join(f"{p.name}: {significant(p.x, 3)}, {significant(p.y, 4)}" for p in points)
    captions = [
        words("plot.better_high" if name in figures.SHARES else "plot.better_low") + words("stop")
    ]
    if any(point.figure.low is not None for point in points):
        captions.append(words("plot.bars"))
    if hollow and any(point.stage.simulated for point in points):
        captions.append(words("plot.hollow"))
    if dropped:
        captions.append(words("plot.dropped", stages=words("comma").join(dropped)))
    caption = words("gap").join(captions)
    svg = to_svg(figure, against, f"{title}. {alt}")
    return Plot(title, svg, caption[:1].upper() + caption[1:])


def _points(
    report: Report, against: str, name: str, words: Words
) -> tuple[list[_Point], list[str]]:
    points: list[_Point] = []
    dropped: list[str] = []
    for stage in report.stages:
        x, y = stage.figures.get(against), stage.figures.get(name)
        called = figures.stage_name(stage, words)
        if x is None or y is None:
            continue
        if not (math.isfinite(x.value) and math.isfinite(y.value)):
            dropped.append(called)
            continue
        times = 1e-6 if against == "size" else 1.0
        shown = 100.0 if name in figures.SHARES and y.unit != "%" else 1.0
        scaled = y.model_copy(
            update={
                "value": y.value * shown,
                "low": None if y.low is None else y.low * shown,
                "high": None if y.high is None else y.high * shown,
            }
        )
        points.append(_Point(stage, called, x.value * times, scaled.value, scaled))
    return points, dropped


def _draw_path(axes: Axes, points: list[_Point], hollow: bool, final: StageReport) -> None:
    axes.plot([p.x for p in points], [p.y for p in points], color=GRID, linewidth=1.2, zorder=1)
    for index, point in enumerate(points):
        color = INK if index == 0 else ACCENT if point.stage is final else SOFT
        low, high = point.figure.low, point.figure.high
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            axes.plot([point.x, point.x], [low, high], color=color, linewidth=1.4, zorder=2)
        empty = hollow and point.stage.simulated
        axes.plot(
            [point.x],
            [point.y],
            marker="o",
            markersize=7,
            color=color,
            markerfacecolor=PAPER if empty else color,
            markeredgewidth=1.5,
            zorder=3,
        )


def _axis_title(name: str, report: Report, words: Words) -> str:
    unit = "%" if name in figures.SHARES else figures.unit_label(name, report.stages, words)
    return figures.label(name, words) + (f" ({unit})" if unit else "")


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if min(values) > 0 and max(values) / min(values) > _WIDE_SPREAD:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.4, max(values) * 1.4)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.margins(y=0.18)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than can be seen."""
    size = -(-len(points) // _POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _loss_plot(stage: StageReport, words: Words) -> Plot | None:
    curves = {
        name.removeprefix("loss/"): _finite(points)
        for name, points in stage.curves.items()
        if name.startswith("loss/")
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    figure, axes = blank()
    colors = {"train": SOFT, "dev": ACCENT}
    texts: list[str] = []
    for index, (name, points) in enumerate(curves.items()):
        label = words.get(f"curve.{name}", clean(name))
        dev = name != "train"
        thin = _thin(points)
        axes.plot(
            [x for x, _ in thin],
            [y for _, y in thin],
            color=colors.get(name, INK),
            linewidth=1.8 if dev else 1.0,
            linestyle="-" if index < 2 else "--",
            marker="o" if dev and len(thin) < 40 else None,
            markersize=3.5,
            label=label,
        )
        texts.append(f"{label}: {significant(points[0][1], 3)} → {significant(points[-1][1], 3)}")
    axes.set_xlabel(words("axis.step"))
    axes.set_title(words("axis.loss"), loc="left")
    axes.legend(frameon=False, loc="upper right")
    title = words("plot.loss", stage=figures.stage_name(stage, words))
    text = "; ".join(texts)
    return Plot(title, to_svg(figure, f"{stage.id}/loss", f"{title}. {text}"), text)


def _trade_plot(stage: StageReport, curve: str, words: Words) -> Plot | None:
    """What is gained against what is given up for it."""
    points = _finite(stage.curves[curve])
    if len(points) < 2:
        return None
    gained, _, given = curve.partition(_BY)
    figure, axes = blank()
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=ACCENT,
        linewidth=1.8,
        marker="o" if len(points) < 40 else None,
        markersize=3.5,
    )
    axes.set_xlabel(clean(given))
    axes.set_title(clean(gained), loc="left")
    return _told(stage, curve, points, figure, words)


def _told(
    stage: StageReport,
    curve: str,
    points: Sequence[tuple[float, float]],
    figure: Canvas,
    words: Words,
) -> Plot:
    """The plot of one curve, with its numbers in words and its range as the caption."""
    title = words("plot.block", curve=clean(curve), stage=figures.stage_name(stage, words))
    alt = ", ".join(f"{x:g}: {significant(y, 3)}" for x, y in points)
    ys = [y for _, y in points]
    ends = words("range", low=significant(min(ys), 3), high=significant(max(ys), 3))
    return Plot(title, to_svg(figure, f"{stage.id}/{curve}", f"{title}. {alt}"), ends)


def _block_plot(stage: StageReport, curve: str, words: Words) -> Plot | None:
    from matplotlib.ticker import MaxNLocator

    points = _finite(stage.curves[curve])
    if not points:
        return None
    figure, axes = blank()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.bar(xs, ys, width=0.72, color=SOFT)
    if min(ys) > 0 and max(ys) / min(ys) > 100:
        axes.set_yscale("log")
    top = max(points, key=lambda point: point[1])
    axes.bar([top[0]], [top[1]], width=0.72, color=ACCENT)
    axes.set_xlabel(words("axis.block"))
    axes.set_title(clean(curve), loc="left")
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _told(stage, curve, points, figure, words)
