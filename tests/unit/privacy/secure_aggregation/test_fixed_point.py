import tracemalloc
from typing import Any

import numpy as np
import pytest

from core.errors import ModulusCapacityError, SecureAggregationError, ValueRangeError
from privacy.secure_aggregation.fixed_point import (
    BLOCK,
    FixedPoint,
    check_capacity,
    fitting_bits,
)
from tests.support import naive_secagg as naive

GRID = FixedPoint(step=1.0 / (2**23 - 1), bits=24)
WHOLE = FixedPoint(step=1.0, bits=24)


def encoded(grid: FixedPoint, values: Any, before: Any = None, factor: float = 1.0) -> list[int]:
    array = np.asarray(values, np.float32)
    reference = None if before is None else {"w": np.asarray(before, np.float32)}
    out = np.full(array.size, 7, np.uint32)
    grid.encode({"w": array}, reference, factor, out)
    return out.tolist()


def signed(grid: FixedPoint, values: Any, **more: Any) -> list[int]:
    return [naive.signed(value) for value in encoded(grid, values, **more)]


def test_half_goes_to_the_even_neighbour() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49, -3.51]
    assert signed(WHOLE, values) == [0, 2, 2, 0, -2, -2, 3, -4]


def test_negative_values_are_written_in_twos_complement() -> None:
    assert encoded(WHOLE, [-1.0, -(2.0**23) + 1]) == [2**32 - 1, 2**32 - 2**23 + 1]


def test_the_reference_is_subtracted_and_the_factor_scales() -> None:
    assert signed(WHOLE, [10.0, -3.0], before=[4.0, 1.0], factor=0.5) == [3, -2]
    assert signed(FixedPoint(0.25, 24), [10.0], before=[4.0]) == [24]


def test_the_difference_is_not_rounded_to_fp32_first() -> None:
    # fp32 makes 1 of both differences, whose half goes to 0.
    grid = FixedPoint(2.0**-5, 24)
    assert signed(grid, [1.0], before=[2.0**-30], factor=2.0**-6) == [0]
    assert signed(grid, [1.0], before=[-(2.0**-30)], factor=2.0**-6) == [1]


@pytest.mark.parametrize("size", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_integers_equal_the_naive_ones_whatever_the_block(size: int) -> None:
    generator = np.random.default_rng(size)
    values = generator.uniform(-0.4, 0.4, size).astype(np.float32)
    before = generator.uniform(-0.4, 0.4, size).astype(np.float32)
    expected = naive.encoded(values.tolist(), before.tolist(), 0.7 / GRID.step)
    assert encoded(GRID, values, before=before, factor=0.7) == expected


def test_coordinates_are_in_the_order_of_sorted_names_and_of_c() -> None:
    arrays = {
        "b": np.array([[1, 2], [3, 4]], np.float32),
        "a.z": np.float32(9).reshape(()),
        "a": np.asfortranarray(np.array([[5, 6], [7, 8]], np.float32)),
        "c": np.zeros((0, 3), np.float32),
    }
    out = np.zeros(9, np.uint32)
    WHOLE.encode(arrays, None, 1.0, out)
    assert out.tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**23, -(2.0**23), 3e38, -3e38])
@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK])
def test_what_does_not_fit_is_refused_and_nothing_is_left(bad: float, place: int) -> None:
    values = np.ones(2 * BLOCK + 1, np.float32)
    values[place] = bad
    out = np.full(values.size, 7, np.uint32)
    with pytest.raises(ValueRangeError, match=r"expected values of at most 8388607 steps in w"):
        WHOLE.encode({"w": values}, None, 1.0, out)
    assert not out.any()


@pytest.mark.parametrize(
    ("value", "before", "factor"),
    [(np.inf, np.inf, 1.0), (3e38, -3e38, 1e300), (0.0, 0.0, np.inf), (1.0, 0.0, np.nan)],
)
def test_nothing_that_computes_to_no_number_is_let_through(
    value: float, before: float, factor: float
) -> None:
    with pytest.raises(ValueRangeError, match=r"NaN or infinity"):
        encoded(WHOLE, [value], before=[before], factor=factor)


