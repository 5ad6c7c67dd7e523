"""What lies beside a program for phones: its task, its context, and where its codes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attar.errors import ModelError

DESCRIBED = "program.json"


def described(folder: Path) -> dict[str, Any]:
    """What is known of the program in a folder. Raises ModelError where that cannot be read."""
    try:
        return json.loads((folder / DESCRIBED).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / DESCRIBED} cannot be read ({error}). Export again") from None
