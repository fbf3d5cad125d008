"""Per-sample norms and clipped sums with shapes that no value decides: one graph.

What ``privacy.one_backward.clipping`` decides by looking at values is decided here for all: every
example is masked, and a norm is raised by what rounding may have taken from it, in place of an
exact second look at the few for which that matters.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from privacy.clipping_rules import clipping_factors
from privacy.one_backward.functional_layers import Site
from privacy.one_backward.tape import rows, wide

# Of the square that a sum of products would have without cancellation: rounding takes some 2**-22
# of it from a Gram product, and what is summed has rounded as well.
_ROUNDING: Final = 2.0**-21
# A number written to memory and read again costs as much as so many multiplications.
_COST_OF_MEMORY: Final = 64
# Instantiated gradients that are kept from the norms to the sums.
_BUDGET_BYTES: Final = {"cuda": 2**30, "cpu": 2**26}

_UPPER_HALF: Final = -(2**16)  # of 32 bits: sign, exponent and what bf16 has of the rest

Pair = tuple[Tensor, Tensor]


def clipped_sums(
    sites: Sequence[Site],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    counted: Tensor,
    rule: str,
    clip: Tensor,
    loss_scale: int,
) -> list[Tensor]:
    """The sum of each parameter's clipped per-sample gradients, in fp32 at least.

    Guarantees:
        Norms and factors are those of ``privacy.clipping_rules``, of norms that are never too
        small and too large by a factor of at most ``1 + 2**-22 r**2``, where ``r`` is what the
        norm would be without cancellation over what it is. An example that is not ``counted``,
        or whose norm is not finite, adds nothing. No value decides a shape or a branch.

    Args:
        sites: Of each call of a layer.
        inputs: Recorded by each call.
        gradients: Of the output of each call, ``loss_scale`` times too large.
        shapes: Of the trained parameters.
        counted: (B,) bool; the others fill a batch up.
        rule: One of ``CLIPPING_RULES``.
        clip: The bound, a number.
        loss_scale: A power of two.
    """
    terms = [_Term(len(counted), shape) for shape in shapes]
    for site, x, g in zip(sites, inputs, gradients, strict=True):
        _use(terms, site, x, g)
    budget = _BUDGET_BYTES.get(counted.device.type, 0)
    for term in terms:
        budget = term.prepare(budget)
    squares = torch.stack([term.squared_norms() for term in terms]) / loss_scale**2
    factors, finite = clipping_factors(rule, squares, clip)  # type: ignore[arg-type]
    keep = finite & counted
    factors = torch.where(keep, factors, 0.0) / loss_scale
    return [term.weighted_sum(f, keep) for term, f in zip(terms, factors, strict=True)]


def _use(terms: Sequence["_Term"], site: Site, x: Tensor, g: Tensor) -> None:
    if site.bias is not None:
        terms[site.bias].dense.append(wide(rows(g, site.features)).sum(dim=1))
    if site.weight is None:
        return
    term = terms[site.weight]
    if site.kind == "product":
        term.products.append((rows(x, 1), rows(g, 1)))
    elif site.kind == "lookup":
        term.lookups.append((rows(x, 0).squeeze(2), rows(g, 1)))
    else:
        term.dense.append(rows(wide(g) * x, site.features).sum(dim=1))


class _Term:
    """One parameter's part of the per-sample gradients."""

    def __init__(self, batch: int, shape: torch.Size) -> None:
        self._batch, self._shape = batch, shape
        self.products: list[Pair] = []  # (B, S, in) and (B, S, out)
        self.lookups: list[Pair] = []  # (B, S) and (B, S, C)
        self.dense: list[Tensor] = []  # (B, numel)
        self._whole: Tensor | None = None

    def prepare(self, budget: int) -> int:
        """Instantiates the gradients where that is all there is, or cheap; what is left over."""
        if self.dense:
            self._whole = sum(self.dense[1:], start=self.dense[0])
            return budget
        self.products, self.lookups = _joined(self.products), _joined(self.lookups)
        if not self.products or self.lookups:
            return budget
        ((x, g),) = self.products
        if not instantiating_pays(x.shape[1], x.shape[2], g.shape[2]):
            return budget
        size = 4 * self._batch * self._shape.numel()
        if size > budget:
            return budget
        self._whole = product(g.mT, x).flatten(1)
        return budget - size

    def squared_norms(self) -> Tensor:
        """(B,), raised by what rounding may have taken."""
        if self._whole is not None:
            return self._whole.square().sum(dim=1)
        squares = bounds = None
        for x, g in self.products:
            squares, bounds = _squares_of_products(x, g)
        for ids, g in self.lookups:
            of_rows = product(_same_row(ids).to(wide(g).dtype), wide(g)).square().sum(dim=(1, 2))
            if squares is None or bounds is None:
                return of_rows  # instantiated: nothing cancels
            squares = squares + of_rows + 2 * _cross(*self.products[0], ids, g)
            bounds = bounds + of_rows.sqrt()
        if squares is None or bounds is None:
            raise RuntimeError("a parameter without a use")
        return squares.clamp(min=0) + _ROUNDING * bounds.square()

    def weighted_sum(self, factors: Tensor, keep: Tensor) -> Tensor:
        """The sum over examples times ``factors``; zero times NaN is NaN, so the rest is masked."""
        if self._whole is not None:
            whole = torch.where(keep.unsqueeze(1), self._whole, 0.0)
            return (whole.T @ factors.to(whole.dtype)).view(self._shape)
        here = keep.view(-1, 1, 1)
        total = None
        for x, g in self.products:
            x, g = torch.where(here, x, 0), torch.where(here, g, 0)
            total = sum_of_products(x, g, factors)
        for ids, g in self.lookups:
            values = torch.where(here, wide(g), 0) * factors.view(-1, 1, 1)
            if total is None:
                total = values.new_zeros(self._shape)
            total = total.index_add(0, ids.flatten(), values.flatten(0, 1))
        if total is None:
            raise RuntimeError("a parameter without a use")
        return total


