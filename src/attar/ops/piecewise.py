"""A loss over pieces of hidden states, whose logits are in memory one piece at a time."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Piece = Callable[[Tensor, int], Tensor]  # hidden states of a piece, its number -> sums [n]


def piecewise(
    loss: Piece, hidden: Tensor, weights: Sequence[Tensor], pieces: Sequence[slice]
) -> tuple[Tensor, ...]:
    """What a loss of every piece adds up to: n scalars, of which only the first has a gradient.

    hidden: [positions, width]; weights: the tensors inside `loss` that may want a gradient;
    pieces: positions that do not overlap. As in `chunked`, the gradient is worked out on the
    way forward, where a piece's logits are at hand, so that the head is computed once.
    """
    wanted = [weight for weight in weights if weight.requires_grad]
    # Asked here: inside an autograd.Function gradients are always disabled.
    slopes = torch.is_grad_enabled() and (bool(wanted) or hidden.requires_grad)
    found = _Piecewise.apply(loss, pieces, slopes, hidden, *wanted)
    return cast("tuple[Tensor, ...]", found)


class _Piecewise(torch.autograd.Function):
    """Autograd's view of `piecewise`: scalars whose gradient is known once their values are."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Piece,
        pieces: Sequence[slice],
        slopes: bool,
        hidden: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        grads = [torch.zeros_like(t) for t in (hidden, *weights)] if slopes else []
        sums: list[Tensor] = []
        for number, piece in enumerate(pieces):
            part = hidden[piece].detach().requires_grad_(slopes)
            with torch.set_grad_enabled(slopes):
                found = loss(part, number)
                first = found[0]
            sums.append(found.detach())
            if not first.requires_grad:
                continue
            each = torch.autograd.grad(first, (part, *weights), materialize_grads=True)
            del found, first
            grads[0][piece] = each[0]
            for total, more in zip(grads[1:], each[1:], strict=True):
                total += more
        ctx.save_for_backward(*grads)
        totals = tuple(each.clone() for each in torch.stack(sums).sum(0))  # no views
        ctx.mark_non_differentiable(*totals[1:])
        return totals

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *slopes: Tensor
    ) -> tuple[Tensor | None, ...]:
        grads = [grad * slopes[0].to(grad.dtype) for grad in ctx.saved_tensors]
        wanted = iter(grads)
        given = [next(wanted) if need else None for need in ctx.needs_input_grad[3:]]
        return None, None, None, *given
