"""A site's part of a step over all sites: the naive clipped sum on the grid, and nothing else."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.errors import (
    CohortTooSmallError,
    LossContractError,
    OutOfOrderError,
    PrivacyError,
    UnsupportedLayerError,
)
from core.messages import TrainTask
from core.tasks.interface import Batch
from privacy.distributed import grid_of_order
from privacy.distributed_sum import ClippedSum, clipped_sum
from privacy.dp_sgd import PrivateData
from privacy.gradient_modes import GRADIENT_MODES
from privacy.random_source import RandomSource
from tests.support.distributed import TINY_DIMENSION, distributed_order
from tests.support.private_training import PoisonedTask, Watched, flat, known_source, tiny_model
from tests.support.tiny import TinyData, TinyTask

MODES = ("hooks", "ghost", "one_backward")


def summed(
    order: TrainTask,
    data: PrivateData,
    *,
    model: nn.Module | None = None,
    task: TinyTask | None = None,
    source: RandomSource | None = None,
    executed: Any = lambda _: None,
) -> ClippedSum:
    return clipped_sum(
        model or tiny_model(),
        task or TinyTask(),
        data,
        order=order,
        randomness=source or known_source(),
        executed=executed,
    )


def steps_of(result: ClippedSum, order: TrainTask, *, cohort: int = 4) -> Any:
    """What was summed, without the test key's noise, in steps."""
    values = result.noised(cohort)
    grid = grid_of_order(order)
    noise = np.zeros_like(values)
    grid.add_noise(noise, known_source().stream("noise"), cohort=cohort)
    return (values - noise).view(np.int32).astype(np.float64)


def naive(order: TrainTask, data: PrivateData, task: TinyTask, **shape: Any) -> Tensor:
    """By hand, example by example in double precision, by sorted name, in steps."""
    constants, privacy = order.dp_sgd, order.terms.privacy
    assert constants is not None
    source = known_source()
    chosen = source.stream("sampling").bernoulli(len(data), constants.sample_rate)
    slack = GRADIENT_MODES[privacy.gradient_mode].slack(order.terms.train)
    model = tiny_model(**shape).double()
    named = dict(sorted(model.named_parameters()))
    total = torch.zeros(sum(p.numel() for p in named.values()), dtype=torch.float64)
    for index in chosen.tolist():
        one = data.fetch([index])
        loss = task.loss_per_example(model(one.tokens, one.attention_mask), one).sum()
        gradients = torch.autograd.grad(loss, list(named.values()))
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        norm = float(gradient.norm())
        if math.isfinite(norm):
            total += gradient * min(1.0, privacy.max_grad_norm * (1 - slack) / (norm + 1e-6))
    return total / grid_of_order(order).step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_sum_is_the_naive_one_in_every_gradient_mode(mode: str, size: int) -> None:
    order = distributed_order(privacy={"gradient_mode": mode}, train={"micro_batch_size": size})
    data = TinyData.make(20)
    found = steps_of(summed(order, data), order)
    expected = naive(order, data, TinyTask()).numpy()
    assert np.abs(expected).max() * grid_of_order(order).step > 0.1
    clip_steps = 0.5 / grid_of_order(order).step
    # fp32, and ghost's coarser norms; of the clip.
    tolerance = {"ghost": 2e-3}.get(mode, 2e-6) * clip_steps
    assert np.abs(found - expected).max() < tolerance
    assert np.abs(found * 1.01 - expected).max() > 2 * tolerance  # another clip would show


@pytest.mark.parametrize("rule", ["per_layer", "automatic"])
def test_other_rules_keep_the_bound(rule: str) -> None:
    order = distributed_order(
        privacy={"clipping": rule}, constants={"sample_rate": 1.0}, train={"micro_batch_size": 1}
    )
    found = steps_of(summed(order, TinyData.make(1)), order)
    norm = float(np.linalg.norm(found)) * grid_of_order(order).step
    assert 0.2 < norm <= 0.5 + math.sqrt(TINY_DIMENSION) * grid_of_order(order).step / 2


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_batch_is_noise_alone(mode: str) -> None:
    order = distributed_order(privacy={"gradient_mode": mode}, constants={"sample_rate": 1e-9})
    counted: list[int] = []
    result = summed(order, TinyData.make(5), executed=counted.append)
    assert not steps_of(result, order).any()
    assert counted == [1]


@pytest.mark.parametrize("mode", MODES)
def test_an_example_without_a_finite_gradient_changes_nothing_for_the_others(mode: str) -> None:
    data = TinyData.make(8, fixed_length=5)
    data.examples[3].tokens[:2] = [16, 16]  # type: ignore[index]
    order = distributed_order(privacy={"gradient_mode": mode}, constants={"sample_rate": 1.0})
    found = steps_of(summed(order, data, task=PoisonedTask()), order)
    expected = naive(order, data, PoisonedTask()).numpy()
    clip_steps = 0.5 / grid_of_order(order).step
    assert np.abs(found - expected).max() < 2e-3 * clip_steps


