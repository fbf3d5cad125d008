"""What the bias tests compute from records: figures, remedies, the price, and whole results."""

from pathlib import Path

import numpy as np
import pytest

from audit.bias.calibration import calibration_error
from audit.bias.crows_pairs import CrowsPairs
from audit.bias.data import Data
from audit.bias.groups import Groups
from audit.bias.mitigation import (
    Mitigation,
    Unseen,
    best_temperature,
    judge_remedies,
    remedies,
)
from audit.bias.price import Paired, Price, judge_price
from audit.bias.rates import Sums, metrics_of
from audit.bias.sites import Sites
from audit.bias.swap import Swap
from audit.bias.tallies import counts_of_scored, scored_sites, tallies_of
from audit.subject import Subject, open_subject
from audit.suite import run_suite
from audit.verdicts import NotRun, Table, TestResult, Verdict
from tests.support.audited import simulated_run
from tests.support.planted_bias import group_counts, judged


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return open_subject(simulated_run(tmp_path_factory.mktemp("audited")))


def test_every_test_runs_twice_alike(subject: Subject) -> None:
    tests = (Groups(), Sites(), Data(), Price(), Swap(), Mitigation(), CrowsPairs())
    first = run_suite(subject, "full", tests=tests)
    second = run_suite(subject, "full", tests=tests)
    assert first == second
    assert {result.test for result in first.results} >= {"B1", "B2", "B3", "B7"}
    assert all(result.verdict is not Verdict.PASS for result in first.results)  # far too few
    assert "P1" in {missing.test for missing in first.not_run}


def test_missing_group_columns_are_named(tmp_path: Path) -> None:
    run = simulated_run(tmp_path, overrides={"audit.attributes": '{ ward = ["a", "b"] }'})
    outcome = run_suite(open_subject(run), "quick", tests=(Groups(), Data()))
    for result in outcome.results:
        assert result.verdict is Verdict.INCONCLUSIVE
        assert "'ward'" in result.notes[0]


def test_figures_are_those_of_fairlearn(subject: Subject) -> None:
    from fairlearn.metrics import (
        MetricFrame,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )
    from sklearn.metrics import accuracy_score, precision_score

    sites = scored_sites(subject)
    tally = tallies_of(counts_of_scored(subject, sites), "all")[0]
    truth = np.concatenate([site.labels for site in sites])
    predicted = np.concatenate([site.predicted for site in sites])
    groups = [each["sex"] for site in sites for each in site.groups]

    def ppv(y_true: object, y_pred: object) -> float:
        return float(precision_score(y_true, y_pred, zero_division=0.0))

    functions = (accuracy_score, selection_rate, true_positive_rate, false_positive_rate, ppv)
    for metric, function in zip(metrics_of(("calm", "storm")), functions, strict=True):
        frame = MetricFrame(
            metrics=function, y_true=truth, y_pred=predicted, sensitive_features=groups
        )
        for number, group in enumerate(tally.groups):
            rate = Sums.of(tally, metric).rate(tally, number)
            value = 0.0 if rate is None else rate.value
            assert value == pytest.approx(frame.by_group[group])


def test_tallies_of_intersections_add_up_to_those_of_single_attributes() -> None:
    attributes = (("sex", ("f", "m")), ("age", ("young", "old")))
    counts = group_counts(np.random.default_rng(0), [[0.8] * 4] * 2, (50, 60, 70, 80))
    crossed = type(counts)(
        attributes,
        counts.labels,
        counts.edges,
        tuple(
            type(site)(site.site, site.cells.reshape(2, 2, 2, 2, 2), site.histogram, 1.0)
            for site in counts.sites
        ),
    )
    sex, age, both = tallies_of(crossed, "all")
    assert both.groups == ("f x young", "f x old", "m x young", "m x old")
    assert (both.merged, sex.merged, age.merged) == (2, 4, 4)
    assert (both.cells[:, :2].sum(axis=1) == sex.cells[:, 0]).all()
    assert (both.cells[:, ::2].sum(axis=1) == age.cells[:, 0]).all()


def paired(rng: np.random.Generator, prices: tuple[float, float], count: int = 3000) -> Paired:
    """A twin that is always right, and a model that errs as often as each group pays."""
    who = rng.random(count) < 0.5
    lost = rng.random(count) < np.where(who, *prices)
    return Paired(
        private=~lost,
        twin=np.ones(count, dtype=np.bool_),
        persons=np.asarray([f"p{n // 2}" for n in range(count)]),
        groups=(("sex", "f", who), ("sex", "m", ~who)),
    )


def price(seed: int, prices: tuple[float, float]) -> TestResult:
    rng = np.random.default_rng(seed)
    return judge_price(paired(rng, prices), judged(seed))  # type: ignore[arg-type]


def test_a_group_that_pays_more_for_privacy_is_found_and_equal_prices_are_not() -> None:
    planted = price(0, (0.4, 0.1))
    assert planted.verdict is Verdict.FAIL
    assert "f pays" in planted.headline
    assert price(1, (0.1, 0.4)).verdict is Verdict.FAIL
    assert [price(seed, (0.2, 0.2)).verdict for seed in range(3)] == [Verdict.PASS] * 3


def test_prices_that_are_all_alike_are_no_certainty() -> None:
    few = paired(np.random.default_rng(0), (0.0, 0.0), count=80)
    assert judge_price(few, judged()).verdict is Verdict.INCONCLUSIVE  # type: ignore[arg-type]


