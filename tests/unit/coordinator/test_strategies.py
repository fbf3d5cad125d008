import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from coordinator.flower import instruction
from coordinator.strategies import Contribution, FlowerStrategy, StrategyState, build_strategy
from core.config import StrategySection
from core.digests import arrays_digest
from core.errors import ConfigError, TrainingError

NAMES = ("a", "b", "scalar")
Weights = dict[str, np.ndarray]


def _weights(seed: int) -> Weights:
    generator = np.random.default_rng(seed)
    return {
        "a": generator.standard_normal((2, 3), dtype=np.float32),
        "b": generator.standard_normal(5, dtype=np.float32),
        "scalar": np.array(generator.standard_normal(), np.float32),
    }


def _contributions(server_round: int) -> list[Contribution]:
    sizes = {"north": 100, "south": 300, "west": 50}
    return [
        Contribution(site, size, _weights(10 * server_round + index))
        for index, (site, size) in enumerate(sizes.items())
    ]


def _mean(contributions: list[Contribution], name: str) -> np.ndarray:
    total = sum(c.weight for c in contributions)
    result = np.zeros_like(contributions[0].arrays[name])
    for item in contributions:
        result = result + item.arrays[name] * (item.weight / total)
    return result


def _play(section: StrategySection, rounds: int) -> tuple[list[Weights], StrategyState]:
    strategy, state, arrays = build_strategy(section), {}, _weights(0)
    history = [arrays]
    for server_round in range(1, rounds + 1):
        arrays, state = strategy.aggregate(
            state, server_round, arrays, _contributions(server_round)
        )
        history.append(arrays)
    return history, state


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_fedavg_and_fedprox_are_the_mean_weighted_by_public_size(name: Any) -> None:
    history, state = _play(StrategySection(name=name, proximal_mu=0.1), 2)

    for parameter in NAMES:
        expected = _mean(_contributions(2), parameter)
        np.testing.assert_allclose(history[2][parameter], expected, rtol=1e-6, atol=1e-7)
    assert state == {}


def test_fedavgm_is_sgd_with_momentum_on_the_mean() -> None:
    history, _ = _play(
        StrategySection(name="fedavgm", server_momentum=0.8, server_learning_rate=0.5), 3
    )

    for parameter in NAMES:
        weights, momentum = _weights(0)[parameter], 0.0
        for server_round in (1, 2, 3):
            gradient = weights - _mean(_contributions(server_round), parameter)
            momentum = gradient + (0.8 * momentum if server_round > 1 else 0.0)
            weights = weights - 0.5 * momentum
        np.testing.assert_allclose(history[3][parameter], weights, rtol=1e-5, atol=1e-6)


def _adam(v: Any, d: Any, server_round: int) -> tuple[Any, float]:
    correction = np.sqrt(1 - 0.95 ** (server_round + 1)) / (1 - 0.7 ** (server_round + 1))
    return 0.95 * v + 0.05 * d**2, float(correction)


def _yogi(v: Any, d: Any, server_round: int) -> tuple[Any, float]:
    return v - 0.05 * d**2 * np.sign(v - d**2), 1.0


@pytest.mark.parametrize(("name", "second_moment"), [("fedadam", _adam), ("fedyogi", _yogi)])
def test_fedadam_and_fedyogi_follow_their_paper(
    name: Any, second_moment: Callable[..., Any]
) -> None:
    section = StrategySection(name=name, server_learning_rate=0.1, beta1=0.7, beta2=0.95, tau=0.01)
    history, _ = _play(section, 3)

    for parameter in NAMES:
        weights = _weights(0)[parameter].astype(np.float64)
        m, v = 0.0, np.zeros_like(weights)
        for server_round in (1, 2, 3):
            delta = _mean(_contributions(server_round), parameter) - weights
            m = 0.7 * m + 0.3 * delta
            v, correction = second_moment(v, delta, server_round)
            weights = weights + 0.1 * correction * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(history[3][parameter], weights, rtol=1e-4, atol=1e-5)


ALL = [
    StrategySection(name="fedavg"),
    StrategySection(name="fedprox", proximal_mu=0.1),
    StrategySection(name="fedavgm", server_momentum=0.9),
    StrategySection(name="fedavgm", server_momentum=0.0, server_learning_rate=0.5),
    StrategySection(name="fedadam", server_learning_rate=0.1),
    StrategySection(name="fedyogi", server_learning_rate=0.1),
]
IDS = [f"{section.name}-{section.server_momentum:g}" for section in ALL]


