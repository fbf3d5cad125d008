"""Norms of sums of outer products without the sums."""

from typing import Final

from torch import Tensor

_BLOCK: Final = 64  # rows of a Gram product at a time


def squared_norms_of_products(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norms of ``g[i].T @ x[i]``, and what the norms would be without cancellation.

    The squared norm is the sum over s and t of ``(x_s . x_t) (g_s . g_t)``, symmetric in s and t:
    only the blocks on and below the diagonal are computed.

    Args:
        x: (B, S, in), fp32 or fp64.
        g: (B, S, out), likewise.

    Returns:
        Squared norms (B,), which rounding may make wrong (even negative) where they are far below
        the square of the second: the sum over s of the norm of ``g_s`` times the norm of ``x_s``.

    Source: Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners",
    section 4 (ghost clipping).
    """
    squares, bounds = x.new_zeros(len(x)), x.new_zeros(len(x))
    for start in range(0, x.shape[1], _BLOCK):
        end = start + _BLOCK
        both = x[:, start:end] @ x[:, :end].mT  # (B, block, up to end)
        of_g = g[:, start:end] @ g[:, :end].mT
        both.mul_(of_g)
        squares += 2 * both.flatten(1).sum(dim=1) - both[:, :, start:].sum(dim=(1, 2))
        diagonal = both.diagonal(start, dim1=1, dim2=2)  # squares of the norms of g_s x_s
        bounds += diagonal.clamp(min=0).sqrt().sum(dim=1)
    return squares, bounds
