"""The search for scales: the best of its powers, by an error worked out another way."""

from __future__ import annotations

import torch

from attar.core.grid import Grid
from attar.ops.awq import search
from attar.ops.gptq import nearest
from attar.ops.rounding import dequantize

GRID = Grid.parse("int3-g32")


def uneven(width: int = 64) -> torch.Tensor:
    """Inputs a few of whose channels are far larger than the others, [tokens, width]."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, width, generator=generator)
    inputs[:, ::16] *= 20
    return inputs


def error(weight: torch.Tensor, inputs: torch.Tensor, scales: torch.Tensor) -> float:
    """What the outputs lose, as a layer would compute them."""
    gram = inputs.t() @ inputs / len(inputs) / scales / scales[:, None]
    codes = nearest(weight * scales, GRID, gram.diagonal())
    rounded = dequantize(codes, GRID) / scales
    return float((inputs.double() @ (weight - rounded).double().t()).square().sum())


def test_scales_are_the_best_of_their_powers() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    inputs = uneven()
    found = search(weight, inputs.t() @ inputs / len(inputs), GRID)
    size = inputs.square().mean(0).sqrt()
    errors = [error(weight, inputs, size ** (step / 20)) for step in range(21)]
    assert error(weight, inputs, found) <= 1.001 * min(errors)
    assert error(weight, inputs, found) < 0.8 * errors[0]


def test_tied_channels_are_scaled_alike() -> None:
    weight, inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)), uneven()

    def tied(channels: torch.Tensor) -> torch.Tensor:
        return channels.view(2, 32).mean(0).repeat(2)

    found = search(weight, inputs.t() @ inputs / len(inputs), GRID, tied)
    assert torch.equal(found[:32], found[32:])


def test_dead_inputs_are_no_trouble() -> None:
    weight, gram = torch.randn(8, 64), torch.zeros(64, 64)
    assert torch.equal(search(weight, gram, GRID), torch.ones(64))
    gram[3, 3] = 1.0
    assert search(weight, gram, GRID).isfinite().all()
