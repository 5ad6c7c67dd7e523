"""Visiting the blocks of a model in order, with the inputs that each one gets."""

from attar.calibrate.view import BlockView
from attar.calibrate.walk import walk

__all__ = ["BlockView", "walk"]
