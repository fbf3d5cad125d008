from inspect import signature
from typing import Any

import pytest
from scipy import stats

from coordinator.orders import (
    Desk,
    cohort_size,
    common_sample_rate,
    dp_sgd_terms,
    sampling_order,
    task_content,
)
from coordinator.payload import from_record, to_record
from core.array_codec import manifest_of
from core.config import StrategySection
from core.digests import arrays_digest
from core.messages import DpSgdTerms, LedgerHead, TrainTask, decode
from privacy.accounting import calibrate_noise_multiplier, life_epsilon
from privacy.events import DistributedDpSgdEvent
from tests.support.sites import INITIAL, config_of, terms_of

NAMES = [f"site-{n}" for n in range(20)]


def test_the_order_of_sampling_is_a_function_of_seed_and_round() -> None:
    order = sampling_order(NAMES, 7, 3)

    assert sorted(order) == sorted(NAMES)
    assert order == sampling_order(reversed(NAMES), 7, 3)
    assert order != sampling_order(NAMES, 7, 4)
    assert order != sampling_order(NAMES, 8, 3)


def test_every_site_is_first_about_equally_often() -> None:
    firsts = [sampling_order(NAMES[:4], 0, n)[0] for n in range(1, 2001)]

    counts = [firsts.count(name) for name in NAMES[:4]]
    # 500 each; six standard deviations of Binomial(2000, 1/4) are 116.
    assert all(abs(count - 500) < 116 for count in counts)


@pytest.mark.parametrize(
    ("fraction", "minimum", "available", "size"),
    [
        (1.0, 1, 5, 5),
        (0.29, 1, 100, 29),
        (0.5, 1, 5, 2),
        (0.1, 3, 10, 3),
        (0.1, 3, 2, 2),
        (0.01, 1, 3, 1),
    ],
)
def test_the_size_of_a_cohort(fraction: float, minimum: int, available: int, size: int) -> None:
    section = StrategySection(fraction_train=fraction, min_train_nodes=minimum)

    assert cohort_size(section, available) == size


def test_the_terms_of_a_given_noise_are_public_arithmetic() -> None:
    config = config_of({"north": 100, "south": 300, "tiny": 4})

    terms = dp_sgd_terms(config, config.sites)

    north = terms["north"]
    assert north is not None
    assert (north.noise_multiplier, north.sample_rate) == (1.0, 0.1)
    assert (north.max_batch_size, north.max_examples) == (20, 125)
    tiny = terms["tiny"]
    assert tiny is not None
    assert tiny.sample_rate == 1.0


def test_the_noise_is_calibrated_for_the_whole_run_once_for_each_public_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def calibrate(**arguments: Any) -> float:
        asked.append(arguments)
        return 1.5 + len(asked)

    monkeypatch.setattr("coordinator.orders.calibrate_noise_multiplier", calibrate)
    privacy = {"mode": "local", "target_epsilon": 4.0, "target_delta": 1e-6}
    config = config_of({"a": 1000, "b": 500, "c": 1000}, num_rounds=7, privacy=privacy)

    terms = dp_sgd_terms(config, config.sites)

    common = {"target_epsilon": 4.0, "target_delta": 1e-6, "steps": 14, "max_batch_size": 20}
    assert asked == [
        {**common, "sample_rate": 0.01, "max_examples": 1250},
        {**common, "sample_rate": 0.02, "max_examples": 625},
    ]
    noise = {name: item.noise_multiplier for name, item in terms.items() if item is not None}
    assert noise == {"a": 2.5, "b": 3.5, "c": 2.5}


def test_the_real_calibration_takes_these_arguments() -> None:
    names = {"target_epsilon", "target_delta", "sample_rate", "steps", "max_batch_size"}

    assert {*names, "max_examples"} == set(signature(calibrate_noise_multiplier).parameters)


DISTRIBUTED = {
    "privacy": {"mode": "distributed", "target_epsilon": 3.0, "target_delta": 1e-6},
    "train": {"steps_per_round": 1, "global_batch_size": 60, "learning_rate": 0.1},
    "strategy": {"name": "central"},
    "secure_aggregation": {},
}


