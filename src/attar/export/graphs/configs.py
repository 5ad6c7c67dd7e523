"""What readers look for beside a graph: the model's config, and how it generates."""

from __future__ import annotations

import copy
from pathlib import Path

from attar.models import Model


def write_configs(model: Model, folder: Path) -> None:
    """Write config.json without Attar's own part, and a language model's generation_config.json."""
    plain = copy.copy(model.config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain.architectures = [type(model.module).__name__]
    plain.save_pretrained(folder)
    if model.task == "causal-lm" and model.module.generation_config is not None:
        model.module.generation_config.save_pretrained(folder)
