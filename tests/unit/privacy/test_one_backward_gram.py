"""Gram products: exact at every length, and computed once for layers that share activations."""

import pytest
import torch
from torch import Tensor, nn

from privacy.one_backward import gram
from privacy.one_backward.clipping import add_clipped
from privacy.one_backward.gram import Gram, SharedGrams, squared_norms_of_products
from privacy.one_backward.tape import Product
from tests.support.clipped_sums import (
    clipped,
    distance,
    each_gradient,
    middle_clip,
    model_of,
    oracle,
    random_batch,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 100, 256, 300])
def test_norms_are_exact_at_every_length(length: int) -> None:
    x, g = normal(3, length, 7), normal(3, length, 5, seed=1)
    found, bounds = squared_norms_of_products(x, g)
    torch.testing.assert_close(found, (g.mT @ x).square().sum((1, 2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(bounds, (x.norm(dim=2) * g.norm(dim=2)).sum(1))


def test_an_empty_sequence_has_no_norm() -> None:
    found, bounds = squared_norms_of_products(torch.zeros(2, 0, 7), torch.zeros(2, 0, 5))
    assert found.tolist() == bounds.tolist() == [0.0, 0.0]


def test_no_more_than_the_blocks_up_to_the_diagonal_are_computed() -> None:
    blocks = gram.gram(normal(2, 128, 7)).rows
    assert [tuple(block.shape) for block in blocks] == [
        (2, 32, 32),
        (2, 32, 64),
        (2, 32, 96),
        (2, 32, 128),
    ]
    assert sum(one.shape[1] for one in gram.gram(normal(1, 1000, 2)).rows) == 1000


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What Gram products were computed of; every matrix gets them."""
    seen: list[Tensor] = []
    real = gram.gram

    def counted(x: Tensor) -> Gram:
        seen.append(x)
        return real(x)

    monkeypatch.setattr(gram, "gram", counted)
    monkeypatch.setattr("privacy.one_backward.tape._COST_OF_MEMORY", 10**9)
    return seen


def test_layers_of_the_same_input_share_its_gram_product(computed: list[Tensor]) -> None:
    model, batch = model_of(n_layer=2), random_batch(1, 4, 12)
    gradients = each_gradient(model, batch)
    clip = middle_clip(gradients)
    sums = clipped(model, batch, clip=clip)
    assert distance(sums, oracle(gradients, clip)) < 1e-5
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    shared = 2 + 1  # key and value with query, up with gate
    assert len(computed) == 2 * linear - 2 * shared


def test_activations_that_only_look_alike_share_nothing(
    computed: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same shape, or the same memory seen in another way."""
    x = normal(3, 4, 4)
    uses = [Product(left, normal(3, 4, 6, seed=2)) for left in (x, x, x.mT, x.clone())]

    def sums() -> Tensor:
        parameters = [nn.Parameter(torch.zeros(6, 4)) for _ in uses]
        for parameter in parameters:
            parameter.summed_grad = None  # type: ignore[attr-defined]
        records = {p: [use] for p, use in zip(parameters, uses, strict=True)}
        add_clipped(records, parameters, 1.0)  # type: ignore[arg-type]
        return torch.stack([p.summed_grad for p in parameters])  # type: ignore[attr-defined]

    each = torch.stack([use.g.mT @ use.x for use in uses], dim=1)  # (B, 4, 6, 4)
    factors = (1.0 / each.flatten(1).norm(dim=1)).clamp(max=1.0)
    expected = torch.einsum("i,i...->...", factors, each)
    torch.testing.assert_close(sums(), expected, rtol=1e-4, atol=1e-6)
    assert len(computed) == 4 + 3  # one of x for two
    monkeypatch.setattr(gram, "_place", lambda x: 0)  # what sharing too much would look like
    assert float((sums() - expected).norm()) > 1e-2


def test_gram_products_are_forgotten_after_their_last_use() -> None:
    grams, x = SharedGrams(), normal(2, 5, 3)
    for _ in range(2):
        grams.expect(x)
    first = grams.of(x, x)
    assert grams.of(x, x) is first
    grams.expect(x)
    assert grams.of(x, x) is not first
