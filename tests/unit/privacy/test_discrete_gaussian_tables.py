"""A table's distribution, worked out exactly from its cells, is the discrete Gaussian."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from core.errors import PrivacyError
from privacy.discrete_gaussian_tables import (
    CELLS,
    MAX_TABLE_VARIANCE,
    STAGES,
    TABLE_DISTANCE,
    Table,
    gaussian_table,
)
from privacy.random_source import RandomStream

VARIANCES = [Fraction(1), Fraction(1000, 7), Fraction(33, 2) ** 2, Fraction(528**2)]


def exact_probabilities(variance: Fraction, reach: int) -> list[Decimal]:
    """Of -reach, ..., reach, to 90 digits; each exponential on its own."""
    with localcontext() as context:
        context.prec = 90
        two = Decimal(2 * variance.numerator) / Decimal(variance.denominator)
        half = [(-Decimal(k * k) / two).exp() for k in range(reach + 1)]
        total = half[0] + 2 * sum(half[1:])
        return [weight / total for weight in half[:0:-1] + half]


def table_probabilities(table: Table) -> list[Fraction]:
    """Of -reach, ..., reach, if every bit is ideal."""
    found = [Fraction(0)] * (2 * table.reach + 1)
    left = Fraction(1)
    for stage in table.stages:
        counts = np.bincount(
            stage.outcomes.numpy()[: stage.sure] + table.reach, minlength=len(found)
        )
        found = [p + left * Fraction(int(c), CELLS) for p, c in zip(found, counts, strict=True)]
        left *= Fraction(CELLS - stage.sure, CELLS)
    steps = np.diff(np.array([0, *table.bounds], dtype=object))
    return [p + left * Fraction(step, 2**128) for p, step in zip(found, steps, strict=True)]


def distance(found: list[Fraction], expected: list[Decimal]) -> Fraction:
    """Total variation."""
    gaps = (abs(f - Fraction(e)) for f, e in zip(found, expected, strict=True))
    return sum(gaps, Fraction(0)) / 2


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_table_is_the_discrete_gaussian_of_its_variance_and_of_no_other(
    variance: Fraction,
) -> None:
    table = gaussian_table(variance)
    found = table_probabilities(table)
    assert sum(found) == 1
    assert distance(found, exact_probabilities(variance, table.reach)) < TABLE_DISTANCE
    near = exact_probabilities(variance * (1 + Fraction(1, 10**9)), table.reach)
    assert distance(found, near) > 2.0**-40


def test_the_tail_that_is_cut_is_below_two_to_the_minus_128() -> None:
    """The mass beyond the reach is below twice a normal distribution's."""
    for variance in VARIANCES:
        reach = gaussian_table(variance).reach
        exponent = Decimal(reach * reach * variance.denominator) / Decimal(2 * variance.numerator)
        assert (-exponent).exp() < Decimal(2) ** -128


def test_known_answers() -> None:
    """Of variance 1: exp(-k*k/2) over sqrt(2 pi) (1 + 2 exp(-2 pi^2)), by Poisson summation."""
    found = table_probabilities(gaussian_table(Fraction(1)))
    middle = len(found) // 2
    expected = [0.3989422783, 0.2419707233, 0.0539909662, 0.0044318484]
    for k, probability in enumerate(expected):
        assert float(found[middle + k]) == pytest.approx(probability, abs=1e-10)
        assert found[middle + k] == pytest.approx(found[middle - k], abs=1e-30)


@pytest.mark.parametrize("variance", [*VARIANCES, MAX_TABLE_VARIANCE])
def test_few_draws_need_more_than_a_cell(variance: Fraction) -> None:
    unsure = [1 - stage.sure / CELLS for stage in gaussian_table(variance).stages]
    assert len(unsure) == STAGES
    assert unsure[0] < 0.04
    assert 0 < np.prod(unsure) < 1e-4


class FixedBits(RandomStream):
    """A stream of chosen cells and words, to stand at the edges."""

    def __init__(self, cells: list[list[int]], words: list[int]) -> None:
        super().__init__(bytes(32))
        self.given, self.last = [np.array(one, dtype="<u2") for one in cells], words

    def cells(self, count: int) -> npt.NDArray[np.uint16]:
        drawn = self.given.pop(0)
        assert len(drawn) == count
        return drawn

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        assert count == len(self.last)
        return np.array(self.last, dtype=np.uint64)


def test_cells_at_the_edges_of_each_stage() -> None:
    table = gaussian_table(Fraction(1000, 7))
    one, two = table.stages[1], table.stages[2]
    halves = [half for bound in table.bounds[40:43] for half in (bound >> 64, bound % 2**64)]
    halves[5] -= 1
    stream = FixedBits(
        [[0, one.sure - 1, one.sure, CELLS - 1, 9, 65500], [two.sure, two.sure, CELLS - 1]],
        halves,
    )
    assert 65500 > one.sure > 9
    drawn = table.refine(stream, 6).tolist()
    last = [41 - table.reach, 42 - table.reach, 42 - table.reach]  # the third just below its bound
    first, final, *_ = (int(one.outcomes[i]) for i in (0, one.sure - 1))
    assert drawn == [first, final, last[0], last[1], int(one.outcomes[9]), last[2]]


def test_the_last_step_reaches_both_ends() -> None:
    table = gaussian_table(Fraction(1000, 7))
    ends = FixedBits([], [0, 0, 2**64 - 1, 2**64 - 1])
    assert table.refine(ends, 2, STAGES).tolist() == [-table.reach, table.reach]


def test_a_table_is_made_once() -> None:
    assert gaussian_table(Fraction(33, 2)) is gaussian_table(Fraction(66, 4))


@pytest.mark.parametrize("variance", [Fraction(99, 100), MAX_TABLE_VARIANCE + 1, Fraction(0)])
def test_a_variance_out_of_range_is_refused(variance: Fraction) -> None:
    with pytest.raises(PrivacyError, match="expected a table's variance from 1 to 409600, got"):
        gaussian_table(variance)
