"""Writing a model to a folder that `from_pretrained` reads back bit-equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from attar.models.masks import write_names
from attar.models.model import Model
from attar.models.structure import METHOD, structure


def save(model: Model, folder: Path) -> None:
    """Write weights (safetensors, shards of at most 4 GB), config and tokenizer.

    A model of plain modules reloads without Attar; one with modules of Attar's own says so in
    its config.
    """
    swaps = structure(model.module)
    quantization = {"quant_method": METHOD, "structure": swaps} if swaps else None
    write(model, folder, weights(model.module), quantization)


def write(
    model: Model, folder: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None
) -> None:
    """Write these tensors, the config with this quantization, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    module = model.module
    save_torch_state_dict(tensors, folder, max_shard_size="4GB")
    config = module.config
    config.architectures, config.dtype = [type(module).__name__], module.dtype
    write_names(module)
    if hasattr(config, "quantization_config"):  # of what was loaded, and may have changed since
        del config.quantization_config
    if quantization:
        config.quantization_config = quantization
    config.save_pretrained(folder)
    if quantization:
        del config.quantization_config
    if model.task == "causal-lm" and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)  # safetensors writes files that only their owner may read


def weights(module: Any) -> dict[str, Tensor]:
    """Every weight once: what is tied to another is left out, as transformers does."""
    state: dict[str, Tensor] = module.state_dict()
    ties: dict[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    shared = {
        name
        for name, source in ties.items()
        if name in state and source in state and state[name].data_ptr() == state[source].data_ptr()
    }
    return {name: value.contiguous() for name, value in state.items() if name not in shared}
