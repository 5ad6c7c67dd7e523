from __future__ import annotations

import io
from contextlib import ExitStack

import pytest
from rich.console import Console

from attar.core.context import Progress
from attar.present import progress
from attar.present.progress import Pace, RichProgress


class _Clock:
    """A clock that a test turns."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_pace_tells_what_is_left(clock: _Clock) -> None:
    pace = Pace(100)
    assert pace.left is None
    for _ in range(10):
        clock.now += 2
        pace.advance(5)
    assert pace.share == 0.5
    assert pace.elapsed == 20
    assert pace.left == pytest.approx(20)
    clock.now += 5
    assert pace.left == pytest.approx(15)
    clock.now += 100
    assert pace.left == 0


def test_a_leap_at_the_start_is_forgotten(clock: _Clock) -> None:
    pace = Pace(1000)
    clock.now += 0.01
    pace.advance(500)  # resumed from a checkpoint
    for _ in range(100):
        clock.now += 1
        pace.advance(1)
    assert pace.left == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("total", [0, -1, float("nan"), float("inf")])
def test_an_unknown_total_has_no_estimate(clock: _Clock, total: float) -> None:
    pace = Pace(total)
    clock.now += 1
    pace.advance(3)
    assert pace.left is None
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with RichProgress(console).bar("x", total) as bar:
        bar.advance(1)
    assert "✓ \x1b[0mx" in _text(console)


def test_plain_lines_come_at_most_every_five_seconds(clock: _Clock) -> None:
    console = Console(file=io.StringIO(), width=60)
    shown: Progress = RichProgress(console)
    with shown.bar("heal", 100) as bar:
        for i in range(100):
            clock.now += 0.5
            bar.advance(text=f"loss {i}\nx")
    lines = _text(console).splitlines()
    assert len(lines) == 11
    assert lines[0] == "heal   10%  5.0 s elapsed  45 s left  loss 9 x"
    assert lines[-1] == "✓ heal  done in 50 s"


def test_nested_bars_on_plain_lines_end_quietly(clock: _Clock) -> None:
    console = Console(file=io.StringIO(), width=60)
    shown = RichProgress(console, "zh")
    with shown.bar("outer", 3) as outer:
        for _ in range(3):
            with shown.bar("inner", 2) as inner:
                inner.advance(2)
            clock.now += 4
            outer.advance()
    text = _text(console)
    assert "✓ inner" not in text
    assert "✓ outer  完成，用时 12 s" in text
    assert "剩余" in text


@pytest.mark.parametrize("managed", [True, False])
def test_live_bars_nest_and_leave_a_line(managed: bool) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    shown = RichProgress(console)
    with ExitStack() as stack:
        if managed:
            stack.enter_context(shown)
        with shown.bar("outer [red]", 2) as outer:
            with shown.bar("inner", 1) as inner:
                inner.advance(1, "half")
                shown.say("warning: [bold]look")
            outer.advance(2)
        shown.say("between")
        with shown.bar("later", 1):
            pass
    text = _text(console)
    assert "✓ \x1b[0mouter [red]" in text
    assert "✓ \x1b[0minner" not in text
    assert "later" in text
    assert "[bold]look" in text
    assert "\x1b[?25h" in text  # the cursor is back
    assert console._live_stack == []


def test_work_that_fails_says_where_it_stopped(clock: _Clock) -> None:
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        shown = RichProgress(console)

        def work(shown: RichProgress = shown) -> None:
            with shown.bar("a", 4) as bar, shown.bar("b", 1):
                bar.advance(1)
                clock.now += 7
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work()
        text = _text(console)
        assert "25%" in text
        assert "stopped after 7.0 s" in text
        assert console._live_stack == []


def test_what_is_said_cannot_command_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    RichProgress(console).say("a\x1b[2Jb")
    assert "\x1b" not in _text(console)
