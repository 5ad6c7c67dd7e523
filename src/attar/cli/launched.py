"""Speaking as one: of the processes that `accelerate launch` starts, the first has the word."""

from __future__ import annotations

import os
import time

_PATIENCE = 60.0  # seconds; a launcher ends its other processes a moment after one has failed


def leads() -> bool:
    """Whether this is the only process, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def give_way() -> None:
    """Let the first process say what went wrong, and be ended by the launcher meanwhile.

    Where only this one failed, it comes back after a minute, to be heard itself.
    """
    if not leads():
        time.sleep(_PATIENCE)
