"""Norms of sums of outer products without the sums."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Rows of a Gram product at a time. Small blocks leave out more of what symmetry gives; long
# sequences have enough of them in any case.
_BLOCK: Final = 32
_MANY_BLOCKS: Final = 8

Place = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


def squared_norms_of_products(
    x: Tensor, g: Tensor, of_x: "Gram | None" = None
) -> tuple[Tensor, Tensor]:
    """Squared norms of ``g[i].T @ x[i]``, and what the norms would be without cancellation.

    The squared norm is the sum over s and t of ``(x_s . x_t) (g_s . g_t)``, symmetric in s and t:
    only the blocks on and below the diagonal are computed.

    Args:
        x: (B, S, in), fp32 or fp64.
        g: (B, S, out), likewise.
        of_x: The Gram products of ``x``, where they are known.

    Returns:
        Squared norms (B,), which rounding may make wrong (even negative) where they are far below
        the square of the second: the sum over s of the norm of ``g_s`` times the norm of ``x_s``.

    Source: Li et al. 2022, "Large Language Models Can Be Strong Differentially Private Learners",
    section 4 (ghost clipping).
    """
    known = gram(x) if of_x is None else of_x
    squares, bounds = x.new_zeros(len(x)), x.new_zeros(len(x))
    start = 0
    for rows_of_x, rows_of_g in zip(known.rows, gram(g).rows, strict=True):
        both = rows_of_g.mul_(rows_of_x)  # (B, block, up to its end)
        squares += 2 * both.flatten(1).sum(dim=1) - both[:, :, start:].sum(dim=(1, 2))
        diagonal = both.diagonal(start, dim1=1, dim2=2)  # squares of the norms of g_s x_s
        bounds += diagonal.clamp(min=0).sqrt().sum(dim=1)
        start += both.shape[1]
    return squares, bounds


@dataclass(frozen=True)
class Gram:
    """``x[i] @ x[i].T``, on and below the diagonal, in blocks of rows."""

    rows: list[Tensor]  # (B, block, up to its end) each


def gram(x: Tensor) -> Gram:
    """Of ``x`` (B, S, features)."""
    length = x.shape[1]
    block = max(_BLOCK, length // _MANY_BLOCKS)
    ends = [min(start + block, length) for start in range(0, length, block)]
    return Gram([x[:, end - _size(end, block) : end] @ x[:, :end].mT for end in ends])


def _size(end: int, block: int) -> int:
    return (end - 1) % block + 1


class SharedGrams:
    """The Gram products of activations that several layers were given (query, key and value)."""

    def __init__(self) -> None:
        self._users: Counter[Place] = Counter()
        self._known: dict[Place, Gram] = {}

    def expect(self, x: Tensor) -> None:
        """One more call of ``of`` will be made for ``x``, which is kept until then."""
        self._users[_place(x)] += 1

    def of(self, x: Tensor, values: Tensor) -> Gram:
        """Of ``x``, whose ``values`` are in fp32 at least; kept while another call is expected."""
        place = _place(x)
        self._users[place] -= 1
        found = self._known.pop(place, None) or gram(values)
        if self._users[place] > 0:
            self._known[place] = found
        return found


def _place(x: Tensor) -> Place:
    """Where a tensor lies: two that live at the same time and lie there are one."""
    return x.data_ptr(), tuple(x.shape), tuple(x.stride()), x.dtype
