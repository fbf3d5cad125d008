from inspect import signature
from typing import Any

import pytest

from coordinator.orders import Desk, cohort_size, dp_sgd_terms, sampling_order, task_content
from coordinator.payload import from_record, to_record
from core.array_codec import manifest_of
from core.config import StrategySection
from core.digests import arrays_digest
from core.messages import LedgerHead, TrainTask, decode
from privacy.accounting import calibrate_noise_multiplier
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
