"""Long work as bars with an estimate; plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from attar.present.plain import clean, duration
from attar.present.words import Words

EVERY = 5.0  # seconds between plain lines
_WINDOW = 60.0  # seconds that the pace is taken over
_POINTS = 8  # but never fewer advances than these: a block may take a minute


class Pace:
    """How fast work goes of late, and so how long what is left will take."""

    def __init__(self, total: float) -> None:
        self.total = total if 0 < total < math.inf else 0.0  # 0: nobody knows
        self.done = 0.0
        self.start = time.monotonic()
        self._points: deque[tuple[float, float]] = deque([(self.start, 0.0)])

    def advance(self, amount: float) -> None:
        """Take note that `amount` more is done."""
        now = time.monotonic()
        self.done += amount
        self._points.append((now, self.done))
        while len(self._points) > _POINTS and now - self._points[0][0] > _WINDOW:
            self._points.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """How much of the whole is done, 0 to 1."""
        return min(max(self.done / self.total, 0.0), 1.0) if self.total > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to go, as far as one can tell."""
        (first, before), (last, after) = self._points[0], self._points[-1]
        if after <= before or last <= first or self.total <= 0:
            return None
        rest = max(self.total - self.done, 0.0) * (last - first) / (after - before)
        return max(rest - (time.monotonic() - last), 0.0)


class _Clock(ProgressColumn):
    """Percentage, elapsed time and estimate."""

    max_refresh = 0.5

    def __init__(self, words: Words) -> None:
        super().__init__(Column(no_wrap=True, min_width=28))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(_state(task.fields["pace"], self._words, short=True))


class RichProgress:
    """Shows progress on a rich console: live bars, or lines at most every 5 s without a terminal.

    The display starts with the first bar and ends with the last one; bars may be nested.
    """

    def __init__(self, console: Console | None = None, language: str = "en") -> None:
        self.console = Console(stderr=True) if console is None else console
        self._words = Words(language)
        self._live: Progress | None = None
        self._depth = 0
        self._last_line = time.monotonic()
        self._lives = self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """Show one line, above the bars if there are any."""
        line = Text(clean(text))
        if text.startswith("warning:"):
            line = Text.assemble(
                (self._words("progress.warning"), "bold yellow"), clean(text)[len("warning:") :]
            )
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, label: str, total: float) -> Iterator[_Bar]:
        """Show work of `total` units until the block ends."""
        label = clean(label)
        self._depth += 1
        pace = Pace(total)
        shown = _LiveBar(self._start(), label, pace) if self._lives else None
        bar = shown or _PlainBar(self, label, pace)
        ended = "progress.stopped"
        try:
            yield bar
            ended = "progress.done"
        finally:
            self._depth -= 1
            if shown is not None:
                shown.close()
            self._end(bar, label, ended)

    def line(self, label: str, pace: Pace, text: str) -> None:
        """Print a plain line, unless there was one a moment ago."""
        now = time.monotonic()
        if now - self._last_line < EVERY:
            return
        self._last_line = now
        parts = [label, _state(pace, self._words), text]
        self._plain("  ".join(part for part in parts if part))

    def _end(self, bar: _Bar, label: str, ended: str) -> None:
        if self._depth > 0:
            return
        self._stop()
        took = self._words(ended, time=duration(bar.pace.elapsed))
        good = ended == "progress.done"
        mark = ("✓ ", "green") if good else ("✗ ", "red")
        share = "" if good else f"  {bar.pace.share:.0%}"
        self.console.print(
            Text.assemble(mark, label, (f"{share}  {took}", "dim")),
            soft_wrap=not self.console.is_terminal,
        )

    def _plain(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def _start(self) -> Progress:
        if self._live is None:
            width = self.console.width
            label = Column(no_wrap=True, overflow="ellipsis", max_width=max(12, 3 * width // 10))
            rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            self._live = Progress(
                TextColumn("{task.description}", markup=False, table_column=label),
                BarColumn(bar_width=max(6, min(30, width // 7))),
                _Clock(self._words),
                TextColumn("{task.fields[text]}", style="dim", markup=False, table_column=rest),
                console=self.console,
                refresh_per_second=4,
                transient=True,
                expand=True,
            )
            self._live.start()
        return self._live

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Bar:
    """One piece of long work under way."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def advance(self, amount: float = 1, text: str | None = None) -> None:
        """Say that `amount` more is done, with an optional short text to show."""
        self.pace.advance(amount)
        self.show(None if text is None else clean(text).replace("\n", " "))

    def show(self, text: str | None) -> None:
        """Bring the display up to date."""
        raise NotImplementedError


class _LiveBar(_Bar):
    def __init__(self, live: Progress, label: str, pace: Pace) -> None:
        super().__init__(pace)
        self._live = live
        self._text = ""
        self._task: TaskID = live.add_task(label, total=pace.total or None, pace=pace, text="")

    def show(self, text: str | None) -> None:
        self._text = self._text if text is None else text
        self._live.update(self._task, completed=self.pace.done, text=self._text)

    def close(self) -> None:
        """Take the bar away."""
        self._live.remove_task(self._task)


class _PlainBar(_Bar):
    def __init__(self, owner: RichProgress, label: str, pace: Pace) -> None:
        super().__init__(pace)
        self._owner = owner
        self._label = label
        self._text = ""

    def show(self, text: str | None) -> None:
        self._text = self._text if text is None else text
        self._owner.line(self._label, self.pace, self._text)


def _state(pace: Pace, words: Words, short: bool = False) -> str:
    parts = [f"{pace.share:4.0%}"] if pace.total > 0 else []
    elapsed = duration(pace.elapsed)
    parts.append(elapsed if short else words("progress.elapsed", time=elapsed))
    left = pace.left
    if left is not None:
        parts.append(words("progress.left", time=duration(left)))
    return "  ".join(parts)
