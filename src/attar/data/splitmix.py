"""Random numbers by key and place, as whole arrays: SplitMix64.

Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". A generator's state
only counts, and each number is a hash of it: so any of them can be had without those before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attar.data.masking import Floats, Ids

Keys = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def bits(keys: Keys | np.uint64, places: Ids) -> Keys:
    """The numbers that the generators with these seeds give at these places, from 0 on.

    keys and places broadcast. The numbers are good seeds themselves.
    """
    state = keys + (places.astype(np.uint64) + np.uint64(1)) * _STEP
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state ^= state >> np.uint64(shift)
        state *= factor
    state ^= state >> np.uint64(31)
    return state


def uniform(keys: Keys | np.uint64, places: Ids) -> Floats:
    """The same as numbers from 0 to below 1, of 53 bits."""
    return (bits(keys, places) >> np.uint64(11)) * np.float64(2.0**-53)


def below(counts: Ids | int, draws: Floats) -> Ids:
    """Whole numbers below the counts, made from draws of `uniform`."""
    return (draws * counts).astype(np.int64)
