"""Data: rows from files, packages and the hub; tokens from rows; batches from tokens.

`sources` and `readers` are light, so that a plan can read them; `tokenize` and `batches` import
torch and are imported by their own names.
"""

from attar.data.example import Dataset, Example
from attar.data.sources import check_together, files_of, fingerprint, load

__all__ = ["Dataset", "Example", "check_together", "files_of", "fingerprint", "load"]
