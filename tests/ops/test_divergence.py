"""Divergences and the chunked loss against formulas written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from attar.ops import chunked as chunked_file
from attar.ops.chunked import Losses, Mix, Side, chunked
from attar.ops.divergence import (
    IGNORED,
    Divergence,
    cross_entropy,
    forward_kl,
    hard_targets,
    measured,
    reverse_kl,
)

POSITIONS, WIDTH, CLASSES = 23, 8, 37


def softmax(logits: Tensor) -> Tensor:
    powers = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def kl(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """T^2 KL(one || other) at each position, in float64."""
    p, q = softmax(one / temperature), softmax(other / temperature)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1)


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) at each position, 0 where there is none."""
    rows = torch.arange(len(labels))
    return -softmax(logits)[rows, labels.clamp_min(0)].log() * (labels != IGNORED)


def draw(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(POSITIONS, CLASSES, generator=generator)
    teacher = scale * torch.randn(POSITIONS, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (POSITIONS,), generator=generator)
    return student, teacher, labels.masked_fill(torch.arange(POSITIONS) % 3 == 0, IGNORED)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_both_directions_are_the_formula(temperature: float) -> None:
    student, teacher, labels = draw()
    mask = labels != IGNORED
    forward = forward_kl(student, teacher, mask, temperature)
    reverse = reverse_kl(student, teacher, mask, temperature)
    assert forward.item() == pytest.approx(kl(teacher, student, temperature)[mask].mean().item())
    assert reverse.item() == pytest.approx(kl(student, teacher, temperature)[mask].mean().item())
    everywhere = forward_kl(student, teacher, None, temperature)
    assert everywhere.item() == pytest.approx(kl(teacher, student, temperature).mean().item())


def test_cross_entropy_and_hard_targets() -> None:
    student, teacher, labels = draw()
    mask = labels != IGNORED
    expected = surprise(student, labels).sum() / mask.sum()
    assert cross_entropy(student, labels).item() == pytest.approx(expected.item())
    best = surprise(student, teacher.argmax(-1))
    assert hard_targets(student, teacher).item() == pytest.approx(best.mean().item())
    assert hard_targets(student, teacher, mask).item() == pytest.approx(best[mask].mean().item())


def test_the_same_distribution_has_no_divergence() -> None:
    student, _, _ = draw()
    assert forward_kl(student, student + 5.0).item() == pytest.approx(0.0, abs=1e-6)
    assert reverse_kl(student, student + 5.0, None, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    student, teacher, _ = draw(scale=3000.0)
    student[:, 0], teacher[:, 0] = -torch.inf, -torch.inf
    student.requires_grad_()
    for divergence in (forward_kl, reverse_kl):
        value = divergence(student, teacher)
        assert value.isfinite()
    (slope,) = torch.autograd.grad(forward_kl(student, teacher), student)
    assert slope[:, 1:].isfinite().all()


def test_no_position_is_zero() -> None:
    student, teacher, labels = draw()
    student.requires_grad_()
    nothing = torch.zeros(POSITIONS, dtype=torch.bool)
    total = forward_kl(student, teacher, nothing) + cross_entropy(student, labels.fill_(IGNORED))
    total.backward()
    assert total.item() == 0.0
    assert student.grad is not None
    assert not student.grad.any()


def test_sums_are_float32_for_bf16_logits() -> None:
    student, teacher, _ = draw()
    low = forward_kl(student.bfloat16(), teacher.bfloat16())
    exact = kl(teacher.bfloat16(), student.bfloat16(), 1.0).mean()
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=1e-5)


MIXES = [
    Mix("forward", 1.0, 1.0, 0.0),
    Mix("forward", 1.0, 0.7, 0.3),
    Mix("forward", 2.5, 0.7, 0.3),
    Mix("reverse", 1.0, 0.4, 0.6),
    Mix("reverse", 3.0, 1.0, 0.0),
    Mix("hard", 1.0, 0.5, 0.5),
    Mix("jensen-shannon", 1.0, 1.0, 0.0, 0.5),
    Mix("jensen-shannon", 2.0, 0.6, 0.4, 0.1),
    Mix("skewed", 1.0, 1.0, 0.0, 0.1),
    Mix("skewed", 2.0, 0.5, 0.5, 0.9),
    Mix("skewed-reverse", 1.5, 0.7, 0.3, 0.1),
    Mix("total-variation", 1.0, 1.0, 0.0),
    Mix("total-variation", 3.0, 0.3, 0.7),
    Mix("logits", 1.0, 0.2, 0.8),
    Mix("forward", 1.0, 0.0, 1.0),
]


def expected_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, divergence and task loss in float64."""

    def apart() -> Tensor:
        return softmax(teacher / mix.temperature) - softmax(student / mix.temperature)

    def between(pairs: Callable[..., tuple[Tensor, ...]], turned: bool = False) -> Tensor:
        """share KL(one || other) + (1 - share) KL(third || fourth), with m the mixture."""
        p, q = softmax(teacher / mix.temperature), softmax(student / mix.temperature)
        own = mix.share * (q if turned else p) + (1 - mix.share) * (p if turned else q)
        one, other, third, fourth = pairs(p, q, own)
        first = (one * (one.log() - other.log())).sum(-1)
        second = (third * (third.log() - fourth.log())).sum(-1)
        return mix.temperature**2 * (mix.share * first + (1 - mix.share) * second)

    each: dict[Divergence, Callable[[], Tensor]] = {
        "forward": lambda: kl(teacher, student, mix.temperature),
        "reverse": lambda: kl(student, teacher, mix.temperature),
        "hard": lambda: surprise(student, teacher.argmax(-1)),
        "logits": lambda: (student.double() - teacher.double()).square().mean(-1),
        "jensen-shannon": lambda: between(lambda p, q, m: (p, m, q, m)),
        "skewed": lambda: between(lambda p, q, m: (p, m, q, q)) / mix.share,
        "skewed-reverse": lambda: between(lambda p, q, m: (q, m, p, p), turned=True) / mix.share,
        "total-variation": lambda: (
            mix.temperature**2
            * (softmax(teacher / mix.temperature) - softmax(student / mix.temperature))
            .abs()
            .sum(-1)
            / 2
        ),
    }
    divergence, task = each[mix.divergence](), surprise(student, labels)
    total = (mix.weight * divergence + mix.task_weight * task).mean()
    return total, divergence.mean(), task.sum() / (labels != IGNORED).sum()


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_chunked_value_and_gradient(mix: Mix, chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(CLASSES, WIDTH, generator=generator).requires_grad_()
    other_hidden = torch.randn(POSITIONS, WIDTH, generator=generator)
    other_weight = torch.randn(CLASSES, WIDTH, generator=generator)
    _, _, labels = draw()

    student = Side(lambda states: states @ weight.t(), hidden, [weight])
    teacher = Side(lambda states: states @ other_weight.t(), other_hidden)
    losses = chunked(student, teacher, labels, mix, chunk)
    (3.0 * losses.total).backward()

    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    logits = other_hidden.double() @ other_weight.double().t()
    total, divergence, task = expected_losses(exact_hidden @ exact_weight.t(), logits, labels, mix)
    (3.0 * total).backward()
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert losses.divergence.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert losses.task.item() == pytest.approx(task.item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad, exact_hidden.grad.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.grad, exact_weight.grad.float(), rtol=1e-4, atol=1e-6)


def test_chunked_head_tied_to_the_table() -> None:
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    table.requires_grad_()
    ids = torch.randint(CLASSES, (POSITIONS,), generator=generator)

    def loss(tie: Callable[[Tensor], Losses]) -> Tensor:
        return tie(torch.tanh(table[ids])).total

    side = lambda states: Side(lambda part: part @ table.t(), states, [table])  # noqa: E731
    (found,) = torch.autograd.grad(
        loss(lambda states: chunked(side(states), None, ids, Mix(), 5)), table
    )
    (exact,) = torch.autograd.grad(surprise(torch.tanh(table[ids]) @ table.t(), ids).mean(), table)
    torch.testing.assert_close(found, exact)


def test_chunked_through_a_head_of_several_modules() -> None:
    torch.manual_seed(0)
    head = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, CLASSES)
    ).double()
    head[0].bias.requires_grad_(False)
    hidden = torch.randn(POSITIONS, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = draw()[2].masked_fill(draw()[2] == IGNORED, 0)
    chunked(Side(head, hidden, list(head.parameters())), None, labels, Mix(), 7).total.backward()
    found = [p.grad.clone() if p.grad is not None else None for p in head.parameters()]
    head.zero_grad()
    cross_entropy(head(hidden.detach()), labels).backward()
    for mine, parameter in zip(found, head.parameters(), strict=True):
        assert (mine is None) == (parameter.grad is None)
        if mine is not None:
            torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_chunked_through_a_linear_in_slices(
    frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_file, "_SLICE", 5 * WIDTH)  # the last slice is shorter
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, CLASSES).double()
    for name in frozen:
        head.get_parameter(name).requires_grad_(False)
    hidden = torch.randn(POSITIONS, WIDTH, dtype=torch.float64, requires_grad=True)
    other, labels = torch.randn(POSITIONS, CLASSES, dtype=torch.float64), draw()[2]
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]

    def grads(side: Side) -> tuple[Tensor, ...]:
        mix = Mix("jensen-shannon", 2.0, 0.7, 0.3)
        teacher = Side(lambda states: states, other)
        return torch.autograd.grad(chunked(side, teacher, labels, mix, 7).total, wanted)

    found = grads(Side(head, hidden, list(head.parameters())))
    exact = grads(Side(head.forward, hidden, list(head.parameters())))
    torch.testing.assert_close(found, exact)


def test_chunked_through_a_linear_under_autocast() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, CLASSES)
    hidden = torch.randn(POSITIONS, WIDTH).bfloat16().requires_grad_()
    labels = draw()[2]
    with torch.autocast("cpu", torch.bfloat16):
        weights = list(head.parameters())
        chunked(Side(head, hidden, weights), None, labels, Mix(), 7).total.backward()
        found = [hidden.grad, head.weight.grad, head.bias.grad]
        hidden.grad = head.weight.grad = head.bias.grad = None
        chunked(Side(head.forward, hidden, weights), None, labels, Mix(), 7).total.backward()
    for mine, theirs in zip(found, (hidden.grad, head.weight.grad, head.bias.grad), strict=True):
        assert mine is not None
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-3)


def test_chunked_leaves_states_as_they_were() -> None:
    hidden = torch.randn(POSITIONS, CLASSES, requires_grad=True)
    before = hidden.detach().clone()
    for head in (lambda states: states, torch.nn.Linear(CLASSES, 5)):
        labels = torch.zeros(POSITIONS, dtype=torch.long)
        chunked(Side(head, hidden), None, labels, Mix(), 7).total.backward()
        assert torch.equal(hidden.detach(), before)


def test_chunked_without_gradients_or_positions() -> None:
    weight = torch.randn(CLASSES, WIDTH, requires_grad=True)
    hidden = torch.randn(POSITIONS, WIDTH)
    labels = draw()[2]
    side = Side(lambda states: states @ weight.t(), hidden, [weight])
    with torch.inference_mode():
        value = chunked(side, None, labels, Mix(), 4)
    assert value.task.item() == pytest.approx(cross_entropy(hidden @ weight.t(), labels).item())
    empty = Side(side.head, hidden[:0].requires_grad_(), [weight])
    total = chunked(empty, None, labels[:0], Mix(), 4).total
    total.backward()
    assert total.item() == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_chunked_never_holds_all_logits() -> None:
    seen: list[int] = []
    weight = torch.randn(CLASSES, WIDTH)

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states @ weight.t()

    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    labels = torch.zeros(POSITIONS, dtype=torch.long)
    chunked(Side(head, hidden), Side(head, hidden), labels, Mix("forward", 1.0, 1.0), 10)
    assert max(seen) == 10
    assert sum(seen) == 2 * POSITIONS


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_ends_of_mixtures_are_the_two_directions(share: float) -> None:
    student, teacher, _ = (part.double() for part in draw(scale=0.5))
    forward = measured(student, teacher, "forward").each
    assert torch.allclose(measured(student, teacher, "skewed", share=0.0).each, forward)
    small = measured(student, teacher, "jensen-shannon", share=1e-4).each / 1e-4
    assert torch.allclose(small, forward, rtol=0.02)
    one = measured(student, teacher, "jensen-shannon", share=share).each
    other = measured(teacher, student, "jensen-shannon", share=1 - share).each
    assert torch.allclose(one, other, atol=1e-5)
    assert one.max() <= -(share * np.log(share) + (1 - share) * np.log(1 - share)) + 1e-6


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_autocast_rounds_nothing(divergence: Divergence) -> None:
    student, teacher, _ = draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = measured(student, teacher, divergence, 2.0, 0.3, slope=True)
    exact = measured(student, teacher, divergence, 2.0, 0.3, slope=True)
    assert torch.equal(rounded.each, exact.each)
    assert rounded.slope is not None
    assert exact.slope is not None
    assert torch.equal(rounded.slope, exact.slope)
