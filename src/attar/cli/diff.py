"""attar diff: two runs side by side."""

from __future__ import annotations

from attar.cli.options import HOME, Home, Language, RunName


def diff(left: RunName, right: RunName, home: Home = HOME, language: Language = "en") -> None:
    """Show what differs between two runs: settings, and every figure with its ratio."""
    from rich.console import Console

    from attar.cli.kept import REPORT, find_run, read_report
    from attar.present.compare import diff as compare

    folders = [find_run(home, name) for name in (left, right)]
    reports = [read_report(folder / REPORT) for folder in folders]
    compare(reports[0], reports[1], Console(), language)