def distributed_terms(sizes: dict[str, int], **sections: Any) -> dict[str, DpSgdTerms]:
    config = config_of(sizes, num_rounds=40, **DISTRIBUTED | sections)
    terms = dp_sgd_terms(config, config.sites)
    return {name: item for name, item in terms.items() if item is not None}


def test_a_step_over_all_sites_has_one_rate_one_cap_and_one_noise() -> None:
    terms = distributed_terms({"north": 1000, "south": 600, "tiny": 400})
    assert {one.sample_rate for one in terms.values()} == {60 / 2000}
    assert len({one.max_batch_size for one in terms.values()}) == 1
    assert len({one.noise_multiplier for one in terms.values()}) == 1
    assert [one.max_examples for one in terms.values()] == [1250, 750, 500]


@pytest.mark.parametrize(
    "sizes", [{"a": 1000, "b": 600, "c": 400}, {"a": 30, "b": 20, "c": 30}, {"a": 5000, "b": 4}]
)
def test_every_site_keeps_the_target_and_the_worst_one_hardly(sizes: dict[str, int]) -> None:
    terms = distributed_terms(sizes)

    def spent(noise: float, one: DpSgdTerms) -> float:
        event = DistributedDpSgdEvent(
            noise_multiplier=noise,
            sample_rate=one.sample_rate,
            max_batch_size=one.max_batch_size,
            max_examples=one.max_examples,
            max_grad_norm=1.0,
            colluding_sites=1,
            distance=1e-24,
        )
        return life_epsilon([event] * 40, 1e-6)

    epsilons = [spent(one.noise_multiplier, one) for one in terms.values()]
    assert max(epsilons) <= 3.0
    assert max(epsilons) > 2.98
    assert max(spent(0.99 * one.noise_multiplier, one) for one in terms.values()) > 3.0


@pytest.mark.parametrize("size", [10, 40, 1000, 50_000])
def test_no_batch_of_a_run_is_cut_and_one_of_twice_the_expected_size_would_be(size: int) -> None:
    terms = distributed_terms({"a": size, "b": size, "c": size})["a"]

    def chance(cap: int) -> float:
        others = terms.max_examples - 1
        return 40 * float(stats.binom.sf(cap - 1, others, terms.sample_rate))

    assert chance(terms.max_batch_size) <= 1e-9
    assert terms.max_batch_size == 1 or chance(terms.max_batch_size - 1) > 1e-9
    assert chance(2 * 20) > 1e-9 or size == 10  # the cap of mode local, at 20 expected


def test_a_given_noise_is_taken_for_all_sites() -> None:
    privacy = {"mode": "distributed", "noise_multiplier": 1.5}
    terms = distributed_terms({"a": 100, "b": 300, "c": 50}, privacy=privacy)
    assert [one.noise_multiplier for one in terms.values()] == [1.5] * 3
    assert common_sample_rate(60, [100, 300, 50]) == terms["a"].sample_rate
    assert common_sample_rate(60, [20, 10]) == 1.0


def test_without_privacy_there_are_no_terms() -> None:
    config = config_of({"north": 100}, privacy={"mode": "none"})

    assert dp_sgd_terms(config, config.sites) == {"north": None}


def test_an_order_says_everything_and_each_node_gets_records_of_its_own() -> None:
    config = config_of({"north": 100})
    terms = terms_of(config, INITIAL)
    desk = Desk("0123456789abcdef", terms, dp_sgd_terms(config, config.sites))
    witness = LedgerHead(sequence=2, digest="2" * 64)
    task = desk.task(
        config.sites[0],
        server_round=3,
        attempt=2,
        arrays_digest=arrays_digest(INITIAL),
        witness=witness,
    )
    record = to_record(INITIAL)

    one, two = task_content(task, record), task_content(task, record)
    one["task"].clear()
    one["arrays"].clear()

    sent = decode(TrainTask, two["task"]["task"])
    assert sent == task
    assert (sent.server_round, sent.attempt, sent.ledger_witness) == (3, 2, witness)
    assert sent.task_digest == terms.digest()
    arrays = from_record(two["arrays"], manifest_of(INITIAL))  # type: ignore[arg-type]
    assert arrays_digest(arrays) == sent.arrays_digest
