"""Ground truth of membership inference: models that leak, models that do not, splits that lie."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.membership.direct import WithoutReferences
from audit.membership.exposed import most_exposed
from audit.membership.references import WithReferences
from audit.suite import all_tests, run_suite
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from core.data.held_out import Split
from core.data.records import Record, Subset, iterate
from core.errors import AuditError, ScoreError
from tests.support.audited import simulated_subject
from tests.support.membership import (
    config_with,
    overfit,
    random_records,
    split_at_random,
    subject_with,
    trained_privately,
)

TASKS = ("classification", "causal-lm")
SIZES = {"north": 60}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attacked(subject, test=None) -> TestResult:
    result = (test or WithoutReferences()).run(subject, Budget(600))
    assert isinstance(result, TestResult)
    return result


def auc_of(result: TestResult, name: str = "membership-auc"):
    (measure,) = [measure for measure in result.measures if measure.name == name]
    return measure


@pytest.mark.parametrize("task", TASKS)
def test_an_overfit_model_is_found_out(task):
    split = split_at_random(random_records(100, seed=1), seed=2)
    config = config_with(task, SIZES)
    model = overfit(subject_with(config, {"north": split}))
    result = attacked(subject_with(config, {"north": split}, model=model))
    assert result.verdict is Verdict.FAIL
    measure = auc_of(result)
    assert measure.value >= 0.8
    assert measure.interval.low > 0.6
    assert measure.limit is None
    control = auc_of(result, "membership-control-auc")
    assert control.interval.low < 0.5 < control.interval.high
    assert "promised no privacy" in result.headline


@pytest.mark.parametrize("task", TASKS)
def test_the_same_data_at_epsilon_3_give_nothing_away(task):
    split = split_at_random(random_records(100, seed=1), seed=2)
    config = config_with(task, SIZES, epsilon=3.0)
    model = trained_privately(subject_with(config, {"north": split}), key=b"k" * 32)
    result = attacked(subject_with(config, {"north": split}, model=model))
    interval = auc_of(result).interval
    assert interval.low <= 0.5 <= interval.high
    assert result.verdict is not Verdict.FAIL
    assert auc_of(result).limit == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4)


def test_reference_models_find_an_overfit_model_out():
    split = split_at_random(random_records(100, seed=1), seed=2)
    config = config_with("classification", SIZES)
    model = overfit(subject_with(config, {"north": split}))
    result = attacked(subject_with(config, {"north": split}, model=model), WithReferences())
    assert result.verdict is Verdict.FAIL
    rows = {row[0]: row[2] for row in result.tables[0].rows}
    assert set(rows) == {
        "loss against reference models",
        "RMIA (offline)",
        "LiRA (online, global variance)",
    }
    assert min(rows.values()) > 0.7
    assert auc_of(result).value >= 0.8


@pytest.mark.slow
def test_reference_models_find_nothing_in_a_model_that_saw_neither():
    federation = {"name": "trial", "num_rounds": 1, "seed": 7}
    config = config_with("classification", SIZES, federation=federation)
    others = split_at_random(random_records(100, seed=5), seed=2)
    stranger = overfit(subject_with(config, {"north": others}))
    split = split_at_random(random_records(100, seed=1), seed=2)
    result = attacked(subject_with(config, {"north": split}, model=stranger), WithReferences())
    assert result.verdict is not Verdict.FAIL
    interval = auc_of(result).interval
    assert interval.low <= 0.5 <= interval.high


def test_members_that_are_newer_than_the_others_raise_the_alarm():
    newer = random_records(60, seed=1, prefix="22 ")
    older = random_records(40, seed=2, prefix="19 ")
    split = Split(Subset(newer, range(60)), Subset(older, range(40)))
    config = config_with("classification", SIZES)
    model = overfit(subject_with(config, {"north": split}))
    result = attacked(subject_with(config, {"north": split}, model=model))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "its words (logistic regression), without any model" in result.headline


def test_members_that_are_longer_than_the_others_raise_the_alarm():
    long = [replace(record, text=record.text + " again") for record in random_records(60, seed=1)]
    split = Split(Subset(long, range(60)), Subset(random_records(40, seed=2), range(40)))
    subject = subject_with(config_with("classification", SIZES), {"north": split})
    result = attacked(subject)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "differ by themselves" in result.headline


def test_one_leaking_site_of_three_is_named():
    sites = ("east", "north", "west")
    config = config_with("classification", dict.fromkeys(sites, 60))
    splits = {
        site: split_at_random(random_records(100, seed=seed), seed=9)
        for seed, site in enumerate(sites)
    }
    alone = subject_with(config_with("classification", SIZES), {"north": splits["north"]})
    result = attacked(subject_with(config, splits, model=overfit(alone)))
    assert result.verdict is Verdict.FAIL
    worst = auc_of(result, "membership-auc-worst-site")
    assert worst.label.endswith("at north)")
    rows = {(row[0], row[1]): row for row in result.tables[0].rows}
    assert rows["loss", "north"][5] <= 0.05
    assert min(rows["loss", site][5] for site in ("east", "west")) > 0.05


def test_many_records_that_a_model_never_saw_pass():
    config = config_with("classification", {"north": 1200})
    split = split_at_random(random_records(2000, seed=3), seed=4)
    result = attacked(subject_with(config, {"north": split}))
    assert result.verdict is Verdict.PASS
    assert result.smallest_effect.value < 0.6
    assert auc_of(result).interval.high < 0.6
    assert not [m for m in result.measures if m.name.startswith("membership-tpr")]
    assert "Too few held-out records for a true positive rate at 1 % and 0.1 %" in str(result.notes)


def test_few_records_that_a_model_never_saw_are_no_pass():
    split = split_at_random(random_records(100, seed=3), seed=4)
    result = attacked(subject_with(config_with("classification", SIZES), {"north": split}))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.smallest_effect.value > 0.6


def test_a_result_is_the_same_twice_and_names_no_record():
    split = split_at_random(random_records(100, seed=1), seed=2)
    config = config_with("classification", SIZES)
    first, second = (attacked(subject_with(config, {"north": split})) for _ in range(2))
    assert first == second
    text = first.model_dump_json()
    assert not any(record.text in text for record in random_records(100, seed=1))


def test_a_model_that_has_diverged_is_an_error():
    split = split_at_random(random_records(100, seed=1), seed=2)
    subject = subject_with(config_with("classification", SIZES), {"north": split})
    next(subject.model.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ScoreError, match="expected finite scores of every record, got NaN"):
        WithoutReferences().run(subject, Budget(60))


def test_a_model_that_says_the_same_of_everything_is_an_error():
    records = [replace(record, label="calm") for record in random_records(100, seed=1)]
    split = split_at_random(records, seed=2)
    subject = subject_with(config_with("classification", SIZES), {"north": split})
    for parameter in subject.model.model.parameters():
        parameter.data.fill_(0)
    with pytest.raises(ScoreError, match="expected scores that differ"):
        WithoutReferences().run(subject, Budget(60))


@pytest.mark.parametrize("test", [WithoutReferences(), WithReferences()])
def test_without_a_hold_out_there_is_nothing_to_compare(test):
    records = random_records(100, seed=1)
    split = Split(records, Subset(records, ()))
    config = config_with("classification", SIZES, audit={"holdout_fraction": 0.0})
    outcome = test.run(subject_with(config, {"north": split}), Budget(60))
    assert isinstance(outcome, NotRun)
    assert "set audit.holdout_fraction" in outcome.reason


@pytest.mark.parametrize("test", [WithoutReferences(), WithReferences()])
def test_records_that_lie_elsewhere_are_named_as_the_reason(test):
    subject = subject_with(config_with("classification", SIZES), {"north": None})
    outcome = test.run(subject, Budget(60))
    assert isinstance(outcome, NotRun)
    assert "records lie at their sites" in outcome.reason


def test_references_that_there_is_no_time_for_are_inconclusive():
    split = split_at_random(random_records(100, seed=1), seed=2)
    subject = subject_with(config_with("classification", SIZES), {"north": split})
    result = WithReferences().run(subject, Budget(0))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no time" in result.headline


def test_the_most_exposed_are_the_members_that_the_model_knows_by_heart():
    config = config_with("causal-lm", SIZES)
    split = split_at_random(random_records(100, seed=1), seed=2)
    known = Subset(split.members, range(0, 60, 6))
    model = overfit(subject_with(config, {"north": Split(known, split.held_out)}), rounds=1)
    subject = subject_with(config, {"north": split}, model=model)
    assert sorted(most_exposed(subject, "north", 10)) == list(range(0, 60, 6))
    with pytest.raises(AuditError, match="expected a site whose records are at hand"):
        most_exposed(subject, "south", 10)


def test_a_simulated_run_is_attacked_by_the_suite(tmp_path):
    subject = simulated_subject(tmp_path)
    mine = [test for test in all_tests() if type(test).__module__.startswith("audit.membership.")]
    assert [test.card.id for test in mine] == ["MI1", "MI2"]
    outcome = run_suite(subject, "quick", tests=mine)
    (result,) = outcome.results
    assert result.test == "MI1"
    assert auc_of(result).limit > 0.5
    assert not [record for record in iterate(records_of(subject)) if record.text in str(result)]


def records_of(subject) -> list[Record]:
    return [record for site in subject.sites.values() for record in iterate(site.split.members)]
