"""Models that see or hear: what turns files into their numbers, and how their inputs are shaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.nn import functional
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor

from attar.core.scope import ModuleFact
from attar.errors import ModelError
from attar.models.families import Family, family_of

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_STEEPEST = 100.0  # what CLIP lets cosines be multiplied with at most (arXiv 2103.00020, 2.5)


@dataclass(frozen=True)
class Pair:
    """What both towers make of a batch: vectors of length 1, [batch, width], in float32.

    scale: what their cosines are multiplied with to be logits.
    """

    seen: Tensor
    read: Tensor
    scale: Tensor


def load_processor(files: Any, family: Family) -> Any:
    """The processor of a model's files; of a model with a text tower it holds the tokenizer."""
    if not any((files.folder / name).exists() for name in PROCESSORS):
        raise ModelError(
            f"{files.folder} does not say how images or sounds become numbers; looked for "
            f"{', '.join(PROCESSORS)}. Copy the model's own there, or write one with "
            "save_pretrained of a processor of transformers"
        )
    auto: Any = AutoImageProcessor if family.media == "pixel_values" else AutoFeatureExtractor
    if family.towers:
        auto = AutoProcessor
    try:
        return auto.from_pretrained(files.folder)
    except Exception as error:
        first = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise ModelError(
            f"the processor in {files.folder} cannot be read ({first}). Put the model's own "
            f"{PROCESSORS[0]} beside the weights"
        ) from None


def reader_of(processor: Any) -> Any:
    """What turns images or sounds into numbers, of a processor that may hold a tokenizer too."""
    return getattr(processor, "image_processor", processor)


def settings_of(processor: Any) -> dict[str, Any]:
    """How images or sounds become numbers, by setting."""
    plain: dict[str, Any] = reader_of(processor).to_dict()
    names = ("image_processor_type", "feature_extractor_type", "processor_class")
    return {
        name: list(cast("Sequence[Any]", value)) if isinstance(value, tuple) else value
        for name, value in plain.items()
        if name not in names
    }


def input_shape(config: Any) -> tuple[int, ...]:
    """The shape of an image, [channels, height, width], or a sound, [frames, mel bins]."""
    if family_of(config.model_type).media == "input_values":
        return config.max_length, config.num_mel_bins
    seeing = getattr(config, "vision_config", config)
    size = seeing.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return seeing.num_channels, height, width


def check_inputs(processor: Any, config: Any, files: Any) -> None:
    """Raise ModelError where a processor makes inputs of another shape than the model takes."""
    wanted, reader = input_shape(config), reader_of(processor)
    if family_of(config.model_type).media == "pixel_values":
        made = reader(images=[np.zeros((64, 64, 3), np.uint8)], return_tensors="np")
        found = made["pixel_values"][0].shape
    else:
        rate: int = reader.sampling_rate
        made = reader([np.zeros(rate, np.float32)], sampling_rate=rate, return_tensors="np")
        found = made["input_values"][0].shape
    if tuple(found) != wanted:
        raise ModelError(
            f"the processor in {files.folder} makes inputs of the shape {list(found)}, and the "
            f"model takes {list(wanted)}. Set the size in {PROCESSORS[0]} as config.json says"
        )


def paired(model: Any, batch: Any) -> Pair:
    """The vectors of a batch's images and of their texts."""
    module, given = model.module, model.given(batch)
    pixels = given.pop(model.family.media)
    seen: Tensor = module.get_image_features(**{model.family.media: pixels}).pooler_output
    read: Tensor = module.get_text_features(**given).pooler_output
    scale: Tensor = module.logit_scale.float().exp().clamp_max(_STEEPEST)
    seen, read = (functional.normalize(vectors.float(), dim=-1) for vectors in (seen, read))
    return Pair(seen, read, scale)


def tower_facts(model: Any, kind_of: Any, shape_of: Any) -> list[ModuleFact]:
    """The modules of all towers; their blocks are numbered on from one tower to the next.

    No axes: the towers' widths differ, so nothing here narrows them.
    """
    starts: dict[str, int] = {}
    before = 0
    for tower in model.family.towers:
        starts[f"{tower}.{model.family.blocks}."] = before
        before += len(model.module.get_submodule(tower).get_submodule(model.family.blocks))
    facts: list[ModuleFact] = []
    for name, module in model.module.named_modules():
        kind = kind_of(module)
        if not kind:
            continue
        start = next((start for start in starts if name.startswith(start)), None)
        role, block = "norm" if kind == "norm" else "other", None
        if start is not None:
            index, _, inner = name[len(start) :].partition(".")
            block = starts[start] + int(index)
            role = model.role(inner, kind)
        elif name.endswith("token_embedding"):
            role = "embedding"
        facts.append(ModuleFact(name, role, kind == "linear", block, shape_of(module)))
    return facts
