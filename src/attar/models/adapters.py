"""Adapters of PEFT in a model: put in, merged, written, and told by the headers of files.

A model that keeps its adapter is a whole model with PEFT's two files beside its weights, so that
PEFT reads the adapter, and `from_pretrained` of transformers the model with it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attar.errors import MissingPackage, ModelError
from attar.layers import swap

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = "default"  # of the one adapter, as PEFT and transformers call it
_INNER = ".base_layer"
_PREFIX = "base_model.model."  # before every name in PEFT's files


@dataclass(frozen=True)
class Low:
    """An update of low rank: alpha / rank times the product of two thin matrices.

    decomposed: the weight's columns keep their direction and size apart (DoRA).
    """

    rank: int
    alpha: float
    dropout: float
    decomposed: bool = False


def peft() -> Any:
    """PEFT. Raises MissingPackage where it is not installed."""
    if find_spec("peft") is None:
        raise MissingPackage("a model with few trained parameters", "pip install 'attar[peft]'")
    import peft

    return peft


def is_adapted(module: nn.Module) -> bool:
    """Whether a linear is one of PEFT's, around the model's own."""
    return hasattr(module, "base_layer")


def numbers_of(module: nn.Module) -> list[nn.Parameter]:
    """What there is to train of a model's adapters."""
    return [value for name, value in module.named_parameters() if ".lora_" in name]


def own_name(name: str) -> str:
    """The name of a weight or module as it is without adapters."""
    return name.replace(_INNER, "")


def put(module: Any, names: Sequence[str], low: Low) -> None:
    """Put a fresh adapter, which changes nothing yet, beside each of these linears."""
    turned = {isinstance(module.get_submodule(name), Conv1D) for name in names}
    config = peft().LoraConfig(
        r=low.rank,
        lora_alpha=low.alpha,
        lora_dropout=low.dropout,
        use_dora=low.decomposed,
        target_modules=list(names),
        fan_in_fan_out=turned == {True},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft().inject_adapter_in_model(config, module, _NAME)


def take_out(module: Any, merged: bool = True) -> None:
    """Leave the model's own linears: every adapter put into the weight beside it, or left out."""
    for name, part in list(_adapted(module)):
        if merged:
            part.merge()
        swap(module, name, part.base_layer)
    del module.peft_config


def write(module: Any, folder: Path) -> None:
    """Write the adapter as PEFT does, where there is one; else leave none of an earlier model."""
    if not any(True for _ in _adapted(module)):
        for name in (CONFIG, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        return
    plain = {**module.peft_config[_NAME].to_dict(), "inference_mode": True}
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in plain.items()}
    (folder / CONFIG).write_text(json.dumps(plain, indent=1, sort_keys=True), "utf-8")
    state = peft().get_peft_model_state_dict(module, adapter_name=_NAME)
    save_file(
        {_PREFIX + name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS
    )


def read(module: Any, folder: Path) -> None:
    """Fill the adapter that a folder's files have put into a model, with all of its numbers.

    transformers 5.23 reads LoRA's, and passes over the sizes that DoRA learns.
    """
    state = {
        name.removeprefix(_PREFIX): value for name, value in load_file(folder / WEIGHTS).items()
    }
    if len(state) != len(numbers_of(module)):
        raise ModelError(
            f"{WEIGHTS} in {folder} holds {len(state)} tensors, and the adapter that {CONFIG} "
            f"describes has {len(numbers_of(module))}. Write it again with PEFT"
        )
    peft().set_peft_model_state_dict(module, state, adapter_name=_NAME)


def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights under their own names, adapters left out."""
    return {own_name(name): value for name, value in state.items() if ".lora_" not in name}


def adapted_in(folder: Path) -> list[str]:
    """The linears that a folder's adapter is for, by the header of its weights.

    Raises ModelError where it is an adapter that Attar does not read.
    """
    if not (folder / CONFIG).exists():
        return []
    peft()
    kind = _config(folder).get("peft_type")
    if kind != "LORA" or not (folder / WEIGHTS).exists():
        raise ModelError(
            f"{folder} holds an adapter that is not read here: {CONFIG} names {kind}, and LoRA and "
            f"DoRA in {WEIGHTS} are read. Merge it with PEFT first (merge_and_unload)"
        )
    with safe_open(folder / WEIGHTS, "pt") as file:
        keys = list(file.keys())
    return sorted({key.removeprefix(_PREFIX).partition(".lora_")[0] for key in keys})


def lacking(module: Any, folder: Path) -> list[str]:
    """The weights, but for those of adapters, that a folder's files do not hold.

    Of a model with an adapter transformers tells what is missing of the adapter alone. Files may
    leave out the prefix of the base model, and call a norm's weights by their older names.
    """

    def plain(name: str) -> str:
        name = name.removeprefix(f"{module.base_model_prefix}.")
        return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))

    there: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            there |= {plain(key) for key in file.keys()}  # noqa: SIM118
    state = without(module.state_dict())
    held = {value.data_ptr() for name, value in state.items() if plain(name) in there}
    return [n for n, v in state.items() if plain(n) not in there and v.data_ptr() not in held]


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, part) for name, part in module.named_modules() if is_adapted(part))
