from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import attar

HEAVY = ("torch", "transformers", "numpy", "datasets", "accelerate", "matplotlib")


def imported(code: str) -> tuple[str, set[str]]:
    ending = "import sys; print('|'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True, check=True
    )
    return done.stdout, set(done.stderr.strip().split("|"))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--help"], "quantize"), (["list"], "quantize/gptq"), (["run", "--help"], "--set")],
)
def test_answers_without_heavy_imports(words: list[str], said: str) -> None:
    out, modules = imported(f"from attar.cli.main import main; assert main({words!r}) == 0")
    assert said in out
    assert not modules & set(HEAVY)
    # Typer reads its arguments with pydantic; Attar's own parts ask for none of it here.
    assert not {name for name in modules if name.startswith(("attar.core.recipe", "attar.engine"))}


def test_bare_import_is_lean() -> None:
    _, modules = imported("import attar; assert attar.__version__; dir(attar)")
    assert not modules & {*HEAVY, "pydantic", "typer", "yaml", "rich"}


def test_every_public_name_is_there() -> None:
    for name in attar.__all__:
        assert getattr(attar, name) is not None
        assert name in dir(attar)
        room = (Path(attar.__file__).parent / name).is_dir()
        assert not room or callable(getattr(attar, name)), "a room of this name would hide it"
    assert 12 <= len(attar.__all__) <= 18
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        attar.nothing_of_the_kind  # noqa: B018


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    assert attar.__version__ == project["version"]


def test_python_m_attar() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attar", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"attar {attar.__version__}\n"
