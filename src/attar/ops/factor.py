"""A weight as a product of two thin ones: the best of a rank, for one measure of the error.

Everything is computed in float64: small singular values decide what a rank costs.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """up [rows, rank] times down [rank, width], in float32.

    error: what is lost, squared, of the whole, in the measure that was asked for.
    """

    up: Tensor
    down: Tensor
    error: float


def rank_for(rows: int, width: int, keep: float) -> int:
    """The rank at which two factors hold a share `keep` of the weights, in eights where it can.

    At least 1.
    """
    rank = int(keep * rows * width / (rows + width))
    return max(1, rank if rank < 8 else rank - rank % 8)


def ranks_below(rows: int, width: int) -> list[int]:
    """Ranks at which two factors hold fewer weights than the whole: 1, 2, 4, and eights."""
    most = max(1, (rows * width - 1) // (rows + width))
    return [rank for rank in (1, 2, 4, *range(8, most + 1, 8)) if rank <= most]


def root_of(gram: Tensor) -> Tensor:
    """S with S ST the gram, in float64: [width, width]. The gram may be of any rank."""
    values, vectors = torch.linalg.eigh(gram.double())
    return vectors * values.clamp_min(0).sqrt()


def factored(
    weight: Tensor, rank: int, root: Tensor | None = None, importance: Tensor | None = None
) -> Factors:
    """The least sum over outputs i of importance_i ((W - UD) X)_i^2, for inputs of a gram X XT.

    With neither, the truncated decomposition (Eckart and Young 1936); with the importance alone
    FWSVD (Hsu et al. 2022, arXiv 2207.00112, section 3); with the gram alone the optimum of
    SVD-LLM (Wang et al. 2024, arXiv 2403.07378, section 3.1), which whitens by its Cholesky
    factor. Such factors are a projection of W onto the strongest directions of its outputs W X,
    so nothing is inverted but the importance, and a gram of any rank will do.

    weight: [rows, width]; rank: at most the smaller of both; root: `root_of` the gram, None for
    inputs all alike; importance: [rows], not negative, None for rows all alike.
    """
    exact, size = weight.detach().double(), _size(importance)
    directions, strengths = _left(_outputs(exact * size, root))
    up = directions[:, :rank]
    down = up.t() @ (exact * size)
    whole = strengths.clamp_min(0).sum()
    lost = strengths[rank:].clamp_min(0).sum()
    length = down.norm(dim=1).clamp_min(1e-30).sqrt()  # both factors share the size of the product
    error = float(lost / whole) if whole > 0 else 0.0
    return Factors((up / size * length).float(), (down / length[:, None]).float(), error)


def spectrum(weight: Tensor, root: Tensor, importance: Tensor) -> Tensor:
    """What each further rank of `factored` is worth, the strongest first: [min(rows, width)].

    In squares of the measure: the sum of those beyond a rank is what that rank loses.
    """
    outputs = _outputs(weight.detach().double() * _size(importance), root)
    small = outputs if len(outputs) <= outputs.shape[1] else outputs.t()
    return torch.linalg.eigvalsh(small @ small.t()).flip(0).clamp_min(0)


def _size(importance: Tensor | None) -> Tensor | float:
    """What rows are multiplied by, [rows, 1]; a row of no importance is not lost altogether."""
    if importance is None:
        return 1.0
    floor = importance.max().double().clamp_min(1e-30) * 1e-8
    return importance.double().clamp_min(float(floor)).sqrt()[:, None]


def _outputs(weight: Tensor, root: Tensor | None) -> Tensor:
    """What the weight makes of inputs with this root, as a matrix of the same gram."""
    return weight if root is None else weight @ root


def _left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, the strongest first, and the squares of their singular values."""
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values.square()
