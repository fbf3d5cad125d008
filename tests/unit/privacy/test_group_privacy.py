"""The epsilon of several records together: against one record's, group privacy, and itself."""

import math

import pytest

from core.errors import PrivacyError
from privacy.accounting import life_epsilon
from privacy.events import DistributedDpSgdEvent, DpSgdEvent, LaplaceCountsEvent, NonPrivateEvent
from privacy.group_privacy import group_epsilon

STEPS = DpSgdEvent(
    noise_multiplier=1.0,
    sample_rate=0.1,
    max_batch_size=100,
    max_examples=100,
    steps=20,
    max_grad_norm=1.0,
)


def epsilon(size: int, delta: float = 1e-5, event: DpSgdEvent = STEPS) -> float:
    found = group_epsilon([event], size, delta)
    assert found is not None
    return found


def test_one_record_has_its_own_epsilon() -> None:
    assert epsilon(1) == pytest.approx(life_epsilon([STEPS], 1e-5), rel=2e-3)
    assert epsilon(1) >= life_epsilon([STEPS], 1e-5) - 1e-6


def test_it_grows_with_the_group() -> None:
    found = [epsilon(size) for size in (1, 2, 3, 5)]
    assert found == sorted(found)
    assert found[1] > 1.5 * found[0]


def test_it_is_no_worse_than_group_privacy_by_the_definition() -> None:
    """(epsilon, delta)-DP for one record is (2 epsilon, (1 + exp(epsilon)) delta)-DP for two."""
    for small in (1e-7, 1e-9):
        one = life_epsilon([STEPS], small)
        assert epsilon(2, (1 + math.exp(one)) * small) <= 2 * one + 0.01


def test_of_a_gaussian_without_sampling_it_is_that_of_a_longer_shift() -> None:
    whole = DpSgdEvent(
        noise_multiplier=12.0,
        sample_rate=1.0,
        max_batch_size=10,
        max_examples=10,
        steps=4,
        max_grad_norm=1.0,
    )
    longer = DpSgdEvent(
        noise_multiplier=4.0,
        sample_rate=1.0,
        max_batch_size=10,
        max_examples=10,
        steps=4,
        max_grad_norm=1.0,
    )
    assert epsilon(3, event=whole) == pytest.approx(life_epsilon([longer], 1e-5), rel=5e-3)


def test_counts_change_by_one_for_each_record() -> None:
    found = group_epsilon([LaplaceCountsEvent(scale=10.0)], 3, 1e-9)
    assert found == pytest.approx(0.3, rel=0.05)


def test_without_a_bound_there_is_no_number() -> None:
    assert group_epsilon([NonPrivateEvent("no-privacy")], 2, 1e-5) is None
    shared = DistributedDpSgdEvent(
        noise_multiplier=1.0,
        sample_rate=0.1,
        max_batch_size=100,
        max_examples=100,
        max_grad_norm=1.0,
        colluding_sites=0,
        distance=1e-20,
    )
    assert group_epsilon([shared], 2, 1e-5) is None
    often_cut = DpSgdEvent(
        noise_multiplier=1.0,
        sample_rate=0.5,
        max_batch_size=50,
        max_examples=100,
        steps=1,
        max_grad_norm=1.0,
    )
    assert group_epsilon([often_cut], 2, 1e-5) is None
    assert group_epsilon([], 2, 1e-5) == 0.0


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(PrivacyError):
        group_epsilon([STEPS], 0, 1e-5)
    with pytest.raises(PrivacyError):
        group_epsilon([STEPS], 2, 0.0)
