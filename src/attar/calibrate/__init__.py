"""Visiting the blocks of a model in order, with the inputs that each one gets."""

from attar.calibrate.walk import BlockView, walk

__all__ = ["BlockView", "walk"]
