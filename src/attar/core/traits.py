"""Facts about the weights of a scope, and how a step changes them."""

from __future__ import annotations

from enum import StrEnum


class Trait(StrEnum):
    """A fact about one module's weights; a module may have several."""

    FLOAT = "float"
    QUANTIZED = "quantized"
    MASKED = "masked"
    LOWRANK = "lowrank"
    ADAPTER = "adapter"
    UNEVEN = "uneven"
    SHARED = "shared"
    CACHED = "cached"  # in an attention whose cache is on a grid
    HEADED = "headed"  # heads of further tasks go by it


FLOAT, QUANTIZED, MASKED, LOWRANK, ADAPTER, UNEVEN, SHARED, CACHED, HEADED = Trait
