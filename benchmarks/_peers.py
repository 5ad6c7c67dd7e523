"""What peers do with the same tokens; each runs under an interpreter of its own.

A runner is given the folder of the original and the calibration's ids, loads the model, and
returns it changed, with the seconds that the method itself took.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Ids = list[list[int]]
Runner = Callable[[str, Ids], tuple[Any, float]]

IGNORED = ["lm_head", "classifier", "re:.*pooler.*"]  # what is outside of blocks


def llm_compressor(modifier: Callable[[], Any], block: str) -> Runner:
    """llm-compressor's `oneshot` with a modifier, over blocks of a class."""

    def run(folder: str, ids: Ids) -> tuple[Any, float]:
        import torch
        from datasets import Dataset
        from llmcompressor import oneshot

        model, tokenizer = loaded(folder)
        if not torch.accelerator.is_available():  # AWQ pins what it caches, which needs one
            torch.Tensor.pin_memory = lambda self: self
        data = Dataset.from_dict(
            {"input_ids": ids, "attention_mask": [[1] * len(ids[0])] * len(ids)}
        )
        started = time.monotonic()
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=data,
            recipe=modifier(),
            max_seq_length=len(ids[0]),
            num_calibration_samples=len(ids),
            sequential_targets=[block],
        )
        seconds = time.monotonic() - started
        _write_rounded(model)
        return model, seconds

    return run


def _write_rounded(model: Any) -> None:
    """Put into every linear what its scheme makes of it: some modifiers leave that to the run."""
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    for part in model.modules():
        scheme = getattr(part, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            part.weight.data = forward_quantize(part, part.weight.data, "weight", scheme.weights)


def auto_round(bits: int, group: int, iterations: int) -> Runner:
    """auto-round's SignRound, symmetric, otherwise with its own defaults."""

    def run(folder: str, ids: Ids) -> tuple[Any, float]:
        import torch
        from auto_round import AutoRound

        model, tokenizer = loaded(folder)
        started = time.monotonic()
        rounding = AutoRound(
            model,
            tokenizer=tokenizer,
            scheme=f"W{bits}A16",
            bits=bits,
            group_size=group,
            sym=True,
            iters=iterations,
            nsamples=len(ids),
            seqlen=len(ids[0]),
            dataset=[torch.tensor([row]) for row in ids],
            device_map="cpu",
        )
        model, _ = rounding.quantize()
        return model, time.monotonic() - started

    return run


def gptqmodel(bits: int, group: int) -> Runner:
    """GPTQModel's GPTQ, symmetric, otherwise with its own defaults.

    It reads the weights as it goes, so that its seconds hold their loading.
    """

    def run(folder: str, ids: Ids) -> tuple[Any, float]:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # one of two processors, else
        import torch
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
        from gptqmodel.nn_modules.qlinear import BaseQuantLinear

        config = QuantizeConfig(
            bits=bits,
            group_size=group,
            sym=True,
            device="cpu",
            format="gptq_v2",
            offload_to_disk=False,
        )
        model = GPTQModel.load(folder, config, backend=BACKEND.TORCH, dtype=torch.float32)
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
        started = time.monotonic()
        model.quantize(rows, batch_size=8)
        seconds = time.monotonic() - started
        for name, part in list(model.model.named_modules()):
            if isinstance(part, BaseQuantLinear):
                linear = torch.nn.Linear(part.in_features, part.out_features, bias=False)
                linear.weight.data = part.dequantize_weight().T.float().contiguous()
                model.model.set_submodule(name, linear)
        return model.model, seconds

    return run


def hqq(bits: int, group: int) -> Runner:
    """The package of HQQ's authors, groups along the inputs, otherwise with its own defaults."""

    def run(folder: str, _: Ids) -> tuple[Any, float]:
        import torch
        from hqq.core.quantize import Quantizer

        model, _ = loaded(folder)
        plain = {"nbits": bits, "group_size": group, "axis": 1, "device": "cpu", "bitpack": False}
        started = time.monotonic()
        for name, part in model.named_modules():
            if isinstance(part, torch.nn.Linear) and ".layer" in name:  # those of blocks
                codes, meta = Quantizer.quantize(part.weight.data, **plain)
                floats = {**meta, "compute_dtype": torch.float32}
                part.weight.data = Quantizer.dequantize(codes, floats)
        return model, time.monotonic() - started

    return run


def loaded(folder: str) -> tuple[Any, Any]:
    """The model of transformers in a folder, and its tokenizer."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    encoder = "ForSequenceClassification" in Path(folder, "config.json").read_text()
    auto = AutoModelForSequenceClassification if encoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def rounding_modifier(scheme: str) -> Any:
    """llm-compressor's rounding to nearest."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(config_groups={"group_0": _scheme(scheme)}, ignore=IGNORED)


def gptq_modifier(scheme: str) -> Any:
    """llm-compressor's GPTQ with the defaults of its scheme."""
    from llmcompressor.modifiers.quantization import GPTQModifier

    return GPTQModifier(config_groups={"group_0": _scheme(scheme)}, ignore=IGNORED)


# Neither AWQ nor SmoothQuant of llm-compressor has mappings for BERT. What may be scaled there
# without another result is an attention's values, for its output.
_VALUES, _OUTPUT = "re:.*attention.self.value$", "re:.*attention.output.dense$"


def awq_modifier(scheme: str, block: str) -> Any:
    """llm-compressor's AWQ with its own mappings for Llama."""
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    mappings = [AWQMapping(_VALUES, [_OUTPUT])] if block == "BertLayer" else None
    return [AWQModifier(mappings=mappings), rounding_modifier(scheme)]


def smoothquant_modifier(strength: float, rounded: str, block: str) -> Any:
    """llm-compressor's SmoothQuant with its own mappings for Llama, then `rtn` or `gptq`."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    mappings = [([_OUTPUT], _VALUES)] if block == "BertLayer" else None
    rounding = {"rtn": rounding_modifier, "gptq": gptq_modifier}[rounded]
    smoothing = SmoothQuantModifier(smoothing_strength=strength, mappings=mappings)
    return [smoothing, rounding("dynamic")]


def kv_modifier(numbers: str) -> Any:
    """llm-compressor's rounding of keys and values, on one scale for each of a block's."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    grid = {"num_bits": 8, "type": numbers, "strategy": "tensor", "symmetric": True}
    return QuantizationModifier(kv_cache_scheme={**grid, "dynamic": False}, ignore=IGNORED)


def _scheme(name: str) -> Any:
    """What is rounded to what: a grid by Attar's name for it, or `dynamic` and `static` W8A8."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
        preset_name_to_scheme,
    )

    presets = {"dynamic": "W8A8", "mxfp4": "MXFP4A16"}
    if name in presets:
        return preset_name_to_scheme(presets[name], ["Linear"])
    weights: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel"}
    inputs = None
    if name == "static":
        inputs = QuantizationArgs(num_bits=8, type="int", symmetric=False, strategy="tensor")
    elif name == "fp8-e4m3":
        weights |= {"type": "float"}
    else:
        weights |= {"num_bits": int(name[3]), "strategy": "group", "group_size": 64}
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(symmetric=True, **weights),
        input_activations=inputs,
    )


def sparse_modifier(method: str, structure: str, block: str) -> Any:
    """llm-compressor's pruning; its targets are blocks (with `Linear` it prunes nothing)."""
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    kind = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    return kind(
        sparsity=0.5,
        mask_structure=structure,
        targets=[block],
        ignore=IGNORED,
    )
