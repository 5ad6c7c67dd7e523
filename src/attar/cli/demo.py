"""attar demo: a real model pressed on this machine, with nothing to download but packages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from attar.cli.launched import leads
from attar.cli.options import HOME, Device, Home, Language, Set

if TYPE_CHECKING:
    from attar.core.report import Report
    from attar.export.record import Exported
    from attar.runtimes.runtime import Decoder

RECIPE = Path(__file__).with_name("demo.yaml")
_HELD_OUT = {"test": 40_000, "dev": 30_000}  # characters, at least
PROMPT, LONGEST = "What is Python?", 60
_LONGEST = 15_000  # of a held-out topic, so that several make a split


def demo(
    sets: Set = None, home: Home = HOME, language: Language = "en", device: Device = "cpu"
) -> None:
    """Press SmolLM2-135M: shallower, healed, 4 bits; measured, exported, and answering."""
    from attar.cli.execute import execute
    from attar.core.recipe_file import read
    from attar.engine.store import Store

    store = Store(Path(home))
    store.prepare()
    folder = write_data(store.home / "demo")
    recipe = read(RECIPE, [f"data={json.dumps(str(folder))}", *(sets or ())])
    finished = execute(recipe, home, language, device)
    if not leads():
        return
    ship(finished.report, home)
    typer.echo(
        f"The recipe is {store.home / 'runs' / recipe.name / 'lock.yaml'}: copy it, put your own "
        "model and data in, and `attar run` it",
        err=True,
    )


def ship(report: Report, home: str) -> None:
    """Export what was pressed for every engine here, time each, and let the fastest answer."""
    from attar.cli.export import show_exports
    from attar.errors import UserError
    from attar.export.everything import export_all, rate

    try:
        found = export_all(report.name, None, home, say=lambda text: typer.echo(text, err=True))
    except UserError as error:
        typer.echo(f"Nothing was exported: {error}", err=True)
        return
    show_exports(found.exports)
    fastest = found.fastest
    if fastest is None:
        typer.echo(
            "No engine was timed. If none is installed: pip install 'attar[llama-cpp]'", err=True
        )
        return
    before = report.stages[0].figures.get("tokens_per_second")
    speed = rate(fastest) or 0.0
    beside = f", {speed / before.value:.1f} times the original's in PyTorch" if before else ""
    told = f"{fastest.target} in {fastest.engine}, {speed:.0f} tokens/s{beside}"
    typer.echo(f"Fastest here: {told}: {fastest.folder}")
    typer.echo(f"Asked: {PROMPT}\nIt says: {answer(fastest)}")


def answer(exported: Exported) -> str:
    """What an exported model writes after the demo's prompt."""
    from attar.models import Files
    from attar.models.load import load_tokenizer
    from attar.runtimes import find

    tokenizer = load_tokenizer(Files(exported.folder))
    chat = [{"role": "user", "content": PROMPT}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    with find(exported.engine).open(exported.folder) as opened:
        written = cast("Decoder", opened).generate(prompt, LONGEST, stop=[tokenizer.eos_token_id])
        ids = [token.id for token in written]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


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
