"""Import this once, and `from_pretrained` of transformers loads Attar's artifacts."""

from attar.models.structure import register

register()
