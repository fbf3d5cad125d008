from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from audit.intervals import (
    bonferroni,
    clopper_pearson,
    exact_binomial,
    holm,
    newcombe,
    permutation_p,
    rank_p_value,
    smallest_gap,
    student,
    wilson,
)
from audit.verdicts import Interval
from core.errors import ScoreError
from tests.support.rates import at_least, at_most, uniform

p_value_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def covered(
    method: Callable[[int, int], Interval], trials: int, rate: float, chances: Sequence[float]
) -> float:
    """The exact probability that the interval holds the rate."""
    inside = [
        method(count, trials).low <= rate <= method(count, trials).high
        for count in range(trials + 1)
    ]
    return float(np.dot(inside, chances))


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40)])
def test_proportions_agree_with_scipy(successes: int, trials: int, confidence: float) -> None:
    test = binomtest(successes, trials)
    for ours, name in ((clopper_pearson, "exact"), (wilson, "wilson")):
        found = ours(successes, trials, confidence)
        expected = test.proportion_ci(confidence, method=name)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert found.confidence == confidence


def test_newcombe_agrees_with_the_published_examples() -> None:
    """Newcombe 1998, Table II, method 10: a, b, d, g and h."""
    published = {
        (56, 70, 48, 80): (0.0524, 0.3339),
        (9, 10, 3, 10): (0.1705, 0.8090),
        (5, 56, 0, 29): (-0.0381, 0.1926),
        (0, 10, 0, 10): (-0.2775, 0.2775),
        (10, 10, 0, 10): (0.6075, 1.0),
    }
    for counts, ends in published.items():
        found = newcombe(*counts)
        assert (found.low, found.high) == pytest.approx(ends, abs=1e-4)
        swapped = newcombe(*counts[2:], *counts[:2])
        assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.37, 0.5, 0.95])
@pytest.mark.parametrize("trials", [10, 30, 200])
def test_the_exact_interval_covers_at_every_rate(trials: int, rate: float) -> None:
    chances = binom.pmf(np.arange(trials + 1), trials, rate)
    assert covered(clopper_pearson, trials, rate, chances) >= 0.95
    assert covered(wilson, trials, rate, chances) >= 0.83  # its known worst place
    narrow = covered(lambda s, n: clopper_pearson(s, n, 0.5), trials, rate, chances)
    assert narrow < 0.95 or trials * min(rate, 1 - rate) < 5


def test_the_score_interval_covers_on_average() -> None:
    rates = np.linspace(0.005, 0.995, 199)
    chances = [binom.pmf(np.arange(51), 50, rate) for rate in rates]
    found = [covered(wilson, 50, rate, one) for rate, one in zip(rates, chances, strict=True)]
    assert float(np.mean(found)) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.9, 0.8), (0.05, 0.02)])
def test_a_difference_lies_in_its_interval(first: float, second: float) -> None:
    rng = np.random.default_rng(6)
    draws = zip(rng.binomial(300, first, 800), rng.binomial(100, second, 800), strict=True)
    found = [newcombe(int(s1), 300, int(s2), 100) for s1, s2 in draws]
    inside = sum(one.low <= first - second <= one.high for one in found)
    assert at_least(inside, 800, 0.95)
    assert not at_least(
        sum(one.low <= first - second + 0.2 <= one.high for one in found), 800, 0.95
    )


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_the_exact_test_agrees_with_sums(alternative: str) -> None:
    mass = binom.pmf(np.arange(21), 20, 0.3)
    sums = {
        "greater": mass[9:].sum(),
        "less": mass[:10].sum(),
        "two-sided": mass[mass <= mass[9] * (1 + 1e-9)].sum(),
    }
    assert exact_binomial(9, 20, 0.3, alternative) == pytest.approx(sums[alternative])  # type: ignore[arg-type]


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bonferroni([0.01, 0.04, 0.3]) == pytest.approx([0.03, 0.12, 0.9])


