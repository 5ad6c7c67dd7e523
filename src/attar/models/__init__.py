"""The only importer of transformers: loading, saving, and one view of every family."""

from attar.models.load import load, skeleton
from attar.models.model import Model
from attar.models.save import save
from attar.models.source import Files, resolve

__all__ = ["Files", "Model", "load", "resolve", "save", "skeleton"]
