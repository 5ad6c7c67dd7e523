"""How alike what two models make on the way is: hidden states, and relations inside them.

A mask is [batch, length], True where a token is real. Everything is summed in float32.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def missed(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squares of what hidden states miss, relative to the teacher's, over all real tokens.

    student, teacher: [batch, length, width]. As in TinyBERT (Jiao et al. 2020, arXiv 1909.10351,
    equation 8), divided by the teacher's mean square, so that it means the same in every layer.
    """
    own, other = student.float()[mask], teacher.float()[mask]
    return (own - other).square().sum() / other.square().sum().clamp_min(1e-12)


def turned(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens of 1 - cos between hidden states (Sanh et al. 2019, DistilBERT).

    student, teacher: [batch, length, width]; arXiv 1910.01108, section 2.
    """
    own, other = student.float()[mask], teacher.float()[mask]
    return (1 - functional.cosine_similarity(own, other, dim=-1)).mean()


def relations_kl(student: Tensor, teacher: Tensor, heads: int, mask: Tensor) -> Tensor:
    """KL between how tokens relate to each other in teacher and student, a mean over tokens.

    student, teacher: [batch, length, width], of any widths that `heads` divides: queries, keys
    or values, cut into as many relation heads in either. A relation is the softmax over real
    tokens of products over the root of a head's size (Wang et al. 2021, MiniLMv2, arXiv
    2012.15828, section 3.2).
    """
    own, other = _relations(student, heads, mask), _relations(teacher, heads, mask)
    each = (other.exp() * (other - own)).masked_fill(~mask[:, None, None, :], 0.0).sum(-1)
    return each.mean(1)[mask].mean()


def maps_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL between the attention of teacher and student, a mean over heads and real tokens.

    student, teacher: [batch, heads, length, length], shares of each row that add up to 1, of as
    many heads, or the mean of either's heads where they have not as many (Wang et al. 2020,
    MiniLM, arXiv 2002.10957, equation 1).
    """
    own, other = student.float(), teacher.float()
    if own.shape[1] != other.shape[1]:
        own, other = own.mean(1, keepdim=True), other.mean(1, keepdim=True)
    each = functional.kl_div(own.clamp_min(1e-9).log(), other, reduction="none").sum(-1)
    return each.mean(1)[mask].mean()


def scores_missed(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean square of what attention's scores miss, over heads and pairs of real tokens.

    student, teacher: [batch, heads, length, length], as before the softmax (Jiao et al. 2020,
    TinyBERT, arXiv 1909.10351, equation 7).
    """
    real = mask[:, None, :, None] & mask[:, None, None, :]
    rest = (student.float() - teacher.float()).masked_fill(~real, 0.0)
    return rest.square().sum() / (real.sum() * rest.shape[1]).clamp_min(1)


def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Products of queries and keys over the root of a head's size: [batch, heads, length, length].

    queries, keys: [batch, length, width] (Vaswani et al. 2017, arXiv 1706.03762, equation 1).
    """
    own, other = (
        part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys)
    )
    with torch.autocast(own.device.type, enabled=False):  # it would round products to bf16
        return own @ other.transpose(-1, -2) / own.shape[-1] ** 0.5


def _relations(values: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Logarithms of relations: [batch, heads, length, length]."""
    found = attention_scores(values, values, heads)
    return found.masked_fill(~mask[:, None, None, :], -1e4).log_softmax(-1)


def alignment(one: Tensor, other: Tensor) -> Tensor:
    """Linear centered kernel alignment of two sets of states, [n, width] each: from 0 to 1.

    Kornblith et al. 2019, arXiv 1905.00414, equation 4: the same for any rotation and scale.
    """
    one, other = (part.double() - part.double().mean(0) for part in (one, other))
    size = (one.t() @ one).norm() * (other.t() @ other).norm()
    return (other.t() @ one).square().sum() / size.clamp_min(1e-30)


def in_order(scores: Tensor) -> list[int]:
    """For each row a column, columns ascending, of the highest sum: by dynamic programming.

    scores: [rows, columns], no more rows than columns. The last row takes the last column.
    """
    rows, columns = scores.shape
    best = torch.full((rows + 1, columns + 1), -torch.inf, dtype=torch.float64)
    best[0] = 0.0
    for row in range(1, rows + 1):
        for column in range(row, columns + 1):
            taken = best[row - 1, column - 1] + scores[row - 1, column - 1]
            best[row, column] = torch.maximum(best[row, column - 1], taken)
    found = [columns - 1]
    column = columns - 1
    for row in range(rows - 1, 0, -1):
        while column > row and best[row, column] == best[row, column - 1]:
            column -= 1
        found.append(column - 1)
        column -= 1
    return found[::-1]


def similarities_missed(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of what the cosines between different texts differ by.

    student, teacher: [texts, width], of any widths. Relational distillation (Park et al. 2019,
    arXiv 1904.05068) of the similarities of a batch (Tung and Mori 2019, arXiv 1907.09682). One
    text alone: 0.
    """
    rest = _cosines(student, student) - _cosines(teacher, teacher)
    count = len(rest)
    others = ~torch.eye(count, dtype=torch.bool, device=rest.device)
    return rest[others].square().sum() / max(count * (count - 1), 1)


def info_nce(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-log of the share that the teacher's vector of the same text has among those of all texts.

    student, teacher: [texts, width]. Shares are the softmax of cosines / temperature; a mean over
    the texts, in nats (van den Oord et al. 2018, arXiv 1807.03748, equation 4).
    """
    scores = _cosines(student, teacher) / temperature
    return -scores.log_softmax(-1).diagonal().mean()


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines of all pairs: [rows of one, rows of other]."""
    first, second = (functional.normalize(part.float(), dim=-1) for part in (one, other))
    with torch.autocast(first.device.type, enabled=False):  # it would round products to bf16
        return first @ second.t()
