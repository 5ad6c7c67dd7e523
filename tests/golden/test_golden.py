"""A kind that makes other weights than before must say so by its version, for keys hold that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attar.core import registry
from golden.fingerprint import COMMAND, entry, golden

KEPT = golden()


def test_no_kind_is_missing_or_gone():
    assert list(KEPT) == registry.kinds(), f"run `{COMMAND}`"


@pytest.mark.parametrize("kind", registry.kinds())
def test_the_same_version_makes_the_same_weights(kind: str, tmp_path: Path):
    kept, found = KEPT[kind], entry(kind, tmp_path)
    advice = f"{kind} is not what it was: raise its `version` and run `{COMMAND}`"
    assert (kept["version"], kept["settings"]) == (found["version"], found["settings"]), advice
    assert near(kept["before"], found["before"]), f"the tiny model changed; run `{COMMAND}`"
    assert near(kept["after"], found["after"]), f"{advice}: {kept['after']} {found['after']}"


def near(kept: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether two fingerprints are as near as two processors' arithmetic."""
    direction = pytest.approx(kept["direction"], abs=0.05)
    numbers = {name: value for name, value in kept.items() if name != "direction"}
    others = {name: value for name, value in found.items() if name != "direction"}
    return found["direction"] == direction and others == pytest.approx(numbers, rel=5e-3)
