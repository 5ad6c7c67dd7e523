"""One distribution out of several teachers'.

Each teacher's log-probabilities are [positions, classes], of the same classes in the same order.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional


def mixture(answers: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Log of the weighted mean of probabilities: [positions, classes].

    answers: of each teacher its log-probabilities and its weights, [positions], which need not add
    up to one. They are asked for one after another, so that one teacher's are in memory at a time.
    """
    total: Tensor | None = None
    whole = torch.zeros(())
    for logs, weight in answers:
        part = logs.exp() * weight.unsqueeze(-1)
        total = part if total is None else total.add_(part)
        whole = whole.to(weight) + weight
    if total is None:
        raise ValueError("there is no teacher")
    return (total / whole.unsqueeze(-1)).clamp_min(torch.finfo(total.dtype).tiny).log()


def certainty(logs: Tensor) -> Tensor:
    """exp(-entropy), entropy in nats: [positions], one over how many classes are hesitated between.

    As a weight it lets the teacher that is surer at a position count more there: the idea of Kwon
    et al. 2020, "Adaptive Knowledge Distillation Based on Entropy" (ICASSP, doi
    10.1109/ICASSP40776.2020.9054698).
    """
    with torch.autocast(logs.device.type, enabled=False):  # it would round to bf16
        return torch.linalg.vecdot(logs.exp(), logs).exp()


def best(logs: Iterable[Tensor], labels: Tensor, ignored: int) -> Tensor:
    """All the weight to the teacher that finds the label likeliest: [positions, teachers].

    labels: [positions], `ignored` where there is none: all teachers alike there.
    """
    where = labels.clamp_min(0).unsqueeze(-1)
    found = torch.cat([one.gather(-1, where) for one in logs], -1)
    chosen = functional.one_hot(found.argmax(-1), found.shape[-1]).to(found.dtype)
    return chosen.where((labels != ignored).unsqueeze(-1), 1 / found.shape[-1])
