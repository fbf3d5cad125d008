"""Per-sample norms and clipped sums of what a tape recorded."""

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from privacy.clipping_rules import clipping_factors
from privacy.one_backward.gram import SharedGrams, squared_norms_of_products
from privacy.one_backward.tape import Dense, Lookup, Product, Use, wide

# Below this part of what it would be without cancellation, a Gram product is not trusted: what
# rounding leaves of it, some 2**-22 of the whole, stays below 2**-10 of the rest.
_CANCELLED: Final = 2.0**-12


def add_clipped(
    records: dict[nn.Parameter, list[Use]],
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
    *,
    rule: str = "flat",
    loss_scale: int = 1,
) -> None:
    """Adds the clipped gradients of a micro-batch to ``p.summed_grad`` and empties ``records``.

    Guarantees:
        Norms are those of ``privacy.clipping_rules``, in fp32, from the same rounded tensors that
        are summed; a weight with several uses has the norm of their sum. An example whose norm is
        not finite adds nothing: its records are masked, for zero times NaN is NaN.

    Args:
        records: The uses of each of ``parameters`` in one backward pass.
        parameters: All that are trained.
        max_grad_norm: L2 norm that bounds what each example adds.
        rule: One of ``CLIPPING_RULES``.
        loss_scale: How many times too large the records are: a power of two, so that undoing it
            on norms and factors is undoing it on the records, bit for bit.
    """
    grams = SharedGrams()
    terms = {p: _term(records.pop(p), p.shape, grams) for p in parameters}
    squares = torch.stack([term.squared_norms() for term in terms.values()])
    squares = squares / loss_scale**2
    factors, finite = clipping_factors(rule, squares, max_grad_norm)
    factors = factors / loss_scale
    all_finite = bool(finite.all())
    for parameter, weights in zip(parameters, factors, strict=True):
        term = terms.pop(parameter)  # memory falls as the sums are built
        if not all_finite:
            term.keep(finite)
        total = term.weighted_sum(weights, parameter.summed_grad)  # type: ignore[attr-defined]
        parameter.summed_grad = total  # type: ignore[attr-defined]


class _Term(Protocol):
    """One parameter's part of the per-sample gradients."""

    def squared_norms(self) -> Tensor:
        """(B,) in fp32."""

    def keep(self, finite: Tensor) -> None:
        """Sets the records of the other examples to zero."""

    def weighted_sum(self, factors: Tensor, onto: Tensor | None) -> Tensor:
        """The sum over examples times ``factors``, added in place to ``onto`` if there is one."""


def _term(uses: list[Use], shape: torch.Size, grams: SharedGrams) -> _Term:
    products = [use for use in uses if isinstance(use, Product)]
    lookups = [use for use in uses if isinstance(use, Lookup)]
    dense = [use.gradients for use in uses if isinstance(use, Dense)]
    uses.clear()
    matrix = _MatrixTerm(_joined_products(products), _joined_lookups(lookups), shape)
    if not dense:
        matrix.share(grams)
        return matrix
    if products or lookups:  # a matrix that is also the weight of a norm, say
        dense.append(torch.stack([matrix.instantiated(i) for i in range(len(dense[0]))]))
    return _DenseTerm(dense[0] if len(dense) == 1 else torch.stack(dense).sum(dim=0))


def _joined_products(uses: list[Product]) -> Product | None:
    if len(uses) < 2:
        return uses[0] if uses else None
    return Product(torch.cat([u.x for u in uses], dim=1), torch.cat([u.g for u in uses], dim=1))


def _joined_lookups(uses: list[Lookup]) -> Lookup | None:
    if len(uses) < 2:
        return uses[0] if uses else None
    return Lookup(torch.cat([u.ids for u in uses], dim=1), torch.cat([u.g for u in uses], dim=1))


class _DenseTerm:
    def __init__(self, gradients: Tensor) -> None:
        self._gradients = gradients

    def squared_norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self._gradients.flatten(1), dim=1)
        return norms.square()

    def keep(self, finite: Tensor) -> None:
        self._gradients = _masked(self._gradients, finite)

    def weighted_sum(self, factors: Tensor, onto: Tensor | None) -> Tensor:
        flat = self._gradients.flatten(1)
        if onto is None:
            return (flat.T @ factors).view(self._gradients.shape[1:])
        onto.view(-1).addmv_(flat.T, factors)
        return onto


