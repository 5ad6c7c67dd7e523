"""Write the generated pages of the docs: one a technique, from its docstring and settings.

python docs/generate.py          writes docs/techniques/*.md
python docs/generate.py --check  fails when a page is not what would be written
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from attar.core import registry
from attar.core.explain import show
from attar.core.step import DataStep, Step

PAGES = Path(__file__).parent / "techniques"
SOURCES = Path(registry.__file__).parent.parent / "techniques"


def main() -> int:
    """Write or check every page; the exit code."""
    found = pages()
    late = stale(found)
    if "--check" in sys.argv:
        for name in late:
            print(f"docs/techniques/{name} is not what its technique says; run `make docs`")
        return 1 if late else 0
    for name in late:
        if name in found:
            (PAGES / name).write_text(found[name], "utf-8")
        else:
            (PAGES / name).unlink()
    return 0


def pages() -> dict[str, str]:
    """What every page should say, by its file's name."""
    found = {f"{entry.kind.replace('/', '-')}.md": page(entry) for entry in registry.entries()}
    return {"README.md": index(), **found}


def stale(found: dict[str, str]) -> list[str]:
    """Pages that say something else, or whose technique is gone."""
    there = {path.name: path.read_text("utf-8") for path in PAGES.glob("*.md")}
    return sorted(name for name in {*found, *there} if found.get(name) != there.get(name))


def index() -> str:
    """The list of techniques."""
    rows = [
        f"| [`{entry.kind}`]({entry.kind.replace('/', '-')}.md) | {entry.summary} |"
        for entry in registry.entries()
    ]
    return "# Techniques\n\n| kind | what it does |\n|---|---|\n" + "\n".join(rows) + "\n"


def page(entry: registry.Entry) -> str:
    """One technique: summary, traits, settings."""
    cls = registry.find(entry.kind)
    tree = ast.parse((SOURCES / f"{registry.file_of(entry.kind)}.py").read_text("utf-8"))
    about = (ast.get_docstring(tree) or "").partition("\n")[2].strip()
    lines = [f"# `{entry.kind}`", "", entry.summary, ""]
    if about:
        lines += [about, ""]
    if cls.__doc__ and cls.__doc__.strip() not in (entry.summary, Step.__doc__):
        lines += [cls.__doc__.strip().replace("\n    ", "\n"), ""]
    lines += [traits(cls), "", "| setting | default | meaning |", "|---|---|---|"]
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else f"`{plain(field.get_default())}`"
        meaning = (field.description or "").replace("|", r"\|")
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def traits(cls: type[Step]) -> str:
    """What it works for, and what becomes of the weights."""
    tasks = f"Tasks: {', '.join(cls.tasks)}."
    if issubclass(cls, DataStep):
        return f"{tasks} Makes data, called by the step's id; the model goes on as it is."
    forbidden = f", not {words(cls.forbids)}" if cls.forbids else ""
    return (
        f"{tasks} Needs: {words(cls.needs)}{forbidden}. Removes: {words(cls.removes)}. "
        f"Adds: {words(cls.adds)}. Promises: {words(cls.promises)}."
        + (" Needs the whole model in memory." if cls.whole else "")
    )


def words(traits: frozenset[str]) -> str:
    """Names of traits or promises, or nothing."""
    return ", ".join(sorted(traits)) or "nothing"


def plain(value: object) -> str:
    """A default as it is written in a recipe."""
    patterns = getattr(value, "patterns", None)
    if patterns is not None:
        return ", ".join(patterns)
    if value is None:
        return "null"
    return value if isinstance(value, str) else show(value)


if __name__ == "__main__":
    sys.exit(main())
