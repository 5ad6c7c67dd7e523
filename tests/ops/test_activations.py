"""Inputs at 8 bits: what torch's own operator makes of them, and ranges better than the ends."""

from __future__ import annotations

import pytest
import torch

from attar.ops import activations
from attar.ops.activations import (
    InputGrid,
    Inputs,
    Peaks,
    Range,
    rounded,
    rounded_tokens,
    smoothing,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on(values: torch.Tensor, grid: InputGrid) -> torch.Tensor:
    return rounded(values, torch.tensor(grid.scale), torch.tensor(float(grid.zero)))


@pytest.mark.parametrize("shift", [0.0, 3.0, -30.0])
def test_tokens_are_rounded_each_on_its_own_grid(shift: float) -> None:
    inputs = (drawn(3, 4, 32) + shift) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None]
    found = rounded_tokens(inputs)
    ends = inputs.double().clamp_max(0).amin(-1), inputs.double().clamp_min(0).amax(-1)
    scale = ((ends[1] - ends[0]) / 255)[..., None]
    assert ((found - inputs).double().abs() <= scale * 1.001).all()
    inner = ((inputs > inputs.amin(-1, True)) & (inputs < inputs.amax(-1, True))).double()
    assert ((found - inputs).double().abs() * inner <= scale / 2 * 1.001).all()
    codes = found.double() / scale.clamp_min(1e-30)
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_compressed_tensors_rounds_tokens_alike() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    inputs = drawn(2, 4, 32) * torch.tensor([1e-2, 1.0, 50.0, 3.0])[:, None] + 0.3
    args = QuantizationArgs(num_bits=8, symmetric=False, strategy="token", dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(inputs, args, torch.nn.Identity())
    assert torch.allclose(rounded_tokens(inputs), fake_quantize(inputs, scale, zero, args))


def test_torchs_own_quantization_gives_the_same() -> None:
    inputs, grid = drawn(200) * 3 + 1, InputGrid(0.025, 100)
    theirs = torch.fake_quantize_per_tensor_affine(inputs, grid.scale, grid.zero, 0, 255)
    assert torch.allclose(on(inputs, grid), theirs)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_the_range_is_better_than_its_ends_and_holds_zero(shift: float) -> None:
    values = drawn(64, 128) + shift
    values[0, 0] = 60.0  # one that is far away
    found = Range(128)
    for part in values.split(16):
        found.add(part)
    grid = found.fit()

    def error(grid: InputGrid) -> float:
        return float((on(values, grid) - values).square().sum())

    low, high = min(0.0, float(values.min())), float(values.max())
    ends = InputGrid((high - low) / 255, round(-low * 255 / (high - low)))
    assert error(grid) <= error(ends)
    assert 0 <= grid.zero <= 255
    assert on(torch.zeros(3), grid).eq(0).all()
    assert found.count == 64


def test_every_channel_is_looked_at() -> None:
    values = drawn(1024, 576)
    values[:, 5] *= 40  # one channel, among those that a stride of width / 8 never meets
    found = Range(576)
    found.add(values)
    grid = found.fit()
    low, high = float(values.min()), float(values.max())
    ends = InputGrid((high - low) / 255, round(-low * 255 / (high - low)))

    def error(grid: InputGrid) -> float:
        return float((on(values, grid) - values).square().sum())

    assert error(grid) < 1.001 * error(ends)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_either_end_may_be_drawn_in_alone(sign: float) -> None:
    values = drawn(1 << 16, 16).clamp(-2, 2)  # so many that one of them is not worth it
    values[0, 0] = sign * 4
    found = Range(16)
    found.add(values)
    grid = found.fit()
    low, high = -grid.zero * grid.scale, (255 - grid.zero) * grid.scale
    assert max(-low, high) < 3
    assert min(-low, high) > 1.9


def given(*parts: torch.Tensor) -> Inputs:
    found = Inputs(parts[0].shape[-1])
    for part in parts:
        found.add(part)
    return found


def test_outputs_are_nearer_than_on_the_range_of_all_inputs() -> None:
    inputs, weight = drawn(2048, 64), drawn(32, 64, seed=1)
    inputs[::50, 3] *= 30  # outliers of a channel that hardly counts
    weight[:, 3] *= 0.01
    grid = given(*inputs.split(100)).fit(weight.square().sum(0))
    low, high = float(inputs.min()), float(inputs.max())
    ends = InputGrid((high - low) / 255, round(-low * 255 / (high - low)))

    def missed(grid: InputGrid) -> float:
        return float(((on(inputs, grid) - inputs) @ weight.t()).double().square().sum())

    assert missed(grid) < 0.4 * missed(ends)


def test_outliers_that_weigh_much_stay_within_the_range() -> None:
    inputs, energy = drawn(2048, 64), torch.ones(64)
    inputs[::50, 3] *= 30
    kept = given(inputs).fit(energy.index_fill(0, torch.tensor([3]), 100.0))
    cubed = given(inputs).fit(energy, power=3.0)
    cut = given(inputs).fit(energy.index_fill(0, torch.tensor([3]), 0.0))
    assert kept.scale > 2 * cut.scale
    assert cubed.scale > given(inputs).fit(energy).scale  # higher powers cut off less


def test_means_are_those_of_all_tokens_before_and_after_rounding() -> None:
    inputs, grid = drawn(999, 16) + 1, InputGrid(0.3, 100)
    exact, coarse = given(*inputs.split(100)).means(grid)
    assert torch.allclose(exact.double(), inputs.double().mean(0))
    assert torch.allclose(coarse.double(), on(inputs, grid).double().mean(0))


def test_tokens_kept_of_many_are_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_KEPT", 4 * 100)
    inputs = torch.arange(1000.0)[:, None].expand(-1, 4)
    found = given(*inputs.split(70))
    assert torch.equal(torch.cat(found._parts)[:, 0], torch.arange(0, 1000.0, 27))
    assert found.count == 1000
    assert torch.allclose(found.gram.mean, inputs.t() @ inputs / 1000)


def test_what_every_row_begins_with_counts_once_where_few_tokens_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "_KEPT", 4 * 600)
    inputs = (drawn(64 * 64, 4) + 10).view(64, 64, 4)
    inputs[:, 0] = 300.0
    found = given(*inputs)
    exact, coarse = found.means(grid := found.fit(torch.ones(4)))
    whole = inputs.reshape(-1, 4)
    assert torch.allclose(exact, whole.mean(0), rtol=1e-5)
    assert torch.allclose(coarse, on(whole, grid).mean(0), atol=0.3 * grid.scale)
    centred = found.gram.mean - exact.outer(exact)
    assert torch.linalg.eigvalsh(centred.double()).min() > 0


