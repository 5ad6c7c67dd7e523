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


def truncated(weight: Tensor, rank: int) -> Factors:
    """The least |W - UD| (Eckart and Young 1936). weight: [rows, width]."""
    return whitened(weight, None, rank)


def weighted(weight: Tensor, importance: Tensor, rank: int) -> Factors:
    """The least squared error whose rows count by their importance (FWSVD, Hsu et al. 2022).

    arXiv 2207.00112, section 3: the rows are multiplied by the root of their importance,
    factorized, and divided again. weight: [rows, width]; importance: [rows], not negative.
    """
    floor = importance.max().double().clamp_min(1e-30) * 1e-8  # a row of none must not be lost
    size = importance.double().clamp_min(float(floor)).sqrt()[:, None]
    found = truncated(weight.detach().double() * size, rank)
    return Factors((found.up.double() / size).float(), found.down, found.error)


def whitened(weight: Tensor, gram: Tensor | None, rank: int) -> Factors:
    """The least |(W - UD) X|, for inputs X with the gram X XT.

    Such factors are a projection of W onto the strongest directions of its outputs W X, so
    nothing is inverted and a gram of any rank will do. The same optimum as SVD-LLM (Wang et
    al. 2024, arXiv 2403.07378, section 3.1), which whitens by a Cholesky factor of the gram.

    weight: [rows, width]; gram: [width, width], None for inputs all alike; rank: at most the
    smaller of rows and width.
    """
    exact = weight.detach().double()
    outputs = exact if gram is None else exact @ _root(gram.double())
    directions, strengths = _left(outputs)
    up = directions[:, :rank]
    down = up.t() @ exact
    whole = strengths.clamp_min(0).sum()
    lost = strengths[rank:].clamp_min(0).sum()
    size = down.norm(dim=1).clamp_min(1e-30).sqrt()  # both factors share the size of the product
    error = float(lost / whole) if whole > 0 else 0.0
    return Factors((up * size).float(), (down / size[:, None]).float(), error)


def _root(gram: Tensor) -> Tensor:
    """S with S ST the gram."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()


def _left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, the strongest first, and the squares of their singular values."""
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values.square()