def test_batches_are_cut_at_the_size_that_was_planned() -> None:
    sizes: list[int] = []

    class Counted(TinyData):
        def fetch(self, indices: Sequence[int]) -> Batch:
            sizes.append(len(indices))
            return super().fetch(indices)

    order = distributed_order(
        constants={"sample_rate": 1.0, "max_batch_size": 7}, train={"micro_batch_size": 100}
    )
    summed(order, Counted(TinyData.make(30).examples))
    assert sizes == [7]


@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_as_it_was_and_holds_no_gradient(mode: str) -> None:
    model = tiny_model()
    before = flat(model)
    summed(distributed_order(privacy={"gradient_mode": mode}), TinyData.make(20), model=model)
    assert torch.equal(flat(model), before)
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not {"summed_grad", "grad_sample", "_norm_sample"} & set(parameter.__dict__)
    assert not any(module._forward_hooks for module in model.modules())


def test_an_error_leaves_no_gradient_and_tells_that_nothing_ran() -> None:
    model, counted = tiny_model(), list[int]()
    order = distributed_order(constants={"sample_rate": 1.0})
    with pytest.raises(OSError, match="the disk is gone"):
        summed(order, Watched(model, 9, fail_at=2), model=model, executed=counted.append)
    assert counted == [0]
    assert all(not {"summed_grad"} & set(p.__dict__) for p in model.parameters())


def test_sampling_and_noise_follow_from_the_source_alone() -> None:
    order, data = distributed_order(), TinyData.make(20)

    def noised(source: RandomSource, seed: int) -> Any:
        torch.manual_seed(seed)
        return summed(order, data, source=source).noised(4)

    assert np.array_equal(noised(known_source(), 1), noised(known_source(), 2))
    assert not np.array_equal(noised(known_source(), 1), noised(known_source("another"), 1))
    fresh = [noised(RandomSource.fresh(), 1) for _ in range(2)]
    assert not np.array_equal(fresh[0], fresh[1])
    spent = known_source()
    noised(spent, 1)
    with pytest.raises(PrivacyError, match="was already used in this round"):
        noised(spent, 1)


# What the sum lets out


def test_a_sum_is_given_out_once_with_its_noise() -> None:
    order = distributed_order()
    result = summed(order, TinyData.make(20))
    noise = result.noised(4).view(np.int32).astype(np.float64)
    planned = 0.8 * float(grid_of_order(order).sensitivity_steps) / math.sqrt(2)
    assert noise.std() > 0.7 * planned
    with pytest.raises(OutOfOrderError, match="a clipped sum that waits for its mask, got none"):
        result.noised(4)


def test_a_cohort_that_is_refused_ends_the_sum() -> None:
    held = np.arange(TINY_DIMENSION, dtype=np.uint32)
    order = distributed_order()
    result = ClippedSum(grid_of_order(order), held, known_source().stream("noise"))
    with pytest.raises(CohortTooSmallError, match="got 2"):
        result.noised(2)
    assert not held.any()
    with pytest.raises(OutOfOrderError):
        result.noised(4)


def test_a_wiped_sum_is_gone_and_no_copy_is_made() -> None:
    held = np.arange(TINY_DIMENSION, dtype=np.uint32)
    result = ClippedSum(grid_of_order(distributed_order()), held, known_source().stream("noise"))
    assert repr(result) == "ClippedSum(values=***)"
    for make_copy in (copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="expected a clipped sum to stay where"):
            make_copy(result)
    result.wipe()
    result.wipe()
    assert not held.any()
    with pytest.raises(OutOfOrderError):
        result.noised(4)


# What is refused


@pytest.mark.parametrize("count", [0, 51])
def test_a_data_set_that_the_accounting_does_not_cover_is_refused(count: int) -> None:
    order = distributed_order(constants={"max_examples": 50})
    with pytest.raises(PrivacyError, match="expected between 1 and 50 records"):
        summed(order, TinyData.make(count))


def test_a_model_of_another_size_is_refused() -> None:
    order = distributed_order(dimension=TINY_DIMENSION - 1)
    with pytest.raises(PrivacyError, match="expected 466 trained parameters.*got 467"):
        summed(order, TinyData.make(9))


def test_guards_and_rehearsal_come_before_the_records() -> None:
    class Coupled(TinyTask):
        def loss_per_example(self, logits: Tensor, batch: Batch) -> Tensor:
            return super().loss_per_example(logits, batch) / len(batch)

    model = tiny_model()
    watched = Watched(model, 9)
    with pytest.raises(LossContractError, match="the same in a batch and alone"):
        summed(distributed_order(), watched, model=model, task=Coupled())
    tied = tiny_model(tied=True)
    dimension = sum(p.numel() for p in tied.parameters())
    order = distributed_order(dimension=dimension, privacy={"gradient_mode": "ghost"})
    with pytest.raises(UnsupportedLayerError, match="expected untied weights"):
        summed(order, watched, model=tied)
    assert watched.weights == []


def test_local_constants_are_not_taken_for_distributed_ones() -> None:
    order = distributed_order()
    privacy = order.terms.privacy.model_copy(update={"mode": "local"})
    local = order.model_copy(update={"terms": order.terms.model_copy(update={"privacy": privacy})})
    with pytest.raises(PrivacyError, match="expected privacy constants in mode distributed"):
        summed(local, TinyData.make(9))
