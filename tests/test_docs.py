"""The docs say what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from attar.core import registry
from attar.core.recipe import DataSource, Guard, Recipe
from attar.core.recipe_file import parse
from attar.core.scope import Scope
from attar.core.traits import Trait

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*/*.md"))]
DEEP = ("start", "concepts")  # the pages that between them name every key


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


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    """What docs/generate.py defines."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_pages_are_fresh(generate: dict[str, Any]):
    assert generate["stale"](generate["pages"]()) == [], "run `make docs`"


def test_every_trait_is_told():
    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    table = page.partition("## Traits")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [str(trait) for trait in Trait]


def test_tables_say_what_was_measured():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    page = tables["PAGE"].read_text("utf-8")
    assert tables["written"](page) == page, "run `make docs`"


@pytest.mark.parametrize(
    ("default", "written"),
    [
        (1, "1"),
        (0, "0"),
        (1.0, "1"),
        (0.0003, "0.0003"),
        (True, "yes"),
        (False, "no"),
        (None, "null"),
        ("int4-g64", "int4-g64"),
        (Scope.linears(), "linears"),
    ],
)
def test_defaults_are_as_a_recipe_writes_them(
    generate: dict[str, Any], default: object, written: str
):
    assert generate["plain"](default) == written


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("distill-logits", "| `accumulate` | `1` |"),
        ("distill-logits", "| `clip` | `1` |"),
        ("distill-logits", "| `weight` | `1` |"),
        ("distill-logits", "| `keep_best` | `yes` |"),
        ("quantize-gptq", "| `sweeps` | `1` |"),
    ],
)
def test_pages_tell_defaults(page: str, row: str):
    text = (ROOT / "docs" / "techniques" / f"{page}.md").read_text("utf-8")
    assert row in text


@pytest.mark.parametrize("kind", registry.kinds())
@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readmes_name_every_technique(page: str, kind: str):
    family, _, word = kind.partition("/")
    lines = (ROOT / page).read_text("utf-8").splitlines()
    row = next((line for line in lines if line.startswith(f"| `{family}` |")), "")
    assert f"`{word}`" in row, f"{page} has no {kind} in its table of techniques"


@pytest.mark.parametrize("kind", registry.kinds())
def test_the_index_names_every_technique(kind: str):
    index = (ROOT / "docs" / "techniques" / "README.md").read_text("utf-8")
    assert f"[`{kind}`]({kind.replace('/', '-')}.md)" in index


@pytest.mark.parametrize("section", [Recipe, DataSource, Guard])
def test_start_and_concepts_name_every_key(section: type[BaseModel]):
    text = "".join((ROOT / "docs" / f"{page}.md").read_text("utf-8") for page in DEEP)
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    missing = [key for key in section.model_fields if not re.search(rf"\b{key}\b", code)]
    assert not missing


def test_the_bounds_of_the_guard_are_its_defaults():
    text = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", text, re.MULTILINE))
    defaults = {key: field.get_default() for key, field in Guard.model_fields.items()}
    assert {key: yaml.safe_load(value) for key, value in told.items()} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()
    }


@pytest.mark.parametrize("page", ["deploy/compose.yaml", "docs/serve.md"])
def test_the_model_of_compose_is_named_from_the_root(page: str):
    """Compose takes relative folders to lie beside its own file."""
    named = re.findall(r"\bMODEL=(\S+) .*docker compose", (ROOT / page).read_text("utf-8"))
    assert named == ["$PWD/model"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert [name for name in files if not (page.parent / name).exists()] == []
