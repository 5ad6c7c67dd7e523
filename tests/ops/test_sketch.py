"""Sketches of a distribution, against plain formulae in float64 and automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attar.ops.chunked import Mix, Side, chunked
from attar.ops.divergence import IGNORED, measured
from attar.ops.sketch import Sample, Top

CLASSES, ENTRIES = 60, 7
NAMES: list[Any] = [
    "forward",
    "reverse",
    "jensen-shannon",
    "skewed",
    "skewed-reverse",
    "total-variation",
]


def pair(
    rows: int = 5, classes: int = CLASSES, dtype: Any = torch.float64
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    student = torch.randn(rows, classes, dtype=dtype) * 2
    return student, student + torch.randn(rows, classes, dtype=dtype) * 1.5


def lumped(probabilities: Tensor, ids: Tensor) -> Tensor:
    """The entries and the mass of all others."""
    kept = probabilities.gather(-1, ids)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)


def formula(name: str, p: Tensor, q: Tensor, share: float) -> Tensor:
    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one / other).log()).sum(-1)

    if name == "forward":
        return kl(p, q)
    if name == "reverse":
        return kl(q, p)
    if name == "jensen-shannon":
        middle = share * p + (1 - share) * q
        return share * kl(p, middle) + (1 - share) * kl(q, middle)
    if name == "skewed":
        return kl(p, share * p + (1 - share) * q)
    if name == "skewed-reverse":
        return kl(q, share * q + (1 - share) * p)
    return (p - q).abs().sum(-1) / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_top_is_the_divergence_of_the_lumped_distributions(name: Any, temperature: float) -> None:
    student, teacher = pair()
    top = Top.of(teacher, ENTRIES)
    p = lumped(torch.softmax(teacher / temperature, -1), top.ids)
    leaf = student.clone().requires_grad_()
    q = lumped(torch.softmax(leaf / temperature, -1), top.ids)
    wanted = formula(name, p, q, 0.3) * temperature**2
    (slope,) = torch.autograd.grad(wanted.sum(), leaf)
    found = top.measured(student, name, temperature, 0.3, True)
    torch.testing.assert_close(found.each, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.slope, slope, rtol=1e-8, atol=1e-11)
    alone = top.measured(student, name, temperature, 0.3, False)
    assert alone.slope is None
    assert torch.equal(alone.each, found.each)


@pytest.mark.parametrize("name", NAMES)
def test_top_is_a_lower_bound_that_more_entries_raise(name: Any) -> None:
    student, teacher = pair()
    whole = measured(student, teacher, name, 1.0, 0.3).each
    before = torch.zeros_like(whole)
    for entries in (1, 4, 16, 59):
        found = Top.of(teacher, entries).measured(student, name, 1.0, 0.3, False).each
        assert (found <= whole + 1e-9).all()
        assert (found >= before - 1e-9).all()
        before = found
    torch.testing.assert_close(before, whole)


def test_top_of_all_classes_is_the_whole_distribution() -> None:
    student, teacher = pair()
    found = Top.of(teacher, 1000).measured(student, "forward", 1.0, 0.5, True)
    whole = measured(student, teacher, "forward", slope=True)
    torch.testing.assert_close(found.each, whole.each)
    torch.testing.assert_close(found.slope, whole.slope)


def test_hard_targets_are_the_first_entry() -> None:
    student, teacher = pair()
    found = Top.of(teacher, 3).measured(student, "hard", 1.0, 0.5, True)
    whole = measured(student, teacher, "hard", slope=True)
    torch.testing.assert_close(found.each, whole.each)
    torch.testing.assert_close(found.slope, whole.slope)


@pytest.mark.parametrize("temperature", [0.7, 1.5, 3.0, 10.0])
def test_the_rest_at_other_temperatures_is_near(temperature: float) -> None:
    _, teacher = pair(50, 5000)
    top = Top.of(teacher, 64)
    wanted = lumped(torch.softmax(teacher / temperature, -1), top.ids)
    found = top.outcomes(temperature).exp()
    assert (found - wanted).abs().max() < 0.02
    for knot in (0.5, 1.0, 2.0):
        wanted = lumped(torch.softmax(teacher / knot, -1), top.ids)
        assert (top.outcomes(knot).exp() - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(("classes", "size"), [(32_000, 200), (151_936, 200), (262_144, 200)])
def test_64_entries_are_200_bytes_a_token(classes: int, size: int) -> None:
    _, teacher = pair(6, classes, torch.float32)
    top = Top.of(teacher * 2, 64)
    packed = top.packed()
    assert sum(tensor.nbytes for tensor in packed.values()) == 6 * size
    found = Top.unpacked(packed, classes)
    assert torch.equal(found.ids, top.ids)
    assert found.others == top.others
    error = (found.outcomes(1.0) - top.outcomes(1.0)).abs()
    assert error.max() < 0.2
    lost = (top.outcomes(1.0).exp() * (top.outcomes(1.0) - found.outcomes(1.0))).sum(-1)
    assert lost.abs().max() < 1e-3


def test_more_classes_than_a_short_word_holds() -> None:
    ids = torch.tensor([[2**20 - 1, 0, 2**19]])
    top = Top(ids, torch.tensor([[0.0, -1.0, -3.0]]), torch.zeros(1, 3), 2**20 - 3)
    found = Top.unpacked(top.packed(), 2**20)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.logs, top.logs, atol=1e-2, rtol=0)


def test_a_certain_teacher_survives_packing() -> None:
    teacher = torch.full((2, 100), -80.0)
    teacher[:, 3] = 40.0
    student = torch.randn(2, 100)
    found = Top.unpacked(Top.of(teacher, 8).packed(), 100)
    each = found.measured(student, "forward", 1.0, 0.5, True)
    wanted = measured(student, teacher, "forward").each
    torch.testing.assert_close(each.each, wanted, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(each.slope).all()


def test_told_only_the_likeliest_the_rest_is_even() -> None:
    teacher = torch.zeros(1, 10, dtype=torch.float64)
    teacher[0, 4], teacher[0, 7] = 3.0, 2.0  # all others alike
    logs = teacher.log_softmax(-1)
    top = Top.told(torch.tensor([[7, 4]]), logs[:, [7, 4]], 10)
    for temperature in (0.5, 1.0, 2.0):
        wanted = lumped(torch.softmax(teacher / temperature, -1), top.ids)
        torch.testing.assert_close(top.outcomes(temperature).exp(), wanted)
    assert top.ids.tolist() == [[4, 7]]


def samples(teacher: Tensor, draws: int, count: int = 2000) -> list[Sample]:
    """Samples from evenly spread starts: their mean is the expectation, but for 1/count."""
    starts = ((torch.arange(count) + 0.5) / count).unsqueeze(-1).expand(-1, len(teacher))
    return [Sample.of(teacher, draws, start) for start in starts]


def test_samples_are_unbiased_in_value_and_gradient() -> None:
    student, teacher = pair(3, 40)
    whole = measured(student, teacher, "forward", slope=True)
    assert whole.slope is not None
    found = [one.measured(student, "forward", 1.0, 0.5, True) for one in samples(teacher, 8)]
    each = torch.stack([one.each for one in found])
    slopes = torch.stack([one.slope for one in found if one.slope is not None])
    torch.testing.assert_close(each.mean(0), whole.each, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(slopes.mean(0), whole.slope, rtol=0, atol=1e-3)
    assert each.std(0).min() > 1e-3  # each by itself is not the divergence
    biased = Top.of(teacher, 8).measured(student, "forward", 1.0, 0.5, True)
    assert biased.slope is not None
    assert (biased.slope - whole.slope).abs().max() > 0.01  # and the likeliest alone are not


def test_a_sample_has_the_likeliest_as_they_are_and_none_twice() -> None:
    _, teacher = pair(4, 40)
    mass = torch.softmax(teacher, -1)
    for one in samples(teacher, 16, 50):
        assert all(len(set(row)) == 16 for row in one.ids.tolist())
        whole = torch.zeros_like(mass).scatter_(-1, one.ids, one.weights.double())
        heavy = mass > mass.sum(-1, keepdim=True) / 16  # certain, whatever the threshold
        assert (whole[heavy] > 0).all()
        torch.testing.assert_close(whole[heavy], mass[heavy], rtol=0.03, atol=0)


def test_a_sample_of_what_is_certain_or_impossible() -> None:
    teacher = torch.full((2, 30), -200.0)
    teacher[0, 4] = 0.0
    teacher[1, :3] = 0.0
    one = Sample.of(teacher, 8, torch.tensor([0.0, 0.999]))
    whole = torch.zeros(2, 30).scatter_add_(-1, one.ids, one.weights)
    torch.testing.assert_close(whole, torch.softmax(teacher, -1), rtol=1e-2, atol=1e-6)
    every = Sample.of(teacher[:, :5], 8, torch.zeros(2))  # fewer classes than entries
    assert sorted(every.ids[0].tolist()) == [0, 1, 2, 3, 4]


def test_a_sample_is_packed_without_loss() -> None:
    _, teacher = pair(6, 151_936, torch.float32)
    one = Sample.of(teacher, 64, torch.rand(6))
    packed = one.packed()
    assert sum(tensor.nbytes for tensor in packed.values()) == 6 * 196
    found = Sample.unpacked(packed, 151_936)
    assert torch.equal(found.ids, one.ids)
    assert torch.equal(found.weights, one.weights)
    torch.testing.assert_close(found.entropy, one.entropy, atol=1e-3, rtol=0)


def test_a_sample_tells_nothing_else() -> None:
    student, teacher = pair()
    one = Sample.of(teacher, 4, torch.rand(len(teacher)))
    with pytest.raises(ValueError, match="forward divergence at temperature 1"):
        one.measured(student, "reverse", 1.0, 0.5, True)


@pytest.mark.parametrize("kind", ["top", "sample"])
def test_the_chunked_loss_reads_sketches(kind: str) -> None:
    """Value and gradients over a head, in chunks, are those of all positions at once."""
    torch.manual_seed(1)
    hidden = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(CLASSES, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(11, CLASSES, dtype=torch.float64) * 2
    labels = torch.randint(0, CLASSES, (11,))
    labels[3] = IGNORED
    told = Top.of(teacher, 5) if kind == "top" else Sample.of(teacher, 5, torch.rand(11))
    logits = hidden @ weight.t()
    if kind == "top":
        p, q = (lumped(torch.softmax(x, -1), told.ids) for x in (teacher, logits))
        divergence = (p * (p / q).log()).sum(-1)
    else:
        picked = (logits.log_softmax(-1).gather(-1, told.ids) * told.weights).sum(-1)
        other = teacher.log_softmax(-1)
        divergence = -picked - -(other.exp() * other).sum(-1)
    task = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    wanted = 0.7 * divergence.mean() + 0.3 * task / 11
    grads = torch.autograd.grad(wanted, (hidden, weight))
    side = Side(lambda states: states @ weight.t(), hidden, [weight])
    losses = chunked(side, told, labels, Mix("forward", 1.0, 0.7, 0.3), chunk=4)
    torch.testing.assert_close(losses.total.double(), wanted.detach(), rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad(losses.total, (hidden, weight))
    for one, other in zip(found, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
