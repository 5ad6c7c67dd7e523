"""The docs say what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from attar.core.recipe_file import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """Code blocks of a language, by page."""
    return [
        (page.name, block)
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_recipes_in_the_docs_are_recipes(page: str, block: str):
    assert parse(block, page).steps


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_python_in_the_docs_runs(page: str, block: str):
    exec(compile(block, page, "exec"), {})  # our own pages


def test_generated_pages_are_fresh():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    stale = [
        entry.kind
        for entry in generate["registry"].entries()
        if not generate["same"](
            ROOT / "docs" / "techniques" / f"{entry.kind.replace('/', '-')}.md",
            generate["page"](entry),
        )
    ]
    assert not stale, "run `make docs`"
