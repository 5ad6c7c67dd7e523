"""Logs: one JSON object a line on standard error. Prompts, answers and keys are never in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("attar.serve")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def set_up() -> None:
    """Write the server's and uvicorn's records to standard error; called by the command alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("attar.serve", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    LOGGER.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def log(
    event: str, level: int = logging.INFO, error: BaseException | None = None, /, **facts: Any
) -> None:
    """One record, with facts as keys of its own."""
    LOGGER.log(level, event, exc_info=error, extra={"facts": facts})


def since(start: float) -> float:
    """Seconds since then, by the clock that only goes forward."""
    return round(time.perf_counter() - start, 4)
