"""The modules that Attar installs in place of a model's own, and the one way to do so."""

from attar.layers.cache import CACHED, Cached, CacheGrid
from attar.layers.exits import Exits, all_blocks
from attar.layers.floats import drop_floats, keep_floats
from attar.layers.heads import Heads
from attar.layers.int8 import DynamicLinear, RoundedLinear, StaticLinear
from attar.layers.lowrank import LowRank, LowRankResidual
from attar.layers.quantized import QuantizedEmbedding, QuantizedLinear
from attar.layers.resized import Resized
from attar.layers.shared import SharedBlocks
from attar.layers.swap import Swap, build, spec_of, swap
from attar.layers.tied import TiedHead

__all__ = [
    "CACHED",
    "CacheGrid",
    "Cached",
    "DynamicLinear",
    "Exits",
    "Heads",
    "LowRank",
    "LowRankResidual",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "Resized",
    "RoundedLinear",
    "SharedBlocks",
    "StaticLinear",
    "Swap",
    "TiedHead",
    "all_blocks",
    "build",
    "drop_floats",
    "keep_floats",
    "spec_of",
    "swap",
]
