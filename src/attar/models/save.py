"""Writing a model to a folder that `from_pretrained` reads back bit-equal."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict

from attar.models.model import Model
from attar.models.structure import METHOD, structure


def save(model: Model, folder: Path) -> None:
    """Write weights (safetensors, shards of at most 4 GB), config and tokenizer.

    A model of plain modules reloads without Attar; one with modules of Attar's own says so in
    its config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = model.module
    tied = list(getattr(module, "all_tied_weights_keys", None) or {})
    state = module.state_dict()
    kept = {name: tensor.contiguous() for name, tensor in state.items() if name not in tied}
    save_torch_state_dict(kept, folder, max_shard_size="4GB")
    config = module.config
    config.architectures = [type(module).__name__]
    swaps = structure(module)
    if swaps:
        config.quantization_config = {"quant_method": METHOD, "structure": swaps}
    config.save_pretrained(folder)
    if swaps:
        del config.quantization_config
    if model.task == "causal-lm" and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