@pytest.mark.parametrize("section", ALL, ids=IDS)
def test_the_result_is_fp32_of_the_same_shapes(section: StrategySection) -> None:
    history, _ = _play(section, 2)

    for name, array in history[2].items():
        assert array.dtype == np.float32
        assert array.shape == history[0][name].shape


@pytest.mark.parametrize("section", ALL, ids=IDS)
def test_the_order_of_arrival_changes_no_bit(section: StrategySection) -> None:
    strategy = build_strategy(section)
    ordered = _contributions(1)

    one, _ = strategy.aggregate({}, 1, _weights(0), ordered)
    two, _ = strategy.aggregate({}, 1, _weights(0), ordered[::-1])

    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}


@pytest.mark.parametrize("section", ALL, ids=IDS)
def test_aggregation_changes_no_argument_and_keeps_nothing(section: StrategySection) -> None:
    strategy = build_strategy(section)
    _, state = strategy.aggregate({}, 1, _weights(0), _contributions(1))
    arguments = (state, 2, _weights(7), _contributions(2))
    before = copy.deepcopy(arguments)

    first = strategy.aggregate(*arguments)
    second = strategy.aggregate(*arguments)

    for got, expected in (
        (arguments[0], before[0]),
        (arguments[2], before[2]),
        (first[0], second[0]),
    ):
        assert {k: v.tobytes() for k, v in got.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }
    for got, expected in zip(arguments[3], before[3], strict=True):
        assert all(np.array_equal(got.arrays[name], expected.arrays[name]) for name in NAMES)


@pytest.mark.parametrize("section", ALL[2:], ids=IDS[2:])
def test_the_state_matters_from_round_two_where_there_is_one(section: StrategySection) -> None:
    _, state = _play(section, 1)
    strategy = build_strategy(section)

    with_state, _ = strategy.aggregate(state, 2, _weights(3), _contributions(2))
    without, _ = strategy.aggregate({}, 2, _weights(3), _contributions(2))

    assert bool(state) == (not np.array_equal(with_state["a"], without["a"]))


def test_nothing_to_aggregate_is_an_error() -> None:
    with pytest.raises(TrainingError, match="expected at least one usable reply"):
        build_strategy(StrategySection()).aggregate({}, 1, _weights(0), [])


def test_a_sum_that_overflows_stops_the_run() -> None:
    huge = {name: np.full_like(array, 3e38) for name, array in _weights(0).items()}
    section = StrategySection(name="fedavgm", server_learning_rate=10.0)

    with (
        np.errstate(over="ignore"),
        pytest.raises(TrainingError, match="expected finite weights after round 1") as caught,
    ):
        build_strategy(section).aggregate({}, 1, _weights(0), [Contribution("north", 1, huge)])
    assert "max_update_norm" in caught.value.hint


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_moment_that_is_infinite_is_refused_and_does_not_stop_the_weights(name: str) -> None:
    """Weights stay finite then: what is divided by infinity is 0, in every later round."""
    strategy = build_strategy(StrategySection(name=name))  # type: ignore[arg-type]
    start = {"w": np.zeros(3, np.float32)}
    huge = Contribution("north", 1, {"w": np.full(3, 1e25, np.float32)})
    with np.errstate(over="ignore"), pytest.raises(TrainingError, match="infinity in v_t/w"):
        strategy.aggregate({}, 1, start, [huge])


def test_the_mean_is_flower_s_own_bit_for_bit() -> None:
    """Also of numbers that round, of signs of zero and of arrays longer than a block."""
    generator = np.random.default_rng(3)
    shapes = {"big": (3, 40_001), "empty": (0, 2), "one": (), "turned": (5, 7)}

    def weights() -> Weights:
        arrays = {
            name: np.asarray(
                generator.standard_normal(shape) * 10.0 ** generator.integers(-42, 17), np.float32
            )
            for name, shape in shapes.items()
        }
        arrays["big"][0, :9] = -0.0
        return arrays | {"turned": arrays["turned"].T}

    given = [Contribution(f"site{n}", 3 * n + 1, weights()) for n in range(7)]

    ours, _ = build_strategy(StrategySection(name="fedavg")).aggregate({}, 1, weights(), given)

    theirs, _ = FedAvg().aggregate_train(1, [_message(item) for item in given])
    assert theirs is not None
    expected = {name: array.numpy() for name, array in theirs.items()}
    assert arrays_digest(ours) == arrays_digest(expected)
    assert np.signbit(ours["big"][0, :9]).all()


def _message(item: Contribution) -> Message:
    record = ArrayRecord({name: Array(array) for name, array in item.arrays.items()})
    metrics = MetricRecord({"num-examples": item.weight})
    return instruction(
        RecordDict({"arrays": record, "metrics": metrics}),
        run_id=0,
        message_id="",
        dst_node_id=0,
        message_type=MessageType.TRAIN,
    )


