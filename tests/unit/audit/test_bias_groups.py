"""B1, B2 and B7 on planted counts: fair ones, unfair ones of known size, and noised ones."""

import numpy as np
import pytest

from audit.bias.data import judge_data
from audit.bias.groups import judge_groups
from audit.bias.rates import Rate, Sums, accuracy, difference
from audit.bias.sites import judge_sites
from audit.bias.tallies import tallies_of
from audit.federated_counts import FederatedCounts
from audit.verdicts import TestResult, Verdict
from tests.support.planted_bias import group_counts, judged

SIZES = (500, 300, 100, 40)
BIG = (2000, 2000)
TWO = (("sex", ("f", "m")),)


def groups(counts: FederatedCounts, seed: int = 0, tolerance: float = 0.1) -> TestResult:
    return judge_groups(counts, (), judged(seed, tolerance=tolerance))  # type: ignore[arg-type]


def sites(counts: FederatedCounts, seed: int = 0, tolerance: float = 0.1) -> TestResult:
    return judge_sites(counts, judged(seed, tolerance=tolerance))  # type: ignore[arg-type]


def alarms(runs: int, *, tolerance: float, scale: float | None = None) -> tuple[int, int]:
    """Over fair data: how many FAIL, and how many have a significant gap."""
    failed = found = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        counts = group_counts(rng, [[0.8] * 4, [0.7] * 4], SIZES, scale=scale)
        result = groups(counts, seed, tolerance)
        failed += result.verdict is Verdict.FAIL
        found += result.p_value is not None and result.p_value <= 0.05
    return failed, found


def assert_calibrated(runs: int, **settings: float) -> None:
    failed, found = alarms(runs, **settings)
    bound = 0.05 * runs + 3 * (0.05 * 0.95 * runs) ** 0.5
    assert failed <= bound
    assert found <= bound


def test_fair_groups_raise_no_alarm() -> None:
    assert_calibrated(60, tolerance=0.001)


def test_fair_groups_raise_no_alarm_under_noise() -> None:
    assert_calibrated(40, tolerance=0.001, scale=2.0)


@pytest.mark.soak
@pytest.mark.parametrize("scale", [None, 0.5, 2.0, 8.0])
def test_fair_groups_raise_no_alarm_in_a_thousand_runs(scale: float | None) -> None:
    failed, found = alarms(1000, tolerance=0.001, scale=scale)
    assert failed <= 50
    assert found <= 65


@pytest.mark.parametrize("gap", [0.05, 0.10, 0.20])
def test_a_gap_of_the_stated_size_is_found(gap: float) -> None:
    runs = 20
    size = next(n for n in (500, 1000, 2000, 4000, 8000, 16000) if _stated(n) <= gap)
    hits = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        counts = group_counts(rng, [[0.5 - gap / 2, 0.5 + gap / 2]], (size, size), attributes=TWO)
        hits += groups(counts, seed, 0.01).verdict is Verdict.FAIL
    assert hits >= 0.95 * runs - 1


@pytest.mark.soak
@pytest.mark.parametrize("gap", [0.05, 0.10, 0.20])
def test_a_gap_of_exactly_the_stated_size_is_found_in_most_of_a_thousand_runs(gap: float) -> None:
    size = next(n for n in range(100, 40_000, 20) if _stated(n) <= gap)
    hits = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        counts = group_counts(rng, [[0.5 - gap / 2, 0.5 + gap / 2]], (size, size), attributes=TWO)
        hits += groups(counts, seed, 0.01).verdict is Verdict.FAIL
    assert hits >= 930


def _stated(size: int) -> float:
    """The smallest gap that B1 says it finds among two groups of ``size``."""
    rng = np.random.default_rng(1)
    counts = group_counts(rng, [[0.5, 0.5]], (size, size), attributes=TWO)
    power = groups(counts, 0, 0.01).smallest_effect
    assert power is not None
    return power.value


def test_a_gap_within_the_tolerance_passes_and_is_measured() -> None:
    counts = group_counts(
        np.random.default_rng(2), [[0.83, 0.80]], (20_000, 20_000), attributes=TWO
    )
    result = groups(counts)
    gap = result.measures[0]
    assert result.verdict is Verdict.PASS
    assert gap.name == "accuracy-gap"
    assert gap.interval is not None
    assert 0 < gap.interval.low < 0.03 < gap.interval.high < 0.1


def test_a_gap_that_the_sites_alone_make_is_no_finding_of_groups_but_one_of_sites() -> None:
    rng = np.random.default_rng(3)
    good = group_counts(rng, [[0.9, 0.9]], (1800, 200), attributes=TWO).sites[0]
    bad = group_counts(rng, [[0.6, 0.6]], (200, 1800), attributes=TWO).sites[0]
    named = (good, type(bad)("site1", bad.cells, bad.histogram, None))
    counts = FederatedCounts(TWO, ("calm", "storm"), (0.0, 1.0), named)
    by_group, by_site = groups(counts), sites(counts)
    assert by_group.verdict is Verdict.INCONCLUSIVE
    assert by_site.verdict is Verdict.FAIL
    assert "site1" in by_site.headline
    assert "site0" not in by_site.headline


def test_a_small_group_makes_the_verdict_inconclusive_and_is_suppressed() -> None:
    counts = group_counts(np.random.default_rng(4), [[0.8, 0.8]], (5000, 4), attributes=TWO)
    result = groups(counts)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert any("sex m" in note for note in result.notes)
    rates = next(table for table in result.tables if table.title == "Rates by sex")
    assert all(row[2] is None for row in rates.rows)


