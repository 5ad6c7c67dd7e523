"""Write the generated pages of the docs: one a technique, from its docstring and settings.

python docs/generate.py          writes docs/techniques/*.md
python docs/generate.py --check  fails when a page is not what would be written
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from attar.core import registry
from attar.core.step import Step

PAGES = Path(__file__).parent / "techniques"
SOURCES = Path(registry.__file__).parent.parent / "techniques"


def main() -> int:
    """Write or check every page; the exit code."""
    pages = {f"{entry.kind.replace('/', '-')}.md": page(entry) for entry in registry.entries()}
    pages["README.md"] = index()
    stale = [name for name, text in pages.items() if not same(PAGES / name, text)]
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/techniques/{name} is not what its technique says; run `make docs`")
        return 1 if stale else 0
    for name in stale:
        (PAGES / name).write_text(pages[name], "utf-8")
    return 0


def same(path: Path, text: str) -> bool:
    """Whether the page already says this."""
    return path.exists() and path.read_text("utf-8") == text


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
    tree = ast.parse((SOURCES / f"{entry.kind}.py").read_text("utf-8"))
    about = (ast.get_docstring(tree) or "").partition("\n")[2].strip()
    lines = [f"# `{entry.kind}`", "", entry.summary, ""]
    if about:
        lines += [about, ""]
    if cls.__doc__ and cls.__doc__.strip() not in (entry.summary, Step.__doc__):
        lines += [cls.__doc__.strip().replace("\n    ", "\n"), ""]
    lines += [
        f"Tasks: {', '.join(cls.tasks)}. Needs: {words(cls.needs)}. Removes: "
        f"{words(cls.removes)}. Adds: {words(cls.adds)}. Promises: {words(cls.promises)}."
        + (" Needs the whole model in memory." if cls.whole else ""),
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else f"`{plain(field.get_default())}`"
        meaning = (field.description or "").replace("|", r"\|")
        lines.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def words(traits: frozenset[str]) -> str:
    """Names of traits or promises, or nothing."""
    return ", ".join(sorted(traits)) or "nothing"


def plain(value: object) -> str:
    """A default as it is written in a recipe."""
    patterns = getattr(value, "patterns", None)
    if patterns is not None:
        return ", ".join(patterns)
    return {None: "none", True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
