"""What was changed in the plain transformers skeleton, derived from the module itself.

The list goes into config.json as a quantization config of the method `attar`, so that
`from_pretrained` replays it before the weights load.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from attar.errors import ModelError
from attar.layers import build, spec_of, swap
from attar.models import prompts  # noqa: F401  (files may name them)
from attar.models.adapters import own_name

METHOD = "attar"


def structure(module: nn.Module) -> list[dict[str, Any]]:
    """The swaps that turn the plain skeleton into this module, parents first."""
    swaps: list[dict[str, Any]] = []
    for name, child in module.named_modules():
        spec = spec_of(child)
        if spec is not None:
            swaps.append({"name": own_name(name), **spec})
    return swaps


def replay(module: nn.Module, swaps: list[dict[str, Any]]) -> None:
    """Install the modules that `structure` wrote down."""
    for item in swaps:
        spec = dict(item)
        name = spec.pop("name")
        try:
            new = build(spec, module)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json describes {name} as {spec.get('type')}, which this Attar cannot "
                f"build ({error}). Upgrade Attar, or make the model again"
            ) from None
        swap(module, name, new)
    untie(module)


def listed(config: Any) -> list[dict[str, Any]]:
    """What a quantization config lists, plain or as transformers has it.

    Raises ModelError where it is another tool's.
    """
    plain: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    if "structure" not in plain:
        raise ModelError(
            f"the weights are quantized by another tool already ({plain.get('quant_method')}), "
            "and what Attar does begins with its own artifacts or with floats. Name the model that "
            "this one was made of"
        )
    return plain["structure"]


def untie(module: Any) -> None:
    """Make transformers forget ties between weights that are no longer there."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    ties = getattr(module, "all_tied_weights_keys", None)
    if ties:
        kept = {t: s for t, s in ties.items() if t in names and s in names}
        module.all_tied_weights_keys = kept
        if len(kept) < len(ties):
            module._tied_weights_keys = kept


class AttarConfig(QuantizationConfigMixin):
    """The structure, as transformers keeps it in config.json."""

    def __init__(self, structure: list[dict[str, Any]], **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.structure = structure

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "structure": self.structure}


class AttarQuantizer(HfQuantizer):
    """Replays the structure on the empty skeleton; the weights then load strictly."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        replay(model, config.structure)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Make `from_pretrained` of transformers know Attar's artifacts. Safe to call again."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(AttarConfig)
        register_quantizer(METHOD)(AttarQuantizer)
