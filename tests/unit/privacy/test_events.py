import math
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.digests import canonical_json
from core.errors import LedgerError, PrivacyError
from privacy.events import (
    DistributedDpSgdEvent,
    DpSgdEvent,
    Event,
    LaplaceCountsEvent,
    NonPrivateEvent,
    event_from_json,
    event_to_json,
)

STEPS = DpSgdEvent(1.0, 0.01, 200, 10_000, 31, 1.0)
SHARED = DistributedDpSgdEvent(1.0, 0.01, 200, 10_000, 1.0, 2, 1e-25)
EVENTS: list[Event] = [
    STEPS,
    SHARED,
    LaplaceCountsEvent(2.0),
    NonPrivateEvent("no-privacy"),
    NonPrivateEvent("test-noise", STEPS),
    NonPrivateEvent("test-noise", SHARED),
    NonPrivateEvent("test-noise", LaplaceCountsEvent(2.0)),
]


def dp_sgd(**changes: object) -> DpSgdEvent:
    values = {field.name: getattr(STEPS, field.name) for field in fields(STEPS)} | changes
    return DpSgdEvent(**values)


@pytest.mark.parametrize("event", EVENTS)
def test_json_returns_the_same_event(event: Event) -> None:
    assert event_from_json(event_to_json(event)) == event


def test_private_means_that_something_bounds_the_event() -> None:
    assert [event.private for event in EVENTS] == [True] * 3 + [False] * 4


def test_steps_that_a_reserve_covers() -> None:
    assert [event.steps for event in EVENTS] == [31, 1, 1, None, 31, 1, 1]


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        STEPS.steps = 1  # type: ignore[misc]


def test_equal_numbers_are_written_alike() -> None:
    written = {
        canonical_json(event_to_json(dp_sgd(noise_multiplier=value)))
        for value in (1, 1.0, np.float64(1))
    }
    assert len(written) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, r"expected noise_multiplier between 0\.1 and 100000, got 0\.0"),
        ({"noise_multiplier": math.nan}, "expected noise_multiplier .* got nan"),
        ({"noise_multiplier": math.inf}, "expected noise_multiplier .* got inf"),
        ({"noise_multiplier": "1"}, "expected noise_multiplier .* got '1'"),
        ({"noise_multiplier": True}, "expected noise_multiplier .* got True"),
        ({"noise_multiplier": 10**400}, "expected noise_multiplier between"),
        ({"sample_rate": 0.0}, "expected sample_rate between"),
        ({"sample_rate": 1.01}, r"expected sample_rate between 1e-12 and 1, got 1\.01"),
        ({"max_grad_norm": -1.0}, "expected max_grad_norm between"),
        ({"max_grad_norm": math.inf}, "expected max_grad_norm between"),
        ({"steps": 0}, "expected steps as an integer from 1 to 10000000, got 0"),
        ({"steps": 1.0}, "expected steps as an integer"),
        ({"steps": True}, "expected steps as an integer"),
        ({"max_batch_size": 0}, "expected max_batch_size as an integer"),
        ({"max_examples": -5}, "expected max_examples as an integer"),
        ({"unit": "user"}, "expected unit as one of record, got 'user'"),
        ({"neighbouring": "replace_one"}, "expected neighbouring as one of add_or_remove_one"),
        ({"sampler": "shuffle"}, "expected sampler as one of truncated-poisson, got 'shuffle'"),
    ],
)
def test_dp_sgd_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        dp_sgd(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, r"expected noise_multiplier between 0\.1 and 100000, got 0\.0"),
        ({"sample_rate": 1.01}, r"expected sample_rate between 1e-12 and 1, got 1\.01"),
        ({"max_batch_size": 0}, "expected max_batch_size as an integer"),
        ({"max_examples": -5}, "expected max_examples as an integer"),
        ({"max_grad_norm": math.inf}, "expected max_grad_norm between"),
        ({"unit": "user"}, "expected unit as one of record, got 'user'"),
        ({"neighbouring": "replace_one"}, "expected neighbouring as one of add_or_remove_one"),
        ({"sampler": "shuffle"}, "expected sampler as one of truncated-poisson, got 'shuffle'"),
        ({"colluding_sites": -1}, "expected colluding_sites as an integer from 0 to 10000"),
        ({"colluding_sites": 1.0}, "expected colluding_sites as an integer"),
        ({"distance": -1e-30}, "expected distance between 0 and 1, got -1e-30"),
        ({"distance": 1.1}, "expected distance between 0 and 1"),
        ({"distance": math.nan}, "expected distance between 0 and 1, got nan"),
        ({"distance": None}, "expected distance between 0 and 1, got None"),
    ],
)
def test_a_step_over_all_sites_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        replace(SHARED, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "1", None])
def test_counts_refuse_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(PrivacyError, match=r"expected scale between 0\.01 and 1e\+09, got"):
        LaplaceCountsEvent(scale)


def test_non_private_refuses_an_unknown_reason() -> None:
    with pytest.raises(PrivacyError, match="reason as one of no-privacy, test-noise, got 'why'"):
        NonPrivateEvent("why")  # type: ignore[arg-type]


def test_non_private_refuses_what_could_not_have_been() -> None:
    with pytest.raises(PrivacyError, match="expected would_be as a private event or None, got"):
        NonPrivateEvent("test-noise", NonPrivateEvent("no-privacy"))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, [], "dp-sgd", 1])
def test_only_an_object_is_an_event(value: object) -> None:
    with pytest.raises(LedgerError, match="expected an event as an object, got"):
        event_from_json(value)


@pytest.mark.parametrize("kind", ["dp-ftrl", None, ["dp-sgd"]])
def test_an_unknown_kind_is_refused(kind: object) -> None:
    kinds = "dp-sgd, distributed-dp-sgd, laplace-counts, non-private"
    message = f"expected an event of kind {kinds}, got .*\n.*newer"
    with pytest.raises(LedgerError, match=message):
        event_from_json({"kind": kind, "scale": 2.0})


@pytest.mark.parametrize("event", EVENTS)
def test_an_unknown_or_missing_field_is_refused(event: Event) -> None:
    written = event_to_json(event)
    with pytest.raises(LedgerError, match=r"with the fields .* got .*extra"):
        event_from_json(written | {"extra": 1})
    for name in written.keys() - {"kind"}:
        with pytest.raises(LedgerError, match=f"expected an event {event.kind} with the fields"):
            event_from_json({key: value for key, value in written.items() if key != name})


def test_a_value_out_of_range_is_the_ledgers_error() -> None:
    message = "the event laplace-counts does not fit: expected scale between"
    with pytest.raises(LedgerError, match=message):
        event_from_json({"kind": "laplace-counts", "scale": -1.0})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(EVENTS), st.data())
def test_nothing_raw_escapes_from_reading(event: Event, data: st.DataObject) -> None:
    written = event_to_json(event)
    written[data.draw(st.sampled_from(sorted(written)))] = data.draw(JSON)
    try:
        read = event_from_json(written)
    except LedgerError:
        return
    assert event_to_json(read) == written
