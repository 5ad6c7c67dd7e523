"""attar demo: a real model pressed on this machine, with nothing to download but packages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import typer

from attar.cli.launched import leads
from attar.cli.options import HOME, Device, Home, Language, Set

RECIPE = Path(__file__).with_name("demo.yaml")
_HELD_OUT = {"test": 40_000, "dev": 30_000}  # characters, at least
_LONGEST = 15_000  # of a held-out topic, so that several make a split


def demo(
    sets: Set = None, home: Home = HOME, language: Language = "en", device: Device = "cpu"
) -> None:
    """Press SmolLM2-135M: make it shallower, heal it, round it to 4 bits, and measure it all."""
    from attar.cli.execute import execute
    from attar.core.recipe_file import read
    from attar.engine.store import Store

    store = Store(Path(home))
    store.prepare()
    folder = write_data(store.home / "demo")
    recipe = read(RECIPE, [f"data={json.dumps(str(folder))}", *(sets or ())])
    execute(recipe, home, language, device)
    if not leads():
        return
    typer.echo(
        f"The recipe is {store.home / 'runs' / recipe.name / 'lock.yaml'}: copy it, put your own "
        "model and data in, and `attar run` it",
        err=True,
    )


def write_data(folder: Path) -> Path:
    """Write train.txt, dev.txt and test.txt: English prose from Python's documentation."""
    from attar.engine.store import readable, write_text

    with readable(f"the demo's data cannot be written to {folder}", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in deal(_topics()).items():
            path = folder / f"{name}.txt"
            if not path.exists() or path.read_text("utf-8") != text:
                write_text(path, text)
    return folder


def deal(topics: Mapping[str, str]) -> dict[str, str]:
    """Deal whole topics to the splits, in an order of their names' hashes; no paragraph twice."""
    order = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits: dict[str, list[str]] = {"test": [], "dev": [], "train": []}
    seen: set[str] = set()
    for name in order:
        paragraphs = [part for part in topics[name].split("\n\n") if part.strip() not in seen]
        seen.update(part.strip() for part in paragraphs)
        text = "\n\n".join(paragraphs).strip()
        if text:
            splits[_split(splits, text)].append(text)
    return {name: "\n\n".join(texts) + "\n" for name, texts in splits.items()}


def _split(splits: Mapping[str, list[str]], text: str) -> str:
    """The first held-out split that still wants text, else train."""
    if len(text) <= _LONGEST:
        for name, wanted in _HELD_OUT.items():
            if sum(map(len, splits[name])) < wanted:
                return name
    return "train"


def _topics() -> dict[str, str]:
    from attar.errors import UserError

    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "this Python comes without its documentation (pydoc_data), which the demo reads. Run "
            "`attar run` with a recipe and a text of your own"
        ) from None
    return topics