@given(p_value_lists)
def test_holm_lies_between_the_p_values_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for one, ours, most in zip(p_values, adjusted, bonferroni(p_values), strict=True):
        assert one <= ours <= most <= 1
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_rarely_rejects_anything_where_nothing_is_there() -> None:
    rng = np.random.default_rng(7)
    families = rng.random((2000, 8))
    assert at_most(sum(min(holm(list(one))) <= 0.05 for one in families), 2000, 0.05)
    assert not at_most(int((families.min(axis=1) <= 0.05).sum()), 2000, 0.05)


def test_a_permutation_p_value_is_never_zero_and_counts_ties() -> None:
    draws = np.array([1.0, 2.0, 3.0])
    assert permutation_p(4.0, draws) == 1 / 4
    assert permutation_p(3.0, draws) == 2 / 4
    assert permutation_p(0.1 + 0.2, np.array([0.3])) == 1
    assert permutation_p(0.0, draws) == 1


def test_a_rank_is_uniform_where_the_record_is_like_the_others() -> None:
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(500, 1000))
    ranks = 1 + (scores[:, 1:] > scores[:, :1]).sum(axis=1)
    assert uniform([rank_p_value(int(rank), 1000) for rank in ranks])
    raised = 1 + (scores[:, 1:] > scores[:, :1] + 0.5).sum(axis=1)
    assert not uniform([rank_p_value(int(rank), 1000) for rank in raised])
    assert rank_p_value(1, 200) == 1 / 200


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [(500, 300), (500, 30), (30, 30)])
@pytest.mark.parametrize("place", ["middle", "top"])
def test_the_smallest_gap_is_found_as_often_as_stated(
    sizes: tuple[int, int], tolerance: float, place: str
) -> None:
    rng = np.random.default_rng(9)
    n1, n2 = sizes

    def found(gap: float) -> int:
        higher = 0.5 + gap / 2 if place == "middle" else 0.98
        first, second = rng.binomial(n1, higher, 600), rng.binomial(n2, higher - gap, 600)
        pairs = zip(first, second, strict=True)
        return sum(newcombe(int(a), n1, int(b), n2).low > tolerance for a, b in pairs)

    gap = smallest_gap(n1, n2, power=0.95, alpha=0.05, tolerance=tolerance)
    assert at_least(found(gap), 600, 0.95)
    if place == "middle":
        assert not at_least(found(tolerance + 0.7 * (gap - tolerance)), 600, 0.95)


def test_the_smallest_gap_shrinks_with_records_and_grows_with_what_is_asked() -> None:
    assert smallest_gap(100, 100) > smallest_gap(400, 400) == pytest.approx(0.129, abs=0.005)
    assert smallest_gap(100, 100, power=0.99) > smallest_gap(100, 100, power=0.8)
    assert smallest_gap(100, 100, alpha=0.01) > smallest_gap(100, 100)
    assert smallest_gap(1, 1) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(0, 0),
        lambda: clopper_pearson(5, 4),
        lambda: wilson(-1, 4),
        lambda: wilson(1, 4, 1.0),
        lambda: newcombe(1, 2, 0, 0),
        lambda: exact_binomial(1, 2, 1.5),
        lambda: holm([]),
        lambda: holm([0.5, float("nan")]),
        lambda: bonferroni([1.5]),
        lambda: permutation_p(float("nan"), np.ones(3)),
        lambda: permutation_p(1.0, np.array([])),
        lambda: permutation_p(1.0, np.array([1.0, np.nan])),
        lambda: rank_p_value(0, 10),
        lambda: rank_p_value(11, 10),
        lambda: smallest_gap(0, 5),
        lambda: smallest_gap(5, 5, power=1.0),
    ],
)
def test_what_no_statistic_is_defined_for_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ScoreError, match="expected"):
        call()


def test_the_t_interval_of_a_few_repetitions_covers() -> None:
    rng = np.random.default_rng(13)
    found = [student(rng.normal(0.3, 0.2, 5)) for _ in range(2000)]

    assert 0.935 < np.mean([one.low <= 0.3 <= one.high for one in found]) < 0.965
    with pytest.raises(ScoreError, match="alike"):
        student(np.ones(5))