def test_a_group_of_one_and_labels_all_alike_decide_nothing() -> None:
    counts = group_counts(np.random.default_rng(5), [[0.8, 0.8]], (1, 1), attributes=TWO)
    assert groups(counts).verdict is Verdict.INCONCLUSIVE
    alike = group_counts(
        np.random.default_rng(5), [[1.0, 1.0]], (900, 900), attributes=TWO, base_rates=(0.0, 0.0)
    )
    result = groups(alike)
    assert result.verdict is not Verdict.FAIL
    assert result.p_value == 1.0


def test_one_bad_site_of_ten_is_named_alone() -> None:
    for seed in range(10):
        accuracies = [[0.85] * 2] * 10
        accuracies[seed] = [0.55] * 2
        counts = group_counts(np.random.default_rng(seed), accuracies, (200, 200), attributes=TWO)
        result = sites(counts, seed)
        assert result.verdict is Verdict.FAIL
        flagged = [row[0] for row in result.tables[0].rows if row[-1] != "none"]
        assert flagged == [f"site{seed}"]


def test_ten_equal_sites_are_not_told_apart() -> None:
    failed = 0
    for seed in range(40):
        counts = group_counts(
            np.random.default_rng(seed), [[0.8] * 2] * 10, (150, 150), attributes=TWO
        )
        failed += sites(counts, seed, 0.001).verdict is Verdict.FAIL
    assert failed <= 5


def test_labels_that_differ_by_group_are_found_before_training_and_equal_ones_are_not() -> None:
    subject = judged()
    rng = np.random.default_rng(6)
    kept = {"attributes": TWO, "accuracies": [[1.0, 1.0]] * 2, "sizes": BIG}
    planted = group_counts(rng, base_rates=(0.3, 0.6), **kept)  # type: ignore[arg-type]
    fair = group_counts(rng, base_rates=(0.4, 0.4), **kept)  # type: ignore[arg-type]
    found = judge_data(planted, subject)  # type: ignore[arg-type]
    assert found.verdict is Verdict.FAIL
    assert "30" in found.headline or "29" in found.headline or "31" in found.headline
    assert judge_data(fair, subject).verdict is Verdict.PASS  # type: ignore[arg-type]


def test_a_gap_in_the_labels_that_may_be_chance_remains_open_in_words_too() -> None:
    planted = group_counts(
        np.random.default_rng(7),
        [[1.0, 1.0]],
        (60, 60),
        attributes=TWO,
        base_rates=(0.3, 0.5),
    )
    found = judge_data(planted, judged())  # type: ignore[arg-type]
    gap = next(m for m in found.measures if m.name == "label-gap")

    assert gap.value is not None
    assert gap.value > 0.1  # the tolerance
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "remains open" in found.headline
    assert "not surely" in found.headline


def test_limits_are_held_against_the_surest_gap_and_not_the_widest() -> None:
    accuracies = [[0.95, 0.80, 0.75, 0.95]]
    counts = group_counts(np.random.default_rng(8), accuracies, (4000, 4000, 40, 40))
    result = groups(counts)
    rows = [row for row in result.tables[0].rows if row[1] == "accuracy"]
    surest, widest = (max(rows, key=lambda row: float(row[n] or 0.0)) for n in (5, 4))
    gap = result.measures[0]

    assert surest[2:4] == ("b", "a")
    assert "c" in widest[2:4]
    assert gap.interval is not None
    assert gap.interval.low == pytest.approx(surest[5], abs=1e-6)
    assert gap.interval.low > 0.1


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_intervals_of_noised_counts_cover(epsilon: float) -> None:
    covered, total = _coverage(epsilon, runs=300)
    assert 0.925 <= covered / total <= 0.985


@pytest.mark.soak
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_intervals_of_noised_counts_cover_in_many_runs(epsilon: float) -> None:
    covered, total = _coverage(epsilon, runs=3000)
    assert 0.93 <= covered / total <= 0.97


def test_intervals_that_forget_the_noise_do_not_cover() -> None:
    forgot, total = _coverage(0.1, runs=300, forget=True)
    knew, _ = _coverage(0.1, runs=300)
    assert forgot / total < 0.85
    assert knew / total > 0.92


def _coverage(epsilon: float, *, runs: int, forget: bool = False) -> tuple[int, int]:
    """Of differences of two groups' accuracies, 300 and 200 records, over three sites."""
    chances = (0.8, 0.7)
    covered = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        counts = group_counts(
            rng, [list(chances)] * 3, (300, 200), attributes=TWO, scale=1 / epsilon
        )
        tally = tallies_of(counts, "held out")[0]
        rates = [Sums.of(tally, accuracy(2)).rate(tally, group) for group in (0, 1)]
        assert all(rate is not None for rate in rates)
        one, two = (_forgetful(rate) if forget else rate for rate in rates if rate is not None)
        interval = difference(one, two, 0.95)
        covered += interval.low <= chances[0] - chances[1] <= interval.high
    return covered, runs


def _forgetful(rate: Rate) -> Rate:
    trials = max(rate.trials, 1)
    return Rate(min(max(rate.successes, 0), trials), trials)


def test_the_range_over_sites_is_held_against_no_limit_that_it_is_not_judged_by() -> None:
    counts = group_counts(np.random.default_rng(9), [[0.8] * 2] * 3, (900, 900), attributes=TWO)
    found = next(m for m in sites(counts).measures if m.name == "site-accuracy-range")

    assert found.limit is None