def instantiating_pays(length: int, width: int, out: int) -> bool:
    """Whether per-sample gradients are cheaper than Gram products."""
    return length * length * (width + out) > (length + _COST_OF_MEMORY) * width * out


def product(left: Tensor, right: Tensor) -> Tensor:
    """(B, M, K) times (B, K, N), of the rounded tensors as they are, in fp32 at least.

    A product of two bf16 or fp16 numbers is exact in fp32; a GPU's matrix units add them in it.
    """
    if left.is_cuda and left.dtype == right.dtype and left.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return wide(left) @ wide(right)


def sum_of_products(x: Tensor, g: Tensor, factors: Tensor) -> Tensor:
    """The sum of ``factors[i] * g[i].T @ x[i]``, in fp32 at least.

    On a GPU in bf16, where matrix units take no fp32: the scaled operand is split in two, which
    leaves 2**-16 of it. With what norms are raised by, that takes no example past the clip by more
    than 2**-11 of it.
    """
    weights = factors.view(-1, 1, 1)
    smaller = x.shape[2] <= g.shape[2]
    scaled, other = (wide(x) * weights, g) if smaller else (wide(g) * weights, x)
    scaled, other = scaled.flatten(0, 1), other.flatten(0, 1)
    if other.is_cuda and other.dtype == torch.bfloat16:
        parts = split_in_two(scaled)
        both = [torch.mm(other.T, part, out_dtype=torch.float32) for part in parts]
        total = both[0] + both[1]
    else:
        total = wide(other).T @ scaled
    return total if smaller else total.T


def split_in_two(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Two bf16 tensors whose sum is ``scaled``, fp32, but for 2**-16 of each number.

    By bits: a compiler may leave out a rounding to bf16 and back, and the second would be zero.
    """
    high = (scaled.view(torch.int32) & _UPPER_HALF).view(torch.float32)
    return high.to(torch.bfloat16), (scaled - high).to(torch.bfloat16)


def _squares_of_products(x: Tensor, g: Tensor) -> Pair:
    """Squared norms of ``g[i].T @ x[i]``, and what the norms would be without cancellation."""
    bounds = (wide(x).norm(dim=2) * wide(g).norm(dim=2)).sum(dim=1)
    if instantiating_pays(x.shape[1], x.shape[2], g.shape[2]):
        return product(g.mT, x).square().sum(dim=(1, 2)), bounds
    return (product(x, x.mT) * product(g, g.mT)).sum(dim=(1, 2)), bounds


def _same_row(ids: Tensor) -> Tensor:
    """(B, S, S): [i, s, t] where t holds the id that stands first at s. Sums each row once."""
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    first = same.int().argmax(dim=2)  # of each position, the first with the same id
    places = torch.arange(ids.shape[1], device=ids.device)
    return first.unsqueeze(1) == places.view(1, -1, 1)


def _cross(x: Tensor, g: Tensor, ids: Tensor, of_rows: Tensor) -> Tensor:
    """(B,): sum over s and t of ``g[s, id_t] * (x[s] . of_rows[t])``."""
    shared = wide(x) @ wide(of_rows).mT  # (B S T)
    where = ids.unsqueeze(1).expand(shared.shape)
    return (wide(g.gather(2, where)) * shared).sum(dim=(1, 2))


def _joined(pairs: list[Pair]) -> list[Pair]:
    if len(pairs) < 2:
        return pairs
    return [(torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs], dim=1))]
