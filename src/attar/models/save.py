"""Writing a model to a folder that `from_pretrained` reads back bit-equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from attar.models import adapters
from attar.models.masks import write_names
from attar.models.model import Model
from attar.models.structure import METHOD, structure


def save(model: Model, folder: Path) -> None:
    """Write weights (safetensors, shards of at most 4 GB), config and tokenizer.

    A model of plain modules reloads without Attar; one with modules of Attar's own says so in
    its config. An adapter lies beside the weights, in PEFT's own files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = model.module
    save_torch_state_dict(_weights(module), folder, max_shard_size="4GB")
    adapters.write(module, folder)
    config = module.config
    config.architectures, config.dtype = [type(module).__name__], module.dtype
    write_names(module)
    swaps = structure(module)
    if hasattr(config, "quantization_config"):  # of what was loaded, and may have changed since
        del config.quantization_config
    if swaps:
        config.quantization_config = {"quant_method": METHOD, "structure": swaps}
    config.save_pretrained(folder)
    if swaps:
        del config.quantization_config
    if model.task == "causal-lm" and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)  # safetensors writes files that only their owner may read


def _weights(module: Any) -> dict[str, Tensor]:
    """Every weight once: what is tied to another is left out, as transformers does."""
    state: dict[str, Tensor] = adapters.without(module.state_dict())
    ties: dict[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    shared = {
        name
        for name, source in ties.items()
        if name in state and source in state and state[name].data_ptr() == state[source].data_ptr()
    }
    return {name: value.contiguous() for name, value in state.items() if name not in shared}
