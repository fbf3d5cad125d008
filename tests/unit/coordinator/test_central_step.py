"""One optimizer step on an opened sum: the optimizer's own, without anything kept in between."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.central_step import CentralStep
from coordinator.strategies import Contribution, StrategyState
from core.errors import CheckpointError, TrainingError
from core.parameters import freeze, to_arrays, trainable
from core.train import learning_rate, make_optimizer
from tests.support.private_training import tiny_model
from tests.support.tiny import train_config

ROUNDS = 5
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "beta2": 0.9, "weight_decay": 0.3},
}
Arrays = dict[str, np.ndarray]


def step_of(**train: Any) -> CentralStep:
    config = train_config(steps_per_round=1, schedule="cosine", warmup_steps=2, **train)
    return CentralStep(tiny_model, config, sample_rate=0.02, num_rounds=ROUNDS)


def sums_of(server_round: int, shapes: Arrays) -> Arrays:
    generator = np.random.default_rng(server_round)
    return {
        name: np.asarray(3 * generator.standard_normal(array.shape), np.float32)
        for name, array in sorted(shapes.items())
    }


def play(step: CentralStep) -> tuple[list[Arrays], StrategyState]:
    arrays, state, history = to_arrays(tiny_model()), {}, []
    for server_round in range(1, ROUNDS + 1):
        total = Contribution("sum", 400, sums_of(server_round, arrays))
        arrays, state = step.aggregate(state, server_round, arrays, [total])
        history.append(arrays)
    return history, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounds_are_steps_of_one_optimizer_that_lives_through_the_run(name: str) -> None:
    step = step_of(**OPTIMIZERS[name])
    history, _ = play(step)

    model = tiny_model()
    optimizer = make_optimizer(model, step.train)
    for server_round, found in enumerate(history, start=1):
        sums = sums_of(server_round, to_arrays(model))
        for key, parameter in trainable(model).items():
            parameter.grad = torch.from_numpy(sums[key]) / (0.02 * 400)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.train, server_round - 1, ROUNDS)
        optimizer.step()
        for key, expected in to_arrays(model).items():
            np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-6)


def test_moments_are_kept_under_the_names_of_their_parameters() -> None:
    names = set(trainable(tiny_model()))
    assert play(step_of())[1] == {}
    _, momentum = play(step_of(momentum=0.9))
    assert set(momentum) == {f"momentum_buffer/{name}" for name in names}
    _, adam = play(step_of(**OPTIMIZERS["adamw"]))
    kinds = ("step", "exp_avg", "exp_avg_sq")
    assert set(adam) == {f"{kind}/{name}" for kind in kinds for name in names}
    assert {float(array) for key, array in adam.items() if key.startswith("step/")} == {ROUNDS}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_a_pure_function(name: str) -> None:
    step = step_of(**OPTIMIZERS[name])
    history, state = play(step)
    arguments = (dict(state), history[-1], Contribution("sum", 400, sums_of(1, history[0])))
    before = [
        {key: array.tobytes() for key, array in part.items()}
        for part in (arguments[0], arguments[1], arguments[2].arrays)
    ]
    results = [step.aggregate(arguments[0], 4, arguments[1], [arguments[2]]) for _ in range(2)]
    for one, other in zip(results[0], results[1], strict=True):
        assert {k: v.tobytes() for k, v in one.items()} == {
            k: v.tobytes() for k, v in other.items()
        }
    after = [
        {key: array.tobytes() for key, array in part.items()}
        for part in (arguments[0], arguments[1], arguments[2].arrays)
    ]
    assert after == before
    anew, _ = step.aggregate({}, 4, arguments[1], [arguments[2]])
    same = all(np.array_equal(anew[key], results[0][0][key]) for key in anew)
    assert same == (name == "sgd")  # the state matters where there is one


def test_the_same_model_may_be_lent_at_every_call() -> None:
    lent = tiny_model(seed=9)
    step = step_of(**OPTIMIZERS["adamw"])
    one = CentralStep(lambda: lent, step.train, step.sample_rate, step.num_rounds)
    for found, expected in zip(play(one)[0], play(step)[0], strict=True):
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_the_denominator_is_the_public_size_of_the_sites_in_the_sum() -> None:
    """Half the sites with half the gradients take the same step."""
    arrays = to_arrays(tiny_model())
    sums = sums_of(1, arrays)
    step = step_of()

    def moved(*parts: Contribution) -> Arrays:
        after, _ = step.aggregate({}, 1, arrays, list(parts))
        return {key: after[key] - arrays[key] for key in arrays}

    whole = moved(Contribution("sum", 400, sums))
    half = {key: array / 2 for key, array in sums.items()}
    for other in (
        moved(Contribution("sum", 200, half)),
        moved(Contribution("a", 100, half), Contribution("b", 300, half)),
    ):
        for key in arrays:
            np.testing.assert_allclose(other[key], whole[key], rtol=0, atol=1e-6)
    wrong = moved(Contribution("sum", 400, half))
    assert any(np.abs(wrong[key] - whole[key]).max() > 1e-3 for key in arrays)


def test_matrices_alone_decay() -> None:
    step = step_of(weight_decay=0.5, optimizer="adamw")
    arrays = to_arrays(tiny_model())
    nothing = {key: np.zeros_like(array) for key, array in arrays.items()}
    after, _ = step.aggregate({}, 2, arrays, [Contribution("sum", 400, nothing)])
    shrunk = {key for key in arrays if not np.array_equal(after[key], arrays[key])}
    assert shrunk == {"mix.weight", "head.weight"}


def test_frozen_parameters_take_no_part() -> None:
    def build() -> nn.Module:
        model = tiny_model()
        freeze(model, ("embed",))
        return model

    step = CentralStep(build, train_config(steps_per_round=1), 0.02, ROUNDS)
    arrays = to_arrays(build())
    assert "embed.weight" not in arrays
    after, _ = step.aggregate({}, 1, arrays, [Contribution("sum", 400, sums_of(1, arrays))])
    assert after.keys() == arrays.keys()


# Refusals


def aggregate(
    change: Callable[[Arrays], Arrays], state: StrategyState | None = None, weight: int = 400
) -> None:
    arrays = to_arrays(tiny_model())
    total = Contribution("sum", weight, change(sums_of(1, arrays)))
    step_of(optimizer="adamw").aggregate(state or {}, 1, arrays, [total])


def test_nothing_to_step_on_is_an_error() -> None:
    with pytest.raises(TrainingError, match="expected an opened sum to take a step on, got none"):
        step_of().aggregate({}, 1, to_arrays(tiny_model()), [])
    with pytest.raises(TrainingError, match="expected a batch of some public size, got 0"):
        aggregate(dict, weight=0)


def test_a_sum_over_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a sum over the trained parameters, got one over"):
        aggregate(lambda sums: {key: sums[key] for key in sums if key != "mix.bias"})
    with pytest.raises(CheckpointError, match="expected a sum for mix.bias of shape"):
        aggregate(lambda sums: sums | {"mix.bias": np.zeros(7, np.float32)})


@pytest.mark.parametrize(
    "state",
    [
        {"exp_avg/other": np.zeros(6, np.float32)},
        {"exp_avg/mix.bias": np.zeros(7, np.float32)},
        {"nonsense": np.zeros(6, np.float32)},
    ],
)
def test_the_state_of_another_model_is_refused(state: StrategyState) -> None:
    with pytest.raises(CheckpointError, match="expected the state of a trained parameter, got"):
        aggregate(dict, state)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(TrainingError, match="expected finite weights after round 1, got NaN"):
        aggregate(lambda sums: sums | {"mix.bias": np.full(6, bad, np.float32)})
