from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest

from core.config_sections import PrivacySection, SecureAggregationSection
from core.errors import (
    CohortTooSmallError,
    ContextMismatchError,
    DeadlineError,
    ModulusCapacityError,
    PrivacyError,
    SecureAggregationError,
    ThresholdError,
    UnknownMemberError,
)
from core.messages import TrainTask
from core.wire.documents import Roster
from privacy.distributed import grid_of
from privacy.secure_aggregation.context import (
    check_threshold,
    context_of,
    coordinates,
    least_survivors,
    max_colluding,
    roster_digest,
    threshold,
)
from tests.support import naive_secagg
from tests.support.attempts import SITES, context, order, roster

OTHER_VALUES: dict[str, Any] = {
    "federation": "clinics",
    "run_id": "0123456789abcdee",
    "server_round": 5,
    "attempt": 2,
    "nonce": "6" * 63 + "7",
    "roster_epoch": 4,
    "roster_digest": "7" * 63 + "6",
    "model_digest": "4" * 63 + "5",
    "task_digest": "8" * 63 + "9",
    "members": ("east", "north", "west"),
    "weights": (("east", 1000), ("north", 2000), ("south", 3000)),
    "dimension": 1001,
    "min_cohort": 4,
    "step": (2.0**-22).hex(),
    "bits": 23,
    "deadline": "2026-01-31T12:00:01Z",
    "protocol": "cloister-secagg/2",
    "noise_multiplier": (1.25).hex(),
}


def test_any_changed_field_changes_the_digest() -> None:
    assert [field.name for field in fields(context())] == list(OTHER_VALUES)
    digests = {context(**{name: value}).digest() for name, value in OTHER_VALUES.items()}
    assert len(digests | {context().digest()}) == len(OTHER_VALUES) + 1


def test_names_cannot_move_from_one_field_to_another() -> None:
    one = context(members=("a", "b,c"), weights=(("a", 1), ("b,c", 1)))
    other = context(members=("a,b", "c"), weights=(("a,b", 1), ("c", 1)))
    assert one.digest() != other.digest()


def test_the_digest_is_the_one_of_the_naive_implementation() -> None:
    assert context().hexdigest() == naive_secagg.context_digest(_plain(context())).hex()
    assert len(context().digest()) == 32


def _plain(found: Any) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


def test_site_and_coordinator_compute_the_same_from_their_own_orders() -> None:
    listed = roster()
    asked = order(listed)
    there = asked.model_copy(update={"site": "west", "num_examples": 1, "ledger_witness": None})
    assert context_of(asked, listed) == context_of(there, roster())


def test_the_context_holds_what_order_and_roster_say() -> None:
    listed = roster(names=("north", "west", "east"))
    found = context_of(order(listed), listed)
    assert found.members == ("east", "north", "west")
    assert found.weights == (("east", 3000), ("north", 1000), ("west", 2000))
    assert found.roster_digest == roster_digest(listed)
    assert (found.federation, found.min_cohort, found.dimension) == ("clinic", 3, 1000)
    assert found.model_digest == "4" * 64
    assert found.task_digest == order(listed).terms.digest()
    assert found.protocol == "cloister-secagg/1"
    assert found.ends() > datetime(2020, 1, 1, tzinfo=UTC)


def test_weights_come_from_the_roster_and_the_largest_counts_whole() -> None:
    found = context_of(order(roster()), roster())
    assert [found.fraction(site) for site in SITES] == [0.25, 0.5, 0.75, 1.0]
    assert found.total_fraction(["east", "west"]) == 1.25
    with pytest.raises(UnknownMemberError, match=r"expected a member of the attempt, got 'mars'"):
        found.fraction("mars")


def test_places_follow_the_rosters_own_order_and_begin_at_one() -> None:
    listed = roster(names=("north", "west", "east"))
    assert coordinates(listed) == {"north": 1, "west": 2, "east": 3}


