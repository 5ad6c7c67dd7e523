"""What to say of an error that nobody foresaw."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from pathlib import Path

from attar.cli.options import HOME, HOME_VARIABLE


def report_bug(error: Exception, given: list[str], debug: bool) -> str:
    """Keep the full traceback in a file under the home folder, and say where it is."""
    first = str(error).strip().partition("\n")[0][:200]
    name = type(error).__name__
    what = f"this is a bug of Attar, and not of what you gave it: {name}{': ' * bool(first)}{first}"
    path = _keep(error, given)
    where = f"The full traceback is in {path}" if path else "The traceback could not be written"
    hint = "" if debug else "; with --debug it is shown here"
    return f"{what}. {where}{hint}"


def _keep(error: Exception, given: list[str]) -> Path | None:
    text = "".join(traceback.format_exception(error))
    name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (_home(given) / "errors", Path(tempfile.gettempdir())):
        path = (folder / name).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(f"attar {' '.join(given)}\n\n{_versions()}\n\n{text}", "utf-8")
        except OSError:
            continue
        return path
    return None


def _home(given: list[str]) -> Path:
    """The home folder that the command names; it may have failed before it was parsed."""
    for index, word in enumerate(given):
        if word.startswith("--home="):
            return Path(word.partition("=")[2])
        if word == "--home" and index + 1 < len(given):
            return Path(given[index + 1])
    return Path(os.environ.get(HOME_VARIABLE) or HOME)


def _versions() -> str:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from attar import __version__

    found = [f"attar {__version__}", f"python {platform.python_version()}"]
    for package in ("torch", "transformers", "pydantic"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return ", ".join(found)
