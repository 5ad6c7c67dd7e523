"""Calling the command line with something wrong, and what must hold whatever is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from attar.cli.main import main

CLASSES = ("bad", "good")


@dataclass(frozen=True)
class Row:
    """A row of wrong_inputs.md that differs from its neighbors in values alone."""

    number: str
    what: Any
    said: tuple[str, ...]
    more: Any = None


def row(number: str, what: Any, *said: str, more: Any = None, **marks: Any) -> Any:
    """A parameter named after the row's number."""
    return pytest.param(Row(number, what, said, more), id=number, **marks)


class Bench:
    """A folder to spoil things in, and a store that must stay as it is."""

    def __init__(
        self, folder: Path, home: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.home, self._models, self._capsys = folder, home, models, capsys
        self.out = ""

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the bench's folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, name: str = "llama") -> Path:
        """A tiny model that may be spoiled."""
        return Path(shutil.copytree(self._models[name], self.folder / f"my-{name}"))

    def sound(self, name: str = "llama") -> Path:
        """A tiny model to be left alone."""
        return self._models[name]

    def config(self, folder: Path, **values: Any) -> None:
        """Change keys of a model's config.json."""
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")

    def recipe(self, name: str = "recipe.yaml", **changes: Any) -> Path:
        """A recipe that runs in a moment but for the changes."""
        plain: dict[str, Any] = {
            "name": "small",
            "model": str(self.sound()),
            "data": str(self._models["texts"]),
            "precision": "float32",
            "steps": [{"quantize/rtn": {"grid": "int8-channel"}}],
            "measures": {"sequences": 4, "length": 16, "speed": False},
            **changes,
        }
        plain = {key: value for key, value in plain.items() if value is not None}
        return self.write(name, yaml.safe_dump(plain, sort_keys=False))

    def lines(self, *lines: str, name: str = "recipe.yaml") -> Path:
        """A recipe line by line, so that a test can name the lines; MODEL and TEXTS are there."""
        text = "\n".join(lines) + "\n"
        text = text.replace("MODEL", str(self.sound())).replace("TEXTS", str(self._models["texts"]))
        return self.write(name, text)

    def classifier(self, train: str | bytes, dev: str = "", test: str = "", **source: Any) -> Path:
        """A recipe that fine-tunes a tiny encoder on `text<TAB>label` rows."""
        self.write("rows/train.tsv", train)
        self.write("rows/dev.tsv", dev or "w1 w2\tbad\nw3 w4\tgood\n")
        self.write("rows/test.tsv", test or "w5 w6\tbad\nw7 w8\tgood\n")
        return self.classify(self.folder / "rows", **source)

    def classify(self, data: Path, **source: Any) -> Path:
        """A recipe that fine-tunes a tiny encoder on this data."""
        return self.recipe(
            model=str(self.sound("bert")),
            task="classification",
            data={"path": str(data), **source},
            steps=[{"adapt/full": {"steps": 1, "batch": 2, "length": 16}}],
        )

    def call(self, *words: object, home: Path | None = None) -> tuple[int, str]:
        """The exit code and what is on standard error."""
        self._capsys.readouterr()
        place = ("--home", home or self.home) if _takes_home(words) else ()
        code = main([str(word) for word in (*words, *place)])
        caught = self._capsys.readouterr()
        self.out = caught.out
        return code, caught.err

    def refused(
        self,
        *words: object,
        said: Sequence[str],
        code: int = 2,
        home: Path | None = None,
        grows: bool = False,
    ) -> str:
        """The message; it is one, it says all of `said`, and the store is as it was."""
        before = kept(home or self.home)
        found, err = self.call(*words, home=home)
        message = the_message(err)
        missing = [word for word in said if word not in message]
        assert not missing, f"{missing} not in: {message}"
        assert found == code, message
        after = kept(home or self.home)
        if grows:  # what was complete stays
            assert before.items() <= after.items()
        else:
            assert after == before
        assert not drafts(home or self.home)
        return message

    def warned(self, *words: object, said: Sequence[str]) -> str:
        """What is on standard error of a command that succeeds."""
        code, err = self.call(*words)
        assert code == 0, err
        assert "error:" not in err
        assert "Traceback" not in err
        flat = " ".join(err.split())
        assert not [word for word in said if word not in flat], err
        assert not drafts(self.home)
        return flat


def the_message(err: str) -> str:
    """The one message on standard error, after the lines of progress."""
    assert "Traceback" not in err
    assert err.count("error: ") == 1, err
    message = err[err.index("error: ") :]
    assert "bug of Attar" not in message, message
    return message


def kept(home: Path) -> dict[str, tuple[int, int]]:
    """Every file of the store's artifacts, with its size and time."""
    if not home.is_dir():
        return {}
    return {
        str(path.relative_to(home)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted((home / "store").rglob("*"))
        if path.is_file()
    }


def drafts(home: Path) -> list[Path]:
    """What is half-written: folders of drafts, and temporary files anywhere in the store."""
    if not home.is_dir():
        return []
    return [*home.glob("drafts/*"), *home.rglob("*.tmp")]


def _takes_home(words: Sequence[object]) -> bool:
    """Whether the command has a store, and none is named yet."""
    commands = ("run", "plan", "show", "report", "diff", "quantize", "distill", "prune", "augment")
    return words[0] in commands and "--home" not in words


Change = Callable[[dict[str, Any]], None]


def rewrite(folder: Path, change: Change) -> None:
    """Change the tensors of a model's file."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})