@pytest.mark.parametrize(("bits", "norm"), [(24, 1.0), (16, 0.1)])
def test_the_grid_reaches_from_minus_the_norm_to_the_norm(bits: int, norm: float) -> None:
    section = SecureAggregationSection(bits=bits, max_update_norm=norm)
    found = context_of(order(roster(), section=section), roster())
    assert found.bits == bits
    assert found.fixed_point().step == norm / (2 ** (bits - 1) - 1)
    assert found.fixed_point().bits == bits


def with_terms(asked: TrainTask, **changes: Any) -> TrainTask:
    terms = asked.terms.model_copy(update=changes)
    return asked.model_copy(update={"terms": terms, "task_digest": terms.digest()})


def revoked(listed: Roster, name: str) -> Roster:
    members = tuple(
        entry.model_copy(update={"status": "revoked"}) if entry.name == name else entry
        for entry in listed.members
    )
    return listed.model_copy(update={"members": members})


def distributed(**changes: Any) -> TrainTask:
    """An order for one step over the union of the sites."""
    privacy = PrivacySection(mode="distributed", target_epsilon=8.0)
    asked = with_terms(order(roster()), privacy=privacy)
    assert asked.dp_sgd is not None
    return asked.model_copy(update={"dp_sgd": asked.dp_sgd.model_copy(update=changes)})


def test_with_noise_of_several_sites_the_grid_is_the_noises() -> None:
    found = context_of(distributed(), roster())
    assert (float.fromhex(found.step), found.bits) == grid_of(distributed())
    assert found.bits != context_of(order(roster()), roster()).bits


def test_sites_that_count_on_each_others_noise_were_told_the_same_noise() -> None:
    one = context_of(distributed(), roster())
    other = context_of(distributed(noise_multiplier=1.0), roster())
    assert float.fromhex(one.noise_multiplier) == 1.1
    # The grid is a power of two and does not show it.
    assert (one.step, one.bits) == (other.step, other.bits)
    assert one.digest() != other.digest()


def test_noise_of_a_sites_own_is_between_it_and_its_policy() -> None:
    asked = order(roster())
    assert asked.dp_sgd is not None
    assert context_of(asked, roster()).noise_multiplier == ""
    without = asked.model_copy(update={"dp_sgd": None})
    assert context_of(without, roster()) == context_of(asked, roster())


def test_an_order_for_noise_that_does_not_say_how_much_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"expected privacy constants in mode distributed"):
        context_of(distributed().model_copy(update={"dp_sgd": None}), roster())


def test_the_orders_parts_must_be_there() -> None:
    asked = order(roster())
    for one in (
        asked.model_copy(update={"aggregation": None}),
        with_terms(asked, secure_aggregation=None),
    ):
        with pytest.raises(ContextMismatchError, match=r"expected an order with secure aggreg"):
            context_of(one, roster())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (order(roster(), roster_epoch=4), r"expected the roster's epoch as 3, got 4"),
        (order(roster(), roster_digest="9" * 64), r"expected the roster's digest as .*, got 9999"),
        (order(roster(epoch=2), roster_epoch=3), r"expected the roster's digest"),
        (with_terms(order(roster()), federation="bank"), r"the federation as clinic, got bank"),
        (
            order(roster()).model_copy(update={"task_digest": "9" * 64}),
            r"expected the terms' digest as .*, got 9999",
        ),
        (order(roster(), members=("north", "east", "south")), r"expected members in the order"),
        (order(roster(), members=("east", "east", "north", "south")), r"each once"),
    ],
)
def test_what_does_not_belong_together_is_refused(asked: TrainTask, words: str) -> None:
    with pytest.raises(ContextMismatchError, match=words):
        context_of(asked, roster())


def test_an_order_for_no_coordinates_is_refused() -> None:
    asked = order(roster())
    assert asked.aggregation is not None
    empty = asked.aggregation.model_copy(update={"dimension": 0})
    with pytest.raises(ContextMismatchError, match=r"expected coordinates to sum, got 0"):
        context_of(asked.model_copy(update={"aggregation": empty}), roster())


@pytest.mark.parametrize(
    ("listed", "members"),
    [
        (roster(), ("east", "mars", "north", "south")),
        (revoked(roster(), "north"), SITES),
    ],
)
def test_only_active_members_of_the_roster_are_asked(
    listed: Roster, members: tuple[str, ...]
) -> None:
    with pytest.raises(UnknownMemberError, match=r"expected active members .*, got '(mars|north)'"):
        context_of(order(listed, members=members), listed)


