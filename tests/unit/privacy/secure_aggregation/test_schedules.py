"""Which sites drop out when: the exact sum of the others, or a named abort."""

from collections.abc import Collection, Iterator
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CohortTooSmallError, ConfirmationError
from tests.support.aggregation import NAMES, STAGES, Play


def outcome(size: int, lost: dict[str, str], floor: int) -> Collection[str] | type[Exception]:
    """Whose sum must come out, or the error; written down apart from the code under test."""
    left = set(NAMES[:size])
    threshold, survivors = 0, left
    for stage in STAGES:
        left = {name for name in left if lost.get(name) != stage}
        if stage == "advert":
            threshold = 2 * len(left) // 3 + 1
        if stage == "mask":
            survivors = left
        if stage == "confirm" and len(left) < threshold:
            return ConfirmationError
        least = threshold if stage in ("confirm", "reveal") else max(threshold, floor)
        if len(left) < least:
            return CohortTooSmallError
    return survivors


def check(size: int, lost: dict[str, str], floor: int = 3) -> None:
    play, expected = Play(size, min_cohort=floor, dimension=3), outcome(size, lost, floor)
    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            play.run(lost)
        assert caught.type is expected
    else:
        assert np.array_equal(play.run(lost), play.expected(expected))


def subsets(size: int) -> Iterator[tuple[str, ...]]:
    for count in range(size + 1):
        yield from combinations(NAMES[:size], count)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [3, 4, 5])
def test_any_sites_drop_out_at_one_stage(size: int, stage: str) -> None:
    for names in subsets(size):
        check(size, dict.fromkeys(names, stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_any_sites_of_six_drop_out_at_one_stage(stage: str) -> None:
    for names in subsets(6):
        check(6, dict.fromkeys(names, stage))


def test_any_sites_of_three_drop_out_at_any_stages() -> None:
    for fate in product(("", *STAGES), repeat=3):
        check(3, dict(zip(NAMES, fate, strict=False)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [4, 5])
def test_any_sites_drop_out_at_any_stages(size: int) -> None:
    for fate in product(("", *STAGES), repeat=size):
        check(size, dict(zip(NAMES, fate, strict=False)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_floor_above_the_threshold_holds_until_the_survivors_are_fixed(stage: str) -> None:
    for names in subsets(5):
        check(5, dict.fromkeys(names, stage), floor=5)


@settings(max_examples=60)
@given(st.data())
def test_the_sum_is_the_integer_sum_modulo_two_to_the_32(data: st.DataObject) -> None:
    size = data.draw(st.integers(3, 5))
    dimension = data.draw(st.integers(1, 9))
    words = st.integers(0, 2**32 - 1)
    play = Play(size, dimension=dimension)
    rows = {
        name: data.draw(st.lists(words, min_size=dimension, max_size=dimension))
        for name in play.names
    }
    play.inputs = {name: np.array(row, np.uint32) for name, row in rows.items()}
    lost = {}
    if size == 5 and data.draw(st.booleans()):
        lost = {data.draw(st.sampled_from(play.names)): "mask"}
    expected = [
        sum(row[i] for name, row in rows.items() if name not in lost) % 2**32
        for i in range(dimension)
    ]
    assert play.run(lost).view(np.uint32).tolist() == expected


def test_a_masked_vector_shows_nothing_of_its_values() -> None:
    """Under fresh keys, the bits of one site's masked values are those of fair coins."""
    play = Play(dimension=50_000)
    play.inputs["bee"] = np.zeros(50_000, np.uint32)
    play.ready(play.upto("open_shares"))
    masked = play.masked_values["bee"]
    ones = int(np.unpackbits(masked.view(np.uint8)).sum())
    # 1.6 million coins: six standard deviations are 3795.
    assert abs(ones - 800_000) < 3795
    assert np.unpackbits(play.inputs["bee"].view(np.uint8)).sum() == 0