def test_weights_that_are_all_zero_are_no_trouble() -> None:
    found = given(drawn(8, 4))
    assert found.fit(torch.zeros(4)) == found.fit(torch.ones(4))


def test_inputs_that_are_all_zero_are_no_trouble() -> None:
    found = Range(8)
    found.add(torch.zeros(4, 8))
    assert on(torch.zeros(4, 8), found.fit()).eq(0).all()


@pytest.mark.parametrize("round_", [rounded_tokens, lambda x: on(x, InputGrid(0.05, 128))])
def test_gradients_pass_straight_through(round_) -> None:
    inputs = drawn(4, 16).requires_grad_()
    round_(inputs).sum().backward()
    assert torch.equal(inputs.grad, torch.ones_like(inputs))


def test_smoothing_is_the_papers_formula() -> None:
    inputs, weight = drawn(40, 16), drawn(8, 16, seed=1)
    peaks = Peaks(16)
    for part in inputs.split(10):
        peaks.add(part)
    assert torch.equal(peaks.found, inputs.abs().amax(0))
    found = smoothing(peaks.found, weight, 0.5)
    assert torch.allclose(found, (inputs.abs().amax(0) / weight.abs().amax(0)).sqrt())
    # with a half, what is divided and what is multiplied end up with the same peaks
    assert torch.allclose(inputs.abs().amax(0) / found, weight.abs().amax(0) * found)
