"""One distribution out of several, against sums written out in float64."""

from __future__ import annotations

import torch

from attar.ops.ensemble import best, certainty, mixture


def draw(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(5, 6, generator=generator, dtype=torch.float64)).log_softmax(-1)


LOGS = [draw(seed) for seed in range(3)]


def test_the_mean_of_probabilities() -> None:
    found = mixture((one, torch.ones(5, dtype=torch.float64)) for one in LOGS)
    wanted = sum(one.exp() for one in LOGS) / 3
    assert torch.allclose(found.exp(), torch.as_tensor(wanted))


def test_the_surer_count_more() -> None:
    weights = torch.zeros(3, 5, dtype=torch.float64)
    for number, one in enumerate(LOGS):
        for place in range(5):
            entropy = -sum(float(p) * float(p.log()) for p in one[place].exp())
            weights[number, place] = torch.exp(torch.tensor(-entropy, dtype=torch.float64))
    weights /= weights.sum(0)
    found = mixture((one, certainty(one)) for one in LOGS)
    wanted = sum(w.unsqueeze(-1) * one.exp() for w, one in zip(weights, LOGS, strict=True))
    assert torch.allclose(found.exp(), torch.as_tensor(wanted))


def test_the_best_at_each_label() -> None:
    labels = torch.tensor([0, 3, -100, 5, 2])
    weights = best(LOGS, labels, -100)
    for place, label in enumerate(labels.tolist()):
        if label < 0:
            assert torch.allclose(weights[place], torch.full((3,), 1 / 3, dtype=torch.float64))
            continue
        chances = [float(one[place, label]) for one in LOGS]
        assert weights[place].tolist() == [float(c == max(chances)) for c in chances]