def test_a_revoked_member_that_is_not_asked_does_no_harm() -> None:
    listed = revoked(roster(), "north")
    found = context_of(order(listed, members=("east", "south", "west")), listed)
    assert found.members == ("east", "south", "west")


def test_too_few_members_are_refused() -> None:
    with pytest.raises(CohortTooSmallError, match=r"expected at least 3 members, got 2"):
        context_of(order(roster(), members=("east", "west")), roster())
    section = SecureAggregationSection(min_cohort=5)
    with pytest.raises(CohortTooSmallError, match=r"expected at least 5 members, got 4"):
        context_of(order(roster(), section=section), roster())
    # A section that never went through its own check.
    loose = SecureAggregationSection.model_construct(
        **(SecureAggregationSection().model_dump() | {"min_cohort": 1})
    )
    with pytest.raises(CohortTooSmallError, match=r"expected at least 3 members, got 2"):
        context_of(order(roster(), section=loose, members=("east", "west")), roster())


def test_so_many_members_get_as_many_bits_as_fit() -> None:
    names = tuple(f"site-{index:03}" for index in range(256))
    listed = roster(names=names)
    assert context_of(order(listed), listed).bits == 24


def test_a_grid_of_too_many_bits_is_refused_whoever_computed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("privacy.distributed.grid_of", lambda asked: (1.0, 31))
    with pytest.raises(ModulusCapacityError, match=r"got 4 sites of 31 bits each"):
        context_of(distributed(), roster())


@pytest.mark.parametrize("deadline", ["2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z"])
def test_a_deadline_that_never_comes_is_refused(deadline: str) -> None:
    with pytest.raises(DeadlineError, match=r"expected a deadline, got '2026-"):
        context_of(order(roster(), deadline=deadline), roster())


def test_a_norm_that_leaves_no_step_is_refused() -> None:
    section = SecureAggregationSection(max_update_norm=5e-324)
    with pytest.raises(ModulusCapacityError, match=r"expected a step above 0, got 0.0"):
        context_of(order(roster(), section=section), roster())


def test_the_specifications_table_of_thresholds() -> None:
    table = {3: (3, 0, 1), 5: (4, 1, 2), 10: (7, 3, 3), 32: (22, 10, 11), 100: (67, 33, 33)}
    for cohort, (least, drop_outs, colluding) in table.items():
        assert threshold(cohort) == least
        assert cohort - threshold(cohort) == drop_outs
        assert max_colluding(cohort) == colluding


def test_a_threshold_is_the_least_above_two_thirds() -> None:
    for cohort in range(1, 300):
        least = threshold(cohort)
        assert 3 * least > 2 * cohort >= 3 * (least - 1)
        assert least <= cohort


def test_no_colluding_number_allows_two_confirmed_sums() -> None:
    for cohort in range(3, 300):
        bad = max_colluding(cohort)
        honest = cohort - bad
        assert honest + 2 * bad < 2 * threshold(cohort)
        assert honest >= 2
        more = bad + 1
        assert cohort + more >= 2 * threshold(cohort) or cohort - more < 2


@pytest.mark.parametrize(
    ("least", "cohort"), [(2, 3), (4, 6), (66, 100), (4, 3), (0, 0), (1, 0), (-1, -3)]
)
def test_a_threshold_that_is_none_is_refused(least: int, cohort: int) -> None:
    with pytest.raises(ThresholdError, match=r"expected a threshold above two thirds of"):
        check_threshold(least, cohort)


@pytest.mark.parametrize("cohort", [0, -3])
def test_nobody_has_no_threshold(cohort: int) -> None:
    with pytest.raises(ThresholdError):
        threshold(cohort)


def test_survivors_are_at_least_the_threshold_the_floor_and_three() -> None:
    assert least_survivors(10, 3) == 7
    assert least_survivors(10, 8) == 8
    assert least_survivors(2, 1) == 3
    assert issubclass(ThresholdError, SecureAggregationError)
