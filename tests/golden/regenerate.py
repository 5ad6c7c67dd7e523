"""Write golden.json anew, once a kind has raised its `version`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from attar.core import registry
from golden.fingerprint import GOLDEN, entry


def main() -> None:
    """Every kind once, on its tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            kind: entry(kind, Path(folder, kind.replace("/", "-"))) for kind in registry.kinds()
        }
    lines = [f"{json.dumps(kind)}: {json.dumps(value)}" for kind, value in found.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
