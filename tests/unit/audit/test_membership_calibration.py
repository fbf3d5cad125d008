"""False alarms of membership inference, where there is nothing to find."""

import math

import numpy as np
import pytest
from scipy.stats import kstest

from audit.membership.blind import blind_p_values
from audit.membership.direct import WithoutReferences
from audit.membership.findings import ALARM
from audit.membership.observations import observe
from audit.membership.strata import OVERALL, Stratum, permutation_p_values
from audit.membership.targets import targets_of
from audit.verdicts import Budget, Verdict
from core.data.held_out import Split
from core.data.records import Record
from tests.support.membership import (
    config_with,
    overfit,
    random_records,
    split_at_random,
    subject_with,
)

SIZES = {"north": 60}


def at_most(rate: float, runs: int) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / runs)


def sentences(count: int, seed: int, *, newer: bool = False) -> list[Record]:
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(60)]
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 10))) for _ in range(count)]
    return [Record(f"{text} {'y' if newer and rng.random() < 0.5 else 'z'}") for text in texts]


def stranger():
    config = config_with("causal-lm", SIZES)
    others = split_at_random(random_records(100, seed=5), seed=2)
    return config, overfit(subject_with(config, {"north": others}), rounds=1)


@pytest.mark.parametrize("runs", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_p_values_on_a_model_that_saw_neither_are_uniform(runs):
    config, model = stranger()
    records = random_records(100, seed=1)
    loss = observe(model, subject_with(config, {"north": None}), records).loss
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(runs):
        member = rng.permutation(100) < 60
        stratum = Stratum("north", member, {"loss": -loss})
        found = permutation_p_values([stratum], ["loss"], rng, draws=199)
        p_values.append(found["loss", OVERALL])
    assert kstest(p_values, "uniform").pvalue > 0.001
    assert np.mean(np.array(p_values) <= 0.05) <= at_most(0.05, runs)


@pytest.mark.parametrize("runs", [40, pytest.param(600, marks=pytest.mark.soak)])
def test_blind_baselines_raise_no_alarm_on_random_splits_and_do_on_newer_members(runs):
    rng = np.random.default_rng(2)
    config = config_with("causal-lm", SIZES)
    by_words, alarms = [], 0
    for run in range(runs):
        split = split_at_random(sentences(100, seed=run), seed=run)
        found, _ = blind_p_values(
            targets_of(subject_with(config, {"north": split})), rng, draws=299
        )
        by_words.append(found["words", OVERALL])
        alarms += min(found.values()) * 3 <= ALARM
    assert np.mean(np.array(by_words) <= 0.05) <= at_most(0.05, runs)
    assert alarms / runs <= at_most(ALARM, runs)
    split = Split(sentences(60, seed=1, newer=True), sentences(40, seed=2))
    found, _ = blind_p_values(targets_of(subject_with(config, {"north": split})), rng, draws=999)
    assert found["words", OVERALL] * 3 <= ALARM


@pytest.mark.parametrize("runs", [12, pytest.param(300, marks=pytest.mark.soak)])
def test_a_model_that_saw_neither_seldom_fails(runs):
    config, model = stranger()
    failed = 0
    for run in range(runs):
        split = split_at_random(random_records(100, seed=100 + run), seed=run)
        subject = subject_with(config, {"north": split}, model=model, seed=run)
        result = WithoutReferences().run(subject, Budget(600))
        failed += result.verdict is Verdict.FAIL
    assert failed / runs <= at_most(0.05, runs)
