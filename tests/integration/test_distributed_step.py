"""A round of several sites, without masks, is one step of DP-SGD on all their records at once."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from coordinator.central_step import CentralStep
from coordinator.strategies import Contribution
from core.parameters import to_arrays, trainable
from core.train import make_optimizer
from privacy.distributed import grid_of_order
from privacy.distributed_sum import clipped_sum
from privacy.random_source import RandomSource
from privacy.secure_aggregation.fixed_point import FixedPoint
from tests.support.distributed import distributed_order
from tests.support.private_training import SilentTask, tiny_model
from tests.support.tiny import TinyData, TinyTask

SITES = ("east", "north", "south", "west")
SIZES = (7, 3, 12, 5)
ALL_RECORDS = {"sample_rate": 1.0, "max_batch_size": 12, "noise_multiplier": 1e-6}


def opened(order: Any, task: TinyTask, survivors: int = 4) -> dict[str, np.ndarray]:
    """The sum of the first ``survivors`` sites, by name, as the coordinator decodes it."""
    grid, arrays = grid_of_order(order), to_arrays(tiny_model())
    total = np.zeros(grid.dimension, np.uint32)
    for number in range(survivors):
        one = clipped_sum(
            tiny_model(),
            task,
            TinyData.make(SIZES[number], seed=number),
            order=order.model_copy(update={"site": SITES[number]}),
            randomness=RandomSource.fresh(),
        )
        total += one.noised(len(SITES))
    values, start, named = FixedPoint(grid.step, grid.bits).decode(total), 0, {}
    for name in sorted(arrays):
        size = arrays[name].size
        named[name] = values[start : start + size].reshape(arrays[name].shape)
        start += size
    assert start == grid.dimension
    return named


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_a_round_is_a_step_on_the_union_of_the_records(settings: dict[str, Any]) -> None:
    order = distributed_order(members=SITES, constants=ALL_RECORDS, train=settings)
    config = order.terms.train
    step = CentralStep(tiny_model, config, sample_rate=1.0, num_rounds=3)
    sums = opened(order, TinyTask())
    found, _ = step.aggregate(
        {}, 1, to_arrays(tiny_model()), [Contribution("sum", sum(SIZES), sums)]
    )

    model = tiny_model()
    parameters = list(trainable(model).values())
    total = [torch.zeros_like(p) for p in parameters]
    for number, size in enumerate(SIZES):
        data = TinyData.make(size, seed=number)
        for index in range(size):
            one = data.fetch([index])
            loss = TinyTask().loss_per_example(model(one.tokens, one.attention_mask), one).sum()
            gradients = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += gradient * min(1.0, 0.5 / norm)
    optimizer = make_optimizer(model, config)
    for parameter, summed in zip(parameters, total, strict=True):
        parameter.grad = summed / sum(SIZES)
    optimizer.step()
    for name, expected in to_arrays(model).items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-4)
    clipped = sum(float(t.square().sum()) for t in total) ** 0.5
    assert clipped > 0.2 * 0.5 * sum(SIZES) / math.sqrt(sum(SIZES))  # there was something to sum


@pytest.mark.parametrize(("survivors", "honest"), [(4, 4), (3, 2)])
def test_the_noise_of_a_round_is_enough_when_sites_drop_out_and_collude(
    survivors: int, honest: int
) -> None:
    """Of the survivors' shares those of the honest ones alone; gradients are zero."""
    order = distributed_order(members=SITES, constants={"noise_multiplier": 0.8})
    planned = 0.8 * float(grid_of_order(order).sensitivity_steps) * grid_of_order(order).step
    values = np.concatenate(
        [
            array.reshape(-1)
            for _ in range(4)
            for array in opened(order, SilentTask(), survivors=honest).values()
        ]
    ).astype(np.float64)
    squares = float(np.square(values / planned).sum())
    low, high = stats.chi2.ppf([0.0005, 0.9995], values.size)
    if survivors == 3:  # the fewest, one of which colludes: just what was promised
        assert low < squares < high
        for wrong in (2 / 3, 3 / 2, math.sqrt(2 / 4)):
            assert not low < squares * wrong**2 < high
    else:  # nobody dropped out: twice the variance
        assert low < squares / 2 < high
