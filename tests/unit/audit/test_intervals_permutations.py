from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2_contingency, hypergeom

from audit.fixed_margins import tables_with_margins
from audit.intervals import (
    bootstrap,
    cluster_bootstrap,
    newcombe,
    permutation_chi_square,
    smallest_gap,
)
from core.errors import ScoreError
from tests.support.rates import at_least, at_most, uniform

SIZES = (500, 300, 100, 30)
PAIRS = tuple(combinations(range(len(SIZES)), 2))
IntArray = npt.NDArray[np.int64]


def groups(rates: tuple[float, ...], rng: np.random.Generator) -> IntArray:
    """Right and wrong by group, of one site."""
    right = rng.binomial(SIZES, rates)
    return np.stack([right, np.array(SIZES) - right], axis=1)[None]


def gap_shown(table: IntArray, tolerance: float) -> bool:
    """Whether Newcombe's interval of some pair, with Bonferroni, lies above the tolerance."""
    right, sizes = table[0, :, 0], table[0].sum(axis=1)
    confidence = 1 - 0.05 / len(PAIRS)
    return any(
        newcombe(
            int(right[first]), int(sizes[first]), int(right[second]), int(sizes[second]), confidence
        ).low
        > tolerance
        for one in PAIRS
        for first, second in (one, one[::-1])
    )


@pytest.mark.parametrize("seeds", [300, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.97])
def test_fair_groups_are_rarely_called_unfair(rate: float, seeds: int) -> None:
    p_values, shown, four_fifths = [], 0, 0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 21])
        table = groups((rate,) * 4, rng)
        p_values.append(permutation_chi_square(table, rng, draws=199))
        shown += gap_shown(table, tolerance=0.0)
        shares = table[0, :, 0] / SIZES
        four_fifths += shares.min() < 0.8 * shares.max()
    assert at_most(sum(p <= 0.05 for p in p_values), seeds, 0.05)
    assert at_most(shown, seeds, 0.05)
    assert uniform(p_values) or rate > 0.9  # tables of rare errors are few: p-values are lumps
    assert rate != 0.5 or not at_most(four_fifths, seeds, 0.05)


@pytest.mark.parametrize("seeds", [200, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize("worse", [1, 2, 3])
def test_a_gap_of_the_stated_smallest_size_is_found(
    worse: int, tolerance: float, seeds: int
) -> None:
    gap = smallest_gap(
        SIZES[0], SIZES[worse], power=0.95, alpha=0.05 / len(PAIRS), tolerance=tolerance
    )

    def found(size: float) -> int:
        rates = [0.5 + size / 2] * 4
        rates[worse] -= size
        tables = (groups(tuple(rates), np.random.default_rng([s, 22])) for s in range(seeds))
        return sum(gap_shown(table, tolerance) for table in tables)

    assert at_least(found(gap), seeds, 0.95)
    assert not at_least(found(tolerance + 0.5 * (gap - tolerance)), seeds, 0.95)


@pytest.mark.parametrize("seeds", [100, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("gap", "least"), [(0.05, 0.2), (0.1, 0.8), (0.2, 0.99)])
def test_gaps_of_five_ten_and_twenty_points_are_seen_in_the_table(
    gap: float, least: float, seeds: int
) -> None:
    hits = 0
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 23])
        table = groups((0.8, 0.8 - gap, 0.8, 0.8), rng)
        hits += permutation_chi_square(table, rng, draws=199) <= 0.05
    assert at_least(hits, seeds, least)
    assert gap > 0.05 or not at_least(hits, seeds, 0.8)


def test_a_table_of_one_site_has_the_p_value_of_pearsons_test() -> None:
    rng = np.random.default_rng(24)
    table = np.array([[[60, 40, 20], [30, 50, 25], [80, 60, 40]]])
    expected = chi2_contingency(table[0], correction=False).pvalue
    assert permutation_chi_square(table, rng, draws=9999) == pytest.approx(expected, abs=0.01)


def test_differences_between_the_sites_are_no_effect_of_the_group() -> None:
    """Simpson's paradox: one site has most of group 1 and errs more, on both groups alike."""
    alarms, pooled_alarms = 0, 0
    for seed in range(200):
        rng = np.random.default_rng([seed, 25])
        sizes, rates = np.array([[300, 30], [50, 400]]), np.array([[0.9], [0.6]])
        right = rng.binomial(sizes, rates)
        table = np.stack([right, sizes - right], axis=2)
        alarms += permutation_chi_square(table, rng, draws=99) <= 0.05
        pooled_alarms += permutation_chi_square(table.sum(0, keepdims=True), rng, draws=99) <= 0.05
    assert at_most(alarms, 200, 0.05)
    assert not at_most(pooled_alarms, 200, 0.05)


def test_random_tables_keep_their_margins_and_have_the_right_law() -> None:
    rng = np.random.default_rng(26)
    rows, columns = np.array([7, 5, 0, 8]), np.array([4, 10, 6])
    drawn = tables_with_margins(rows, columns, rng, 20_000)
    assert (drawn.sum(axis=2) == rows).all()
    assert (drawn.sum(axis=1) == columns).all()
    assert drawn.min() >= 0
    for group, outcome in ((0, 0), (1, 2), (3, 1)):
        law = hypergeom(20, columns[outcome], rows[group])
        cell = drawn[:, group, outcome]
        assert cell.mean() == pytest.approx(law.mean(), abs=0.05)
        assert cell.var() == pytest.approx(law.var(), rel=0.05)
        assert cell.mean() != pytest.approx(law.mean() + 0.2, abs=0.05)


def test_groups_that_a_site_does_not_have_drop_out() -> None:
    table = np.array([[[30, 10], [0, 0], [10, 30]], [[0, 0], [9, 0], [0, 0]]])
    some = permutation_chi_square(table, np.random.default_rng(27))
    whole = permutation_chi_square(table[:1, [0, 2]], np.random.default_rng(27))
    assert some == whole < 0.01


def mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean())


