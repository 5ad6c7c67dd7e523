"""SignRound against brute force and float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from attar.core.grid import Grid
from attar.ops.gptq import nearest, solve, wanted_levels
from attar.ops.levels import snap
from attar.ops.rounding import Codes, Scales, decode, dequantize, spread, weights_of
from attar.ops.signround import SignDescent, nudged

SMALL = [f"int{bits}-g64{offset}" for bits in (4, 2) for offset in ("", "-zp", "-min")]
GRIDS = ("int2-g32", "int4-g64", "int3-g64-zp", "int2-g32-min", "int8-channel", "nf4", "mxfp4")


def problem(seed: int, width: int = 6, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Weights, and the gram of inputs with something in common."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    common = torch.randn(64, 1, generator=generator) * torch.randn(1, width, generator=generator)
    inputs = torch.randn(64, width, generator=generator) + common
    return weight, inputs.t() @ inputs / 64


def fitted(codes: Codes) -> Scales:
    return Scales(codes.scales, codes.zeros, codes.minima)


def own_levels(weight: Tensor, codes: Codes, grid: Grid) -> Tensor:
    """What the paper rounds: weights over their scales."""
    group, width = grid.group_for(weight.shape[1]), weight.shape[1]
    minima = 0.0 if codes.minima is None else spread(codes.minima, group, width)
    return (weight - minima) / spread(codes.scales, group, width)


def error(rest: Tensor, gram: Tensor) -> Tensor:
    """tr(E G ET)."""
    return ((rest @ gram) * rest).sum()


def descended(
    weight: Tensor, gram: Tensor, grid: Grid, codes: Codes, wanted: Tensor
) -> Iterator[float]:
    """The error at the start and after every step of the descent, as quantize/autoround goes."""
    nudge, steps = nn.Parameter(torch.zeros_like(wanted)), 50
    optimizer = SignDescent([{"params": [nudge], "lr": 2.0 / steps}])
    falling = CosineAnnealingLR(optimizer, steps)
    for _ in range(steps + 1):
        levels = nudged(wanted, nudge, grid, codes.zeros)
        loss = error(weight - weights_of(levels, fitted(codes), grid, torch.float32), gram)
        yield float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


def least(weight: Tensor, gram: Tensor, grid: Grid, codes: Codes) -> float:
    """The least error there is on given scales: all codes of three weights beside all of three."""
    every = torch.arange(grid.low, grid.high + 1, dtype=torch.int16)
    rows = every[:, None].expand(-1, weight.shape[1])
    alike = [None if x is None else x.expand(len(every), -1) for x in (codes.zeros, codes.minima)]
    made = dequantize(Codes(rows, codes.scales.expand(len(every), -1), *alike), grid)
    rest, exact = (weight - made).double().t(), gram.double()
    one, other = (torch.cartesian_prod(*half) for half in rest.split(3))
    second = ((other @ exact[3:, 3:]) * other).sum(-1)
    found = torch.inf
    for part in one.split(256):
        first = ((part @ exact[:3, :3]) * part).sum(-1, keepdim=True)
        both = torch.addmm(second, part @ exact[:3, 3:], other.t(), alpha=2)
        found = min(found, float(both.add_(first).min()))
    return found


@pytest.mark.parametrize("start", ["nearest", "gptq"])
@pytest.mark.parametrize("name", SMALL)
def test_the_descent_passes_by_the_best_codes_that_there_are(name: str, start: str) -> None:
    """Of six weights; from the paper's start, and from that of quantize/autoround."""
    grid, rows = Grid.parse(name), 16
    best, exact, already, found = 0.0, 0.0, 0, 0
    for seed in range(rows):
        weight, gram = problem(seed)
        if start == "nearest":
            codes = nearest(weight, grid)
            wanted = own_levels(weight, codes, grid)
        else:
            codes = solve(weight, gram, grid)
            wanted = wanted_levels(weight, codes, gram, grid)
        errors = list(descended(weight, gram, grid, codes, wanted))
        there = float(error((weight - dequantize(codes, grid)).double(), gram.double()))
        assert errors[0] == pytest.approx(there, rel=1e-3)  # nothing is nudged yet
        optimum = least(weight, gram, grid, codes)
        assert min(errors) >= optimum * 0.999
        best, exact = best + min(errors), exact + optimum
        already += errors[0] <= optimum * 1.001
        found += min(errors) <= optimum * 1.001
    assert best <= 1.15 * exact
    assert found >= 0.8 * rows
    assert start == "gptq" or found > already


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("width", [96, 100])  # a width that no group divides
def test_the_gradient_goes_straight_through_to_the_nudge_in_float64(name: str, width: int) -> None:
    grid, (weight, gram) = Grid.parse(name), problem(0, width, rows=3)
    codes = nearest(weight, grid)
    wanted, nudge = own_levels(weight, codes, grid), nn.Parameter(0.3 * torch.randn(3, width))
    levels = nudged(wanted, nudge, grid, codes.zeros)
    rest = weight - weights_of(levels, fitted(codes), grid, torch.float32)
    error(rest, gram).backward()
    scales = spread(codes.scales, grid.group_for(width), width)
    expected = -2 * (rest.detach().double() @ gram.double()) * scales.double()
    assert nudge.grad is not None
    torch.testing.assert_close(nudge.grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("width", [96, 100])
def test_levels_are_the_nearest_of_the_grid(name: str, width: int) -> None:
    grid, (weight, _) = Grid.parse(name), problem(1, width, rows=3)
    codes, generator = nearest(weight, grid), torch.Generator().manual_seed(2)
    wanted, zeros = own_levels(weight, codes, grid), None
    nudge = torch.randn(3, width, generator=generator)
    unmoved = nudged(wanted, torch.zeros_like(nudge), grid, codes.zeros)
    assert torch.equal(unmoved, decode(codes, grid))
    if codes.zeros is not None:
        zeros = spread(codes.zeros, grid.group_for(width), width)
    every = decode(Codes(torch.arange(grid.low, grid.high + 1)[None], codes.scales, None), grid)[0]
    shift = 0.0 if zeros is None else zeros[..., None]
    there = every[every == every] - shift  # of fp8 some codes are no number
    exact, given = wanted + nudge, wanted.clone()
    levels = nudged(wanted, nudge, grid, codes.zeros)
    missed, fewest = (levels - exact).abs(), (there - exact[..., None]).abs().amin(-1)
    torch.testing.assert_close(missed, fewest, rtol=0, atol=1e-4)
    assert torch.equal(levels, snap(levels.clone(), grid, zeros))
    assert torch.equal(wanted, given)


def test_what_was_nudged_past_the_end_of_the_grid_can_come_back() -> None:
    grid, nudge = Grid.parse("int2-g32"), nn.Parameter(torch.tensor([[5.0, -5.0, 0.0]]))
    levels = nudged(torch.zeros(1, 3), nudge, grid)
    assert levels.tolist() == [[1.0, -2.0, 0.0]]
    levels.sum().backward()
    assert nudge.grad is not None
    assert nudge.grad.tolist() == [[1.0, 1.0, 1.0]]


def test_a_step_goes_by_the_sign_alone() -> None:
    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(2))
    untouched = nn.Parameter(torch.ones(2))
    optimizer = SignDescent(
        [{"params": [one, untouched], "lr": 0.25}, {"params": [other], "lr": 2.0}]
    )
    one.grad, other.grad = torch.tensor([1e-9, -7.0, 0.0, 1e9]), torch.tensor([-3.0, 3.0])
    optimizer.step()
    assert one.tolist() == [-0.25, 0.25, 0.0, -0.25]
    assert other.tolist() == [3.0, -1.0]
    assert untouched.tolist() == [1.0, 1.0]