# Strategies that bear lying sites

ROBUST = [
    StrategySection(name="fedmedian"),
    StrategySection(name="krum", num_malicious_nodes=1),
]
LIES = {
    "far away": 1e6,
    "beyond fp32's squares": 1e30,
    "turned round": -5.0,
    "twice as far": 2.0,
}


def _honest(count: int, scale: float = 0.1) -> list[Contribution]:
    """Sites that moved about alike from the same weights."""
    start, common = _weights(0), _weights(1)
    return [
        Contribution(
            f"site{n}",
            100,
            {
                name: np.asarray(
                    start[name] + scale * common[name] + scale / 10 * _weights(50 + n)[name],
                    np.float32,
                )
                for name in NAMES
            },
        )
        for n in range(count)
    ]


def _liar(factor: float) -> Contribution:
    start, common = _weights(0), _weights(1)
    # With the largest public size of all: the mean would follow it.
    return Contribution(
        "liar",
        10**6,
        {name: np.asarray(start[name] + factor * common[name], np.float32) for name in NAMES},
    )


@pytest.mark.parametrize("section", ROBUST, ids=lambda section: section.name)
@pytest.mark.parametrize("lie", LIES)
def test_one_lying_site_does_not_move_a_robust_strategy(section: StrategySection, lie: str) -> None:
    honest, start = _honest(6), _weights(0)
    told = [*honest, _liar(LIES[lie])]

    found, state = build_strategy(section).aggregate({}, 1, start, told)

    with np.errstate(over="ignore"):
        mean, _ = build_strategy(StrategySection()).aggregate({}, 1, start, told)
    for name in NAMES:
        values = np.stack([one.arrays[name] for one in honest])
        assert (values.min(axis=0) - 1e-6 <= found[name]).all()
        assert (found[name] <= values.max(axis=0) + 1e-6).all()
    assert any(np.abs(mean[name] - found[name]).max() > 1 for name in NAMES)
    assert state == {}


def test_krum_takes_one_site_s_weights_and_the_median_is_the_median() -> None:
    honest, start = _honest(5), _weights(0)
    krum, _ = build_strategy(ROBUST[1]).aggregate({}, 1, start, honest)
    median, _ = build_strategy(ROBUST[0]).aggregate({}, 1, start, honest)
    assert any(
        all(np.allclose(krum[name], one.arrays[name], rtol=0, atol=1e-6) for name in NAMES)
        for one in honest
    )
    for name in NAMES:
        values = np.stack([one.arrays[name] for one in honest])
        np.testing.assert_array_equal(median[name], np.median(values, axis=0).astype(np.float32))


@pytest.mark.parametrize("seed", range(10))
def test_krum_sees_steps_that_are_small_beside_the_weights(seed: int) -> None:
    """Of weights as large as these, Flower's fp32 distances alone would be rounding."""
    start = {name: array * np.float32(1e3) for name, array in _weights(seed).items()}
    steps = (-0.3, 0.01, 0.02, 0.03, 0.4)
    moved = [
        Contribution(
            f"site{n}", 100, {name: array + np.float32(step) for name, array in start.items()}
        )
        for n, step in enumerate(steps)
    ]
    found, _ = build_strategy(ROBUST[1]).aggregate({}, 1, start, moved)
    chosen = [
        n
        for n, one in enumerate(moved)
        if all(np.array_equal(found[name], one.arrays[name]) for name in NAMES)
    ]
    assert chosen in ([1], [2], [3])  # each has two near neighbours; 0 and 4 have none


@pytest.mark.parametrize("section", ROBUST, ids=lambda section: section.name)
def test_the_order_of_arrival_changes_no_bit_of_a_robust_strategy(
    section: StrategySection,
) -> None:
    honest, start = _honest(5), _weights(0)
    one, _ = build_strategy(section).aggregate({}, 1, start, honest)
    two, _ = build_strategy(section).aggregate({}, 1, start, honest[::-1])
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}
    assert all(array.dtype == np.float32 for array in one.values())


def test_krum_among_too_few_sites_is_refused() -> None:
    section = StrategySection(name="krum", num_malicious_nodes=1)
    with pytest.raises(TrainingError, match="expected more than 4 usable replies for krum to bear"):
        build_strategy(section).aggregate({}, 1, _weights(0), _honest(4))


def test_central_needs_a_model() -> None:
    section = StrategySection(name="central")
    with pytest.raises(ConfigError, match='expected a model for strategy.name = "central"'):
        build_strategy(section)
    made = FlowerStrategy(StrategySection())
    assert build_strategy(section, lambda: made) is made
