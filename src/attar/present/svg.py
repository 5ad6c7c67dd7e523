"""Matplotlib's SVG made fit to stand inside a page: its colors are the page's variables."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins: matplotlib wants colors, the page has variables that follow light and dark.
INK, TEXT, SOFT = "#0a0b0c", "#0a0b11", "#0a0b0d"
ACCENT, GRID, PAPER = "#0a0b0e", "#0a0b10", "#0a0b0f"
_VARIABLES = {
    INK: "ink",
    TEXT: "soft",
    SOFT: "series",
    ACCENT: "accent",
    GRID: "line",
    PAPER: "card",
}
_SIZE = (6.0, 3.4)  # inches of 72 points
_FONT = 9.0


def _settings(salt: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": _FONT,
        "axes.unicode_minus": False,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence about glyphs that matplotlib's font lacks: the browser's fonts draw the text."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def blank() -> tuple[Figure, Axes]:
    """An empty figure with quiet axes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_settings("")):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=_SIZE, dpi=72, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, labelsize=_FONT, labelcolor=TEXT)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(TEXT)
    axes.set_prop_cycle(color=[INK, ACCENT, SOFT])
    return figure, axes


def place_labels(axes: Axes, labels: Sequence[tuple[str, float, float]]) -> None:
    """Write a name beside each point, where it covers no other name, no point and no path."""
    with _quiet():
        axes.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    spots = [tuple(axes.transData.transform((x, y))) for _, x, y in labels]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for (x, y), (far_x, far_y) in pairwise(spots):
        steps = [(x + (far_x - x) * i / 24, y + (far_y - y) * i / 24) for i in range(25)]
        taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in steps]
    frame = axes.bbox
    for (text, x, y), (left, bottom) in zip(labels, spots, strict=True):
        width, height = _width(text), _FONT * 1.3
        choices = [(8, -height / 2, "left"), (-8 - width, -height / 2, "right")]
        choices += [(-width / 2, 8, "center"), (-width / 2, -8 - height, "center")]
        choices += [(8, 6, "left"), (8, -6 - height, "left")]
        boxes = [
            (left + dx, bottom + dy, left + dx + width, bottom + dy + height)
            for dx, dy, _ in choices
        ]
        free = (
            i
            for i, box in enumerate(boxes)
            if box[0] >= frame.x0 and box[2] <= frame.x1 + 8 and not _hits(box, taken)
        )
        best = next(free, 2)
        taken.append(boxes[best])
        dx, dy, side = choices[best]
        shift = dx if side == "left" else dx + width if side == "right" else 0
        axes.annotate(
            text,
            (x, y),
            xytext=(shift, dy + height / 2),
            textcoords="offset points",
            ha=side,
            va="center",
            color=INK,
            fontsize=_FONT,
        )


def _width(text: str) -> float:
    return sum(_FONT * (1.0 if ord(letter) > 0x2E7F else 0.58) for letter in text)


def _hits(
    box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]
) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )


def to_svg(figure: Figure, salt: str, alt: str) -> str:
    """The figure as an `<svg>` element for a page: no header, no fixed size, no foreign names."""
    from matplotlib import rc_context

    for axes in figure.axes:
        legend = axes.get_legend()
        for text in legend.get_texts() if legend else []:
            text.set_color(INK)
        for text in (axes.title, axes._left_title):  # pyright: ignore[reportAttributeAccessIssue]
            text.set_color(TEXT)
            text.set_fontsize(_FONT)
    held = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context(_settings(salt)), _quiet():  # pyright: ignore[reportArgumentType]
        figure.savefig(held, format="svg", transparent=True, metadata=nothing)
    return _fit(held.getvalue(), alt)


def _fit(source: str, alt: str) -> str:
    box = re.search(r'viewBox="([^"]*)"', source)
    body = source[source.index(">", source.index("<svg")) + 1 :]
    # A style element inside the picture would rule over the whole page.
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Names such as axes_1 come again in every picture.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(
        r"font(-family)?: ([\d.]+px)? ?'DejaVu Sans'[^;\"]*",
        lambda found: f"font-size: {found[2]}" if found[2] else "font-family: inherit",
        body,
    )
    body = re.sub(r"\s*\n\s*", " ", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    view = box[1] if box else "0 0 432 245"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(alt)}">{body.strip()}'