class _Rows:
    """The gradient of lookups, each row of each example once: (R,), (R,) and (R, C)."""

    def __init__(self, lookup: Lookup, table: int) -> None:
        batch = len(lookup.ids)
        first = torch.arange(batch, device=lookup.ids.device).unsqueeze(1) * table
        distinct, where = torch.unique(lookup.ids + first, return_inverse=True)
        values = wide(lookup.g).flatten(0, 1)
        self.samples, self.ids = distinct // table, distinct % table
        self.values = values.new_zeros(len(distinct), values.shape[1])
        self.values.index_add_(0, where.flatten(), values)
        self._batch = batch

    def squared_norms(self) -> Tensor:
        squares = self.values.square().sum(dim=1)
        return squares.new_zeros(self._batch).index_add_(0, self.samples, squares)


class _MatrixTerm:
    """A matrix used in products, in lookups, or (a tied head) in both."""

    def __init__(self, product: Product | None, lookup: Lookup | None, shape: torch.Size) -> None:
        self._product, self._lookup, self._shape = product, lookup, shape
        self._rows = None if lookup is None else _Rows(lookup, shape[0])
        self._exact: dict[int, Tensor] = {}  # gradients of examples whose uses cancel out
        self._grams: SharedGrams | None = None

    def share(self, grams: SharedGrams) -> None:
        """Looks there for what another layer with the same activations has computed."""
        if self._product is not None:
            grams.expect(self._product.x)
            self._grams = grams

    def squared_norms(self) -> Tensor:
        """From a Gram product; an example that it is not accurate for is instantiated.

        Guarantees:
            What rounding may have taken from a norm is less than the slack of the mode.
        """
        if self._product is None:
            if self._rows is None:
                raise RuntimeError("a parameter without a use")
            return self._rows.squared_norms()
        x, g = wide(self._product.x), wide(self._product.g)
        known = None if self._grams is None else self._grams.of(self._product.x, x)
        squares, bounds = squared_norms_of_products(x, g, known)
        if self._rows is not None and self._lookup is not None:
            of_rows = self._rows.squared_norms()
            squares = squares + of_rows + 2 * _cross(self._product, self._lookup)
            bounds = bounds + of_rows.sqrt()
        doubtful = (squares < bounds.square() * _CANCELLED) & (bounds > 0)
        for sample in doubtful.nonzero().flatten().tolist():
            self._exact[sample] = self.instantiated(sample)
            squares[sample] = self._exact[sample].square().sum()
        return squares

    def instantiated(self, sample: int) -> Tensor:
        """The gradient of one example."""
        uses = [use for use in (self._product, self._lookup) if use is not None]
        gradient = wide(uses[0].g).new_zeros(self._shape)
        if self._product is not None:
            gradient = wide(self._product.g[sample]).T @ wide(self._product.x[sample])
        if self._lookup is not None:
            gradient.index_add_(0, self._lookup.ids[sample], wide(self._lookup.g[sample]))
        return gradient

    def keep(self, finite: Tensor) -> None:
        if self._product is not None:
            x, g = (_masked(t, finite) for t in (self._product.x, self._product.g))
            self._product = Product(x, g)
        if self._rows is not None:
            self._rows.values = _masked(self._rows.values, finite[self._rows.samples])
        self._exact = {i: gradient for i, gradient in self._exact.items() if finite[i]}

    def weighted_sum(self, factors: Tensor, onto: Tensor | None) -> Tensor:
        exact = list(self._exact)
        others = factors.index_fill(0, factors.new_tensor(exact, dtype=torch.int64), 0.0)
        if self._product is not None:
            onto = _add_products(self._product, others, onto)
        if onto is None:
            onto = factors.new_zeros(self._shape)
        if self._rows is not None:
            values = self._rows.values * others[self._rows.samples].unsqueeze(1)
            onto.index_add_(0, self._rows.ids, values)
        for sample in exact:
            onto.add_(self._exact.pop(sample) * factors[sample])
        return onto


def _cross(product: Product, lookup: Lookup) -> Tensor:
    """(B,): sum over s and t of ``g_head[s, id_t] * (x[s] . g_embedding[t])``."""
    shared = wide(product.x) @ wide(lookup.g).mT  # (B S T)
    where = lookup.ids.unsqueeze(1).expand(shared.shape)
    return (wide(product.g.gather(2, where)) * shared).sum(dim=(1, 2))


def _add_products(product: Product, factors: Tensor, onto: Tensor | None) -> Tensor:
    x, g = wide(product.x), wide(product.g)
    weights = factors.view(-1, 1, 1)
    if x.shape[2] <= g.shape[2]:  # the smaller of the two is scaled
        x = x * weights
    else:
        g = g * weights
    left, right = g.flatten(0, 1).T, x.flatten(0, 1)
    return left @ right if onto is None else onto.addmm_(left, right)


def _masked(tensor: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)