def test_the_ends_of_the_range_fit() -> None:
    limit = 2**23 - 1
    assert signed(WHOLE, [limit, -limit]) == [limit, -limit]
    assert signed(GRID, [1.0, -1.0]) == [limit, -limit]
    assert WHOLE.limit == limit


def test_an_update_of_the_whole_norm_in_one_coordinate_stays_in_range() -> None:
    generator = np.random.default_rng(3)
    for bound in (1.0, 0.1, 0.3, 7.7, 1e-3, *generator.uniform(0.01, 100.0, 200)):
        grid = FixedPoint(bound / (2**23 - 1), 24)
        long = np.float32(generator.uniform(1.0, 50.0) * bound)
        assert signed(grid, [long], factor=bound / float(long)) == [2**23 - 1]


def test_encoding_keeps_one_block_only() -> None:
    values = {"w": np.zeros(1 << 21, np.float32)}
    out = np.zeros(1 << 21, np.uint32)
    tracemalloc.start()
    try:
        GRID.encode(values, values, 1.0, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 10


@pytest.mark.parametrize(
    ("arrays", "reference", "size"),
    [
        ({"w": np.zeros(3, np.float32)}, None, 4),
        ({"w": np.zeros(3, np.float32)}, None, 2),
        ({"w": np.zeros(3, np.float64)}, None, 3),
        ({"w": np.zeros(3, np.float16)}, None, 3),
        ({"w": np.zeros(3, np.float32)}, {"v": np.zeros(3, np.float32)}, 3),
        ({"w": np.zeros(3, np.float32)}, {"w": np.zeros(1, np.float32)}, 3),
        ({"w": np.zeros(3, np.float32)}, {"w": np.zeros(3, np.float64)}, 3),
        ({}, {"w": np.zeros(3, np.float32)}, 0),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    arrays: Any, reference: Any, size: int
) -> None:
    out = np.full(size, 7, np.uint32)
    with pytest.raises(SecureAggregationError, match=r"expected (fp32|the names|room)"):
        GRID.encode(arrays, reference, 1.0, out)


def test_room_of_another_kind_is_refused() -> None:
    arrays = {"w": np.zeros(3, np.float32)}
    for out in (np.zeros(3, np.int32), np.zeros((3, 1), np.uint32)):
        with pytest.raises(SecureAggregationError, match=r"expected room for 3 uint32"):
            GRID.encode(arrays, None, 1.0, out)  # type: ignore[arg-type]


def test_ten_thousand_sums_equal_the_integers_sum() -> None:
    generator = np.random.default_rng(20_260_131)
    for _ in range(10_000):
        cohort = int(generator.integers(1, 257))
        bits = fitting_bits(cohort, int(generator.integers(8, 25)))
        limit = 2 ** (bits - 1) - 1
        # The extremes as often as anything between them.
        values = generator.integers(-limit, limit + 1, (cohort, 3))
        values[generator.random((cohort, 3)) < generator.choice([0.0, 0.5, 1.0])] = (
            limit * generator.choice([-1, 1])
        )
        grid, total = FixedPoint(1.0, bits), np.zeros(3, np.uint32)
        out = np.empty(3 * cohort, np.uint32)
        grid.encode({"w": values.astype(np.float32)}, None, 1.0, out)
        for row in out.reshape(cohort, 3):
            total += row
        assert total.view(np.int32).tolist() == values.sum(axis=0).tolist()


def test_a_sum_is_decoded_to_its_mean_and_rounded_once() -> None:
    random = np.random.default_rng(11).integers(-(2**31), 2**31, 1000)
    total = np.array([3, -5, 2**31 - 1, -(2**31), *random], np.int32)
    grid = FixedPoint(0.1, 24)
    expected = np.array(naive.decoded([int(v) % 2**32 for v in total], 0.1, 1.75), np.float32)
    for form in (total, total.view(np.uint32)):
        found = grid.decode(form, 1.75)
        assert found.dtype == np.float32
        assert found.tolist() == expected.tolist()


def test_decoding_goes_over_every_block() -> None:
    total = np.arange(-BLOCK, BLOCK + 5, dtype=np.int32)
    assert np.array_equal(FixedPoint(0.5, 24).decode(total), total.astype(np.float32) / 2)


@pytest.mark.parametrize("divisor", [0.0, -1.0, np.nan, np.inf])
def test_a_divisor_that_gives_no_mean_is_refused(divisor: float) -> None:
    with pytest.raises(SecureAggregationError, match=r"a divisor above 0"):
        GRID.decode(np.zeros(3, np.int32), divisor)


def test_only_sums_of_32_bits_are_decoded() -> None:
    with pytest.raises(SecureAggregationError, match=r"expected a sum of 32-bit integers"):
        GRID.decode(np.zeros(3, np.int64))


def test_encoded_values_come_back_within_half_a_step() -> None:
    values = np.random.default_rng(5).uniform(-1, 1, 10_000).astype(np.float32)
    out = np.empty(values.size, np.uint32)
    GRID.encode({"w": values}, None, 1.0, out)
    # Half a step, and the rounding of the result to fp32.
    assert np.abs(GRID.decode(out) - values).max() <= GRID.step / 2 + 2.0**-24


def test_without_the_check_300_sites_of_24_bits_turn_one_into_its_contrary() -> None:
    each = np.empty(1, np.uint32)
    GRID.encode({"w": np.ones(1, np.float32)}, None, 1.0, each)
    total = np.zeros(1, np.uint32)
    for _ in range(300):
        total += each
    assert GRID.decode(total, 300.0)[0] == pytest.approx(-0.71, abs=0.005)
    with pytest.raises(ModulusCapacityError, match=r"got 300 sites of 24 bits each"):
        check_capacity(300, 24)


@pytest.mark.parametrize(
    ("cohort", "bits"), [(256, 24), (1, 32), (2, 31), (3, 30), (65_536, 16), (2**31 - 1, 2)]
)
def test_the_largest_cohorts_fit(cohort: int, bits: int) -> None:
    check_capacity(cohort, bits)
    assert cohort * (2 ** (bits - 1) - 1) < 2**31


@pytest.mark.parametrize(
    ("cohort", "bits"),
    [(257, 24), (2, 32), (3, 31), (65_539, 16), (2**31, 2), (0, 24), (-1, 24), (3, 1)],
)
def test_one_more_does_not_fit(cohort: int, bits: int) -> None:
    with pytest.raises(ModulusCapacityError):
        check_capacity(cohort, bits)


def test_bits_are_as_many_as_fit_and_never_more_than_wanted() -> None:
    assert fitting_bits(256, 24) == 24
    assert fitting_bits(257, 24) == 23
    assert fitting_bits(3, 12) == 12
    for cohort in (3, 256, 257, 600, 5000):
        bits = fitting_bits(cohort, 24)
        check_capacity(cohort, bits)
        if bits < 24:
            with pytest.raises(ModulusCapacityError):
                check_capacity(cohort, bits + 1)


@pytest.mark.parametrize(("cohort", "wanted"), [(3, 7), (2**25, 24)])
def test_too_few_bits_are_refused(cohort: int, wanted: int) -> None:
    with pytest.raises(ModulusCapacityError, match=r"expected room for 8 bits of each site"):
        fitting_bits(cohort, wanted)


@pytest.mark.parametrize(
    ("step", "bits"), [(0.0, 24), (-1.0, 24), (np.nan, 24), (np.inf, 24), (1.0, 1), (1.0, 33)]
)
def test_a_grid_that_is_none_is_refused(step: float, bits: int) -> None:
    with pytest.raises(ModulusCapacityError):
        FixedPoint(step, bits)
