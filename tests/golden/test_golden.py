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
    # What is rounded to zero is a few of all weights, so that a share of them counts, not of it.
    bounds = {"direction": {"abs": 0.05}, "zeros": {"rel": 5e-3, "abs": 1e-3}}
    return kept.keys() == found.keys() and all(
        found[name] == pytest.approx(value, **bounds.get(name, {"rel": 5e-3}))
        for name, value in kept.items()
    )