def test_a_run_without_privacy_has_no_price(tmp_path: Path) -> None:
    from tests.support.federation import FEDERATION

    plain = FEDERATION.replace(
        "noise_multiplier = 1.0\nmax_grad_norm = 1.0", 'mode = "none"'
    ).replace("[simulation]\n", "[simulation]\nallow_non_private = true\n")
    subject = open_subject(simulated_run(tmp_path, federation=plain))
    outcome = Price().run(subject, None)  # type: ignore[arg-type]
    assert isinstance(outcome, NotRun)


def unseen(rng: np.random.Generator, count: int = 3000) -> Unseen:
    """Scores that are right but shifted down for one group, and overconfident for all."""
    groups = np.where(rng.random(count) < 0.5, "a", "b")
    labels = (rng.random(count) < 0.5).astype(np.int64)
    logit = 3 * (labels * 2 - 1) + rng.normal(0, 3, count) - 3 * (groups == "a")
    second = 1 / (1 + np.exp(-2 * logit))
    probabilities = np.stack([1 - second, second], axis=1)
    return Unseen(probabilities, labels, groups.astype(np.str_), rng.random(count) < 0.5)


def test_remedies_narrow_a_planted_gap_on_records_that_they_did_not_see() -> None:
    decisions, calibration = remedies(unseen(np.random.default_rng(0)), "sex", ("no", "yes"))
    gaps = {row[0]: row[2] for row in decisions.rows}
    before = gaps.pop("as released")
    assert isinstance(before, float)
    assert before > 0.15
    assert all(isinstance(gap, float) and gap < before / 2 for gap in gaps.values())
    for row in calibration.rows:
        assert isinstance(row[3], float)
        assert isinstance(row[4], float)
        assert row[4] < row[3]


def test_remedies_want_two_groups_with_enough_records() -> None:
    given = unseen(np.random.default_rng(0), count=60)
    assert remedies(given, "sex", ("no", "yes")) == []


def test_the_temperature_of_sound_probabilities_is_one() -> None:
    rng = np.random.default_rng(0)
    second = rng.random(20_000)
    labels = (rng.random(20_000) < second).astype(np.int64)
    logs = np.log(np.stack([1 - second, second], axis=1))
    assert best_temperature(logs, labels) == pytest.approx(1.0, abs=0.07)
    assert best_temperature(2 * logs, labels) == pytest.approx(2.0, abs=0.15)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    right = np.arange(1000) % 10 < 7
    assert calibration_error(np.full(1000, 0.7), right) == pytest.approx(0.0)
    assert calibration_error(np.full(1000, 0.95), right) == pytest.approx(0.25)


def table(*rows: tuple[str, float, float, float, float, float, float]) -> Table:
    """Remedies for two groups; the gap is as it follows from the rates."""
    return Table(
        title="flu against the rest, by sex",
        columns=(
            *("remedy", "accuracy", "gap in TPR", "TPR a", "TPR b", "accuracy a", "accuracy b"),
        ),
        rows=rows,
    )


RELEASED = ("as released", 0.94, 0.44, 0.79, 0.35, 0.95, 0.93)
LEVELLED_DOWN = ("threshold by group", 0.93, 0.01, 0.35, 0.36, 0.93, 0.93)
RAISED = ("reweighting", 0.93, 0.24, 0.78, 0.54, 0.94, 0.92)
COSTLY = ("threshold by group", 0.85, 0.04, 0.79, 0.75, 0.91, 0.89)


def test_a_remedy_that_levels_a_group_down_is_not_praised() -> None:
    found = judge_remedies([table(RELEASED, LEVELLED_DOWN, RAISED)])

    assert "reweighting narrows" in found.headline
    assert "from 0.440 to 0.240" in found.headline
    assert "overall accuracy goes from 0.940 to 0.930" in found.headline
    assert next(m.value for m in found.measures if m.name == "gap-removed") == pytest.approx(0.2)
    assert any(
        "Passed over: threshold by group" in note and "TPR a" in note and "0.790 to 0.350" in note
        for note in found.notes
    )


@pytest.mark.parametrize("remedy", [LEVELLED_DOWN, COSTLY])
def test_where_each_remedy_does_harm_none_is_named(
    remedy: tuple[str, float, float, float, float, float, float],
) -> None:
    found = judge_remedies([table(RELEASED, remedy)])

    assert "without harm" in found.headline
    assert found.measures == ()


def test_what_a_remedy_costs_each_group_is_measured() -> None:
    planted = unseen(np.random.default_rng(0))
    decisions, _ = remedies(planted, "sex", ("no", "yes"))

    show = ~planted.fitting
    right = planted.probabilities.argmax(axis=1) == planted.labels
    for name in ("a", "b"):
        column = decisions.columns.index(f"accuracy {name}")
        who = show & (planted.groups == name)
        assert decisions.rows[0][column] == pytest.approx(right[who].mean(), abs=1e-6)


def test_records_of_one_person_say_no_more_of_prices_than_the_person() -> None:
    once = paired(np.random.default_rng(5), (0.2, 0.2), count=400)
    copies = [np.tile(values, 8) for values in (once.private, once.twin, once.persons)]
    groups = tuple((name, value, np.tile(who, 8)) for name, value, who in once.groups)
    many = Paired(*copies, groups=groups)

    effects = [judge_price(each, judged()).smallest_effect for each in (once, many)]  # type: ignore[arg-type]
    assert effects[0] is not None
    assert effects[1] is not None
    assert effects[1].value == pytest.approx(effects[0].value)


def test_a_price_that_cannot_be_judged_remains_open_in_words_too() -> None:
    few = paired(np.random.default_rng(0), (0.2, 0.1), count=80)
    found = judge_price(few, judged())  # type: ignore[arg-type]

    assert found.verdict is Verdict.INCONCLUSIVE
    assert "remains open" in found.headline
    assert "remains open" not in price(0, (0.2, 0.2)).headline
