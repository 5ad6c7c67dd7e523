"""Programs for phones compute what PyTorch computes, and hold the very codes that the model has."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from attar.core.grid import Grid
from attar.core.scope import Scope
from attar.errors import ExportError
from attar.export import target
from attar.export.prepare import refuse, refuse_codes, round_again
from attar.layers import LowRank, QuantizedEmbedding, QuantizedLinear, TiedHead, swap
from attar.models.model import Model, weight_of
from attar.models.uneven import keep_groups, keep_neurons
from attar.ops.rounding import dequantize, fit_scales, quantize
from attar.runtimes import find
from export.answers import alike
from tiny_models import batch, press, tiny

PHONES = ("litert", "executorch")


def writer(name: str) -> Any:
    """The target, where its packages are there."""
    found = target.find(name)
    for module in found.modules:
        if find_spec(module) is None:
            pytest.skip(f"pip install 'attar[{found.extra}]'")
    return found


def language_model(family: str, **more: Any) -> Model:
    return tiny(family, hidden_size=64, head_dim=16, query_pre_attn_scalar=16, **more)


def shallow() -> Model:
    """One block: ExecuTorch takes seconds to lower each."""
    return language_model("llama", num_hidden_layers=1)


def in_eight_bits(_: Any, given: tuple[torch.Tensor]) -> torch.Tensor:
    """What both runtimes do with the inputs of a linear on a grid, token by token."""
    x = given[0].double()
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    return (((x / scale).round() + zero).clamp(-128, 127).sub(zero) * scale).float()


def agrees(name: str, model: Model, folder: Path, near: float = 2e-4) -> None:
    """Its answers are PyTorch's, and its codes the model's."""
    chosen = writer(name)
    assert not chosen.problems(model)
    chosen.write(model, folder)
    engine = find(chosen.engine)
    read, wanted_codes = engine.read_back(folder), target.stored(model)
    assert read.keys() == wanted_codes.keys()
    assert all(codes.difference(read[each]) is None for each, codes in wanted_codes.items())
    for module in model.module.modules():
        if isinstance(module, QuantizedLinear | TiedHead):
            module.register_forward_pre_hook(in_eight_bits)
    with engine.open(folder, threads=1) as opened:
        alike(opened, model, batch(model, length=20), near)


def uneven() -> Model:
    model = language_model("llama")
    keep_groups(model, 1, [1])
    keep_neurons(model, 2, list(range(48)))
    return model


def factored() -> Model:
    model = language_model("llama")
    for name, linear in model.linears(Scope(patterns=("*.q_proj",))).items():
        swap(model.module, name, LowRank(*weight_of(linear).shape, 8))
    return model


ENCODERS = [
    lambda: tiny("bert", "classification"),
    lambda: tiny("roberta", "masked-lm"),
    lambda: tiny("electra", "classification"),
    lambda: tiny("distilbert", "masked-lm"),
]
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
FLOATS = [*ENCODERS, *((lambda kind=kind: language_model(kind)) for kind in DECODERS), uneven]


@pytest.mark.parametrize("make", [*FLOATS, factored])
def test_floats_in_litert(make: Any, tmp_path: Path) -> None:
    agrees("litert", make(), tmp_path)


@pytest.mark.parametrize(
    "make", [lambda: tiny("roberta", "masked-lm", num_hidden_layers=1), shallow]
)
def test_floats_in_executorch(make: Any, tmp_path: Path) -> None:
    agrees("executorch", make(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [*FLOATS, factored])
def test_all_floats_in_executorch(make: Any, tmp_path: Path) -> None:
    agrees("executorch", make(), tmp_path)


GRIDS = [
    ("int8-channel", "int8-channel"),
    ("int4-channel", "int4-channel"),
    ("int3-channel", "int3-channel"),
]


@pytest.mark.parametrize(("grid", "table"), GRIDS)
def test_codes_in_litert(grid: str, table: str, tmp_path: Path) -> None:
    agrees("litert", press(language_model("llama"), grid, table), tmp_path, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "table"), GRIDS)
def test_codes_in_executorch(grid: str, table: str, tmp_path: Path) -> None:
    agrees("executorch", press(language_model("llama"), grid, table), tmp_path, 0.02)


def positive(model: Model, grid: str) -> Model:
    """Every linear in groups whose scales are positive."""
    parsed = Grid.parse(grid)
    for name, linear in model.linears(Scope.linears()).items():
        weight = weight_of(linear)
        codes = quantize(weight, fit_scales(weight, parsed, positive=True), parsed)
        swap(model.module, name, QuantizedLinear(*weight.shape, parsed, None).fill(codes))
    return model


def test_groups_in_executorch(tmp_path: Path) -> None:
    agrees("executorch", positive(shallow(), "int4-g32"), tmp_path, 0.02)


@pytest.mark.parametrize("name", PHONES)
def test_one_text_does_not_see_another(name: str, tmp_path: Path) -> None:
    if name == "executorch":
        pytest.importorskip("executorch")
    model = shallow()
    writer(name).write(model, tmp_path)
    prompts = [7, 30, 12, 45, 9], [3, 4, 5]
    with find(name).open(tmp_path, threads=1) as opened:
        assert opened.context == 64
        alone = [[token.id for token in opened.generate(each, 6)] for each in prompts]
        both = [opened.generate(each, 6) for each in prompts]
        mixed = list(zip(*both, strict=True))  # turn by turn
        assert len(list(opened.generate([5] * 60, 100))) == 4
    assert [[pair[index].id for pair in mixed] for index in range(2)] == alone
    for prompt, written in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(6):
            with torch.no_grad():
                ids = torch.cat((ids, model.module(ids).logits[:, -1:].argmax(-1)), 1)
        assert written == ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", PHONES)
@pytest.mark.parametrize("grid", ["int4-g32-zp", "nf4-g32", "int8-g32", "int4-g32-min"])
def test_what_is_not_held_is_refused_with_what_is(name: str, grid: str) -> None:
    model = press(language_model("llama"), grid)
    with pytest.raises(ExportError, match=f"{grid} .*It holds .*int8 with one scale a row"):
        refuse(model, target.find(name), allow_rounding=False)
    refuse(model, target.find(name), allow_rounding=True)


def test_groups_with_scales_below_zero_are_rounded_again_where_that_is_allowed() -> None:
    chosen = target.find("executorch")
    model = press(language_model("llama"), "int4-g32")
    refuse(model, chosen, allow_rounding=False)  # the grid is held; whether its scales are ...
    with pytest.raises(ExportError, match="not held with the scales that it has"):
        refuse_codes(model, chosen, allow_rounding=False)
    found = round_again(model, refuse_codes(model, chosen, allow_rounding=True), chosen)
    assert found
    assert all(0 < each["relative_error"] < 0.2 for each in found.values())
    assert refuse_codes(model, chosen, allow_rounding=False) == []


def test_scales_are_positive_where_that_is_asked_for() -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    grid = Grid.parse("int4-g32")
    either, above = fit_scales(weight, grid), fit_scales(weight, grid, positive=True)
    assert (either.scales < 0).any()
    assert (above.scales > 0).all()
    errors = [
        (dequantize(quantize(weight, fitted, grid), grid) - weight).square().mean()
        for fitted in (either, above)
    ]
    assert errors[0] < errors[1] < 1.3 * errors[0]


def test_more_than_one_file_holds_is_refused_before_weights_are_there() -> None:
    litert = target.find("litert")
    with torch.device("meta"):
        large = tiny("llama", hidden_size=4096, head_dim=16, vocab_size=150_000)
        [problem] = litert.problems(large)
        assert "2.5 GB there, floats in 32 bits, and one file holds 2.1" in problem
        table = QuantizedEmbedding(150_000, 4096, Grid.parse("int8-channel"), torch.float32, 1.0)
        swap(large.module, "model.embed_tokens", table)
        swap(large.module, "lm_head", TiedHead(table, "model.embed_tokens", None))
        assert litert.problems(large) == []
