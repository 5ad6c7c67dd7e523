from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from attar.cli.main import main
from attar.models import save
from cli.calling import Attar, Outcome, plain_recipe
from tiny_models import texts, tiny


@pytest.fixture
def attar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Attar:
    """Runs the command line in an empty folder, wide enough that nothing folds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTAR_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "240")

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        caught = capsys.readouterr()
        return Outcome(code, caught.out, caught.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random decoder's folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save(tiny("llama"), folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt, dev.txt and test.txt."""
    folder = tmp_path_factory.mktemp("texts")
    for seed, name in enumerate(("train", "dev", "test")):
        (folder / f"{name}.txt").write_text("\n".join(texts(20, 20, seed)), "utf-8")
    return folder


@pytest.fixture(scope="session")
def recipe(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file that runs in a moment."""
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(yaml.safe_dump(plain_recipe(model, data)), "utf-8")
    return path


@pytest.fixture(scope="session")
def ran(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which that recipe was run."""
    home = tmp_path_factory.mktemp("home")
    assert main(["run", str(recipe), "--home", str(home)]) == 0
    return home
