"""Runs that are cut off, by a kill or a full disk, end as undisturbed ones do."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attar.core.keys import hash_file
from attar.engine.run import run

pytestmark = pytest.mark.slow
MEGABYTE = 1 << 20


def command(recipe: Path, home: Path) -> list[str]:
    return [sys.executable, "-m", "attar", "run", str(recipe), "--home", str(home)]


def weights(home: Path) -> dict[str, dict[str, str]]:
    """Hashes of every artifact's files, but for the report, which tells of one run's seconds."""
    return {
        folder.name: {
            path.name: hash_file(path)
            for path in sorted(folder.iterdir())
            if path.name != "report.json"
        }
        for folder in sorted((home / "store").glob("*"))
    }


@pytest.fixture
def longer(plain: dict[str, Any]) -> dict[str, Any]:
    """The recipe with enough training steps for a kill to fall among them."""
    plain["steps"][1]["distill/logits"]["steps"] = 40
    return plain


@pytest.fixture
def recipe(longer: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(longer), "utf-8")
    return path


@pytest.mark.parametrize("phase", ["store", "scratch", "drafts", "measures"])
def test_killed_in_each_phase_it_ends_bit_equal(
    longer: dict[str, Any], recipe: Path, tmp_path: Path, phase: str
) -> None:
    """`kill -9` as soon as something new appears in a folder of the home."""
    run(longer, home=tmp_path / "calm")
    killed = tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen(command(recipe, killed))
        seen = {p.name for p in (killed / phase).glob("*")}
        while process.poll() is None and {p.name for p in (killed / phase).glob("*")} <= seen:
            time.sleep(0.002)
        process.kill()
        process.wait()
    run(longer, home=killed)
    assert weights(killed) == weights(tmp_path / "calm")


def test_killed_at_ten_random_moments_it_ends_bit_equal(
    longer: dict[str, Any], recipe: Path, tmp_path: Path
) -> None:
    """The moments are spread over an undisturbed run, from its first import to its end."""
    started = time.monotonic()
    subprocess.run(command(recipe, tmp_path / "calm"), check=True)
    whole = time.monotonic() - started
    undisturbed = weights(tmp_path / "calm")
    cut_off = 0
    for number in range(10):
        killed = tmp_path / f"killed-{number}"
        process = subprocess.Popen(command(recipe, killed))
        time.sleep(whole * random.uniform(number, number + 1) / 10)
        cut_off += process.poll() is None
        process.kill()
        process.wait()
        run(longer, home=killed)
        assert weights(killed) == undisturbed
    assert cut_off >= 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory, of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTE}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_the_disk_full_at_any_write_it_goes_on_once_there_is_room(
    longer: dict[str, Any], recipe: Path, tmp_path: Path, small_disk: Path
) -> None:
    """The disk grows in twelve steps to what is needed; each try ends in one clear line."""
    run(longer, home=tmp_path / "calm")
    undisturbed = weights(tmp_path / "calm")
    need = sum(path.stat().st_size for path in (tmp_path / "calm").rglob("*") if path.is_file())
    home, refused = small_disk / "home", 0
    for step in range(1, 13):
        resize(small_disk, need * step // 12)
        done = subprocess.run(command(recipe, home), capture_output=True, text=True)
        if done.returncode == 0:
            break
        refused += 1
        assert done.returncode == 1, done.stderr
        assert "the disk is full" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert weights(home).items() <= undisturbed.items()
    assert refused >= 6
    resize(small_disk, 4 * need)
    subprocess.run(command(recipe, home), check=True)
    assert weights(home) == undisturbed
