"""SignRound's levels and steps against auto-round, the package of its authors, where installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attar.core.grid import Grid
from attar.ops.rounding import Codes, Scales, fit_scales, grouped, quantize, spread, weights_of
from attar.ops.signround import SignDescent, nudged

integers: Any = pytest.importorskip("auto_round.data_type.int")
signs: Any = pytest.importorskip("auto_round.algorithms.quantization.sign_round.sign_sgd")


def ours(weight: Tensor, nudge: Tensor, codes: Codes, grid: Grid) -> Tensor:
    wanted = weight / spread(codes.scales, grid.group_for(weight.shape[1]), weight.shape[1])
    levels = nudged(wanted, nudge, grid, codes.zeros)
    return weights_of(levels, Scales(codes.scales, codes.zeros), grid, torch.float32)


def theirs(weight: Tensor, nudge: Tensor, codes: Codes, grid: Grid) -> Tensor:
    """On the same scales and zero points: of the latter they take the ranges."""
    group, scales, zeros = grid.group_for(weight.shape[1]), codes.scales, codes.zeros
    exact = {"q_scale_thresh": 0.0, "scale_dtype": torch.float32}
    given: dict[str, Any] = {"bits": grid.bits, "group_size": group, **exact}
    given["v"] = grouped(nudge, group).reshape(-1, group)
    if zeros is None:
        made, *_ = integers.quant_tensor_sym(weight, init_scale=scales.reshape(-1, 1), **given)
        return made
    low, high = (((end - zeros) * scales).reshape(-1) for end in (grid.low, grid.high))
    made, *_ = integers.quant_tensor_asym(weight, tensor_min=low, tensor_max=high, **given)
    return made


@pytest.mark.parametrize("name", ["int4-g64", "int2-g64", "int4-g64-zp", "int2-g64-zp"])
@pytest.mark.parametrize("width", [128, 100])
def test_weights_and_gradients_are_theirs_but_beyond_the_ends(name: str, width: int) -> None:
    generator, grid = torch.Generator().manual_seed(0), Grid.parse(name)
    weight, slope = torch.randn(2, 4, width, generator=generator)
    nudge = torch.rand(4, width, generator=generator) - 0.5
    codes = quantize(weight, fit_scales(weight, grid, positive=True), grid)
    found: list[tuple[Tensor, Tensor]] = []
    for side in (ours, theirs):
        given = nn.Parameter(nudge.clone())
        made = side(weight, given, codes, grid)
        (made * slope).sum().backward()
        assert given.grad is not None
        found.append((made.detach(), given.grad))
    (own, own_slope), (peer, peer_slope) = found
    torch.testing.assert_close(own, peer)
    within = peer_slope != 0  # beyond the ends theirs is none
    assert within.float().mean() > 0.8
    torch.testing.assert_close(own_slope[within], peer_slope[within])
    assert (own_slope != 0).all()


def test_steps_are_theirs() -> None:
    one, other = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(8))
    own, peer = SignDescent([{"params": [one], "lr": 0.02}]), signs.SignSGD([other], lr=0.02)
    for slope in torch.randn(5, 8, generator=torch.Generator().manual_seed(0)):
        one.grad, other.grad = slope.clone(), slope.clone()
        own.step()
        peer.step()
    assert torch.equal(one, other)
