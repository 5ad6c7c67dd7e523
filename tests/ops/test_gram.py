"""Sums over what a linear is given, and the root of their inverse, against float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attar.ops.gram import Gram, inverse_factor, without_dead


def made(width: int = 40, least: float = 0.1) -> torch.Tensor:
    """A symmetric matrix with a mean of about 1 on its diagonal, and this least eigenvalue."""
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
    values = torch.linspace(0.5, 1.5, width, dtype=torch.float64)
    values[0] = least
    return (vectors * values) @ vectors.t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 200, 400])
def test_sums_are_those_of_float64(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 1500, width).to(dtype)
    gram = Gram(width)
    gram.add(inputs)
    gram.add(inputs[:1, :7])
    rows = torch.cat([inputs.reshape(-1, width), inputs[0, :7]]).double()
    assert torch.allclose(gram.mean.double(), rows.t() @ rows / len(rows), atol=1e-5)
    assert torch.equal(gram.mean, gram.mean.t())


def test_products_are_set_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    Gram(8).add(torch.randn(4, 8).bfloat16())
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("least", "damping"), [(0.1, 0.01), (0.0, 0.01), (-0.02, 0.03), (-0.2, 0.3), (-0.9, 1.0)]
)
def test_the_least_damping_that_makes_it_definite(least: float, damping: float) -> None:
    gram, order = made(least=least), torch.randperm(40)
    upper = inverse_factor(gram.float(), order).double()
    damped = gram[order][:, order]
    damped.diagonal().add_(damping * gram.diagonal().mean())
    assert torch.equal(upper, upper.triu())
    product = upper.t() @ upper @ damped
    assert torch.allclose(product, torch.eye(40, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), -100.0])
def test_what_no_damping_makes_definite_is_refused(value: float) -> None:
    gram = made().float()
    gram[0, 0] = value
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(gram, torch.arange(40))


def test_dead_inputs_have_the_energy_of_the_others() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0, 3.0]))
    assert without_dead(gram).diagonal().tolist() == [1.0, 2.0, 3.0]
    assert gram[1, 1] == 0
    assert without_dead(torch.zeros(2, 2)).diagonal().tolist() == [1.0, 1.0]


def test_an_older_pytorch_has_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram = Gram(8)
    gram.add(rows)
    torch.testing.assert_close(gram.mean, rows.float().t() @ rows.float() / 64)
