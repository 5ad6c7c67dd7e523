"""One file a target: an artifact's codes copied into the container that an engine reads.

The package itself can be called: `attar.export(ref, target)` is `export.export.export`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """Python binds `attar.export` to this package once any file of it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from attar.export.export import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