@pytest.mark.parametrize("clusters", [10, 40])
def test_a_mean_over_clusters_lies_in_its_interval(clusters: int) -> None:
    labels = np.repeat(np.arange(clusters), 6)
    inside, by_record = 0, 0
    for seed in range(150):
        rng = np.random.default_rng([seed, 28])
        values = rng.normal(size=clusters)[labels] + 0.3 * rng.normal(size=len(labels))
        found = cluster_bootstrap(values, labels, mean, rng, draws=199)
        inside += found.low <= 0 <= found.high
        wrong = bootstrap(values, mean, rng, draws=199)
        by_record += wrong.low <= 0 <= wrong.high
    assert at_least(inside, 150, 0.93)
    assert not at_least(by_record, 150, 0.93)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(29).normal(size=(30, 2))

    def difference(rows: npt.NDArray[np.float64]) -> float:
        return float((rows[:, 0] - rows[:, 1]).mean())

    first, again, other = (
        bootstrap(values, difference, np.random.default_rng(seed), 99) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    "call",
    [
        lambda rng: permutation_chi_square(np.zeros((1, 2, 2), dtype=int), rng),
        lambda rng: permutation_chi_square(np.array([[[5, 0], [3, 0]]]), rng),
        lambda rng: permutation_chi_square(np.array([[[5, 3]]]), rng),
        lambda rng: permutation_chi_square(np.array([[[5, -3], [1, 2]]]), rng),
        lambda rng: permutation_chi_square(np.array([[5, 3], [1, 2]]), rng),
        lambda rng: permutation_chi_square(np.ones((1, 2, 2)), rng),  # type: ignore[arg-type]
        lambda rng: bootstrap(np.array([]), mean, rng),
        lambda rng: bootstrap(np.array([1.0, np.nan]), mean, rng),
        lambda rng: bootstrap(np.ones(9), mean, rng),
        lambda rng: cluster_bootstrap(np.arange(9.0), np.zeros(9), mean, rng),
        lambda rng: cluster_bootstrap(np.arange(9.0), np.arange(8), mean, rng),
    ],
)
def test_what_no_resampling_is_defined_for_is_refused(
    call: Callable[[np.random.Generator], object],
) -> None:
    with pytest.raises(ScoreError, match="expected"):
        call(np.random.default_rng(0))
