from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attar.cli.main import main
from attar.models import save
from tiny_models import texts, tiny
from wrong_inputs.harness import Bench


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models, and one of texts, by name."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sound")
    save(tiny("llama"), root / "llama")
    save(tiny("bert"), root / "bert")
    save(tiny("llama", vocab_size=110), root / "wide")
    (root / "texts").mkdir()
    for seed, name in enumerate(("train", "dev", "test")):
        (root / "texts" / f"{name}.txt").write_text("\n".join(texts(20, 20, seed)), "utf-8")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def home(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that already holds something: the run `sound`."""
    folder = tmp_path_factory.mktemp("home")
    path = folder / "sound.yaml"
    path.write_text(
        f"name: sound\nmodel: {models['llama']}\ndata: {models['texts']}\nprecision: float32\n"
        "steps: [{quantize/rtn: {grid: int4-g32, id: rounded}}]\n"
        "measures: {sequences: 4, length: 16, speed: false}\nguard: {perplexity: 1000}\n",
        "utf-8",
    )
    assert main(["run", str(path), "--home", str(folder / "kept")]) == 0
    return folder / "kept"


@pytest.fixture
def bench(
    models: dict[str, Path],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTAR_HOME", raising=False)
    monkeypatch.setenv("COLUMNS", "1000")  # nothing folds
    return Bench(tmp_path, home, models, capsys)
