"""A coordinator that orders one attempt again: into it goes one update, and one confirmation."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.secure_round import LONGEST_ATTEMPT, SecureRound
from coordinator.orders import Desk, dp_sgd_terms
from core.aggregation_messages import Adverts, SealedShare, SealedShares
from core.digests import arrays_digest
from core.errors import AlreadySpentError, DeadlineError, MessageError, OutOfOrderError
from core.messages import AggregationOrder, TrainTask
from privacy.identities.clock import utc_now, write_timestamp
from privacy.secure_aggregation import checks
from privacy.secure_aggregation.context import context_of, roster_digest
from tests.support.secure_federation import SecureFederation

SITES = ("ant", "bee", "cow")
RUN = "0123456789abcdef"
Order = Callable[..., TrainTask]


@pytest.fixture
def federation(tmp_path: Path) -> SecureFederation:
    return SecureFederation(tmp_path, sizes=dict.fromkeys(SITES, 40))


def orders_of(federation: SecureFederation) -> Order:
    """Orders of one nonce and one deadline: of one attempt there is one context."""
    plan, roster = federation.plan, federation.roster.roster
    members = {member.name: member for member in plan.config.sites}
    deadline = write_timestamp(utc_now() + timedelta(hours=5))

    def order(site: str, attempt: int, *, run: str = RUN, **changes: Any) -> TrainTask:
        aggregation = AggregationOrder(
            nonce="5" * 64,
            roster_epoch=roster.epoch,
            roster_digest=roster_digest(roster),
            members=SITES,
            dimension=sum(array.size for array in plan.initial_arrays.values()),
            deadline=deadline,
        )
        return Desk(run, plan.terms, dp_sgd_terms(plan.config, plan.config.sites)).task(
            members[site],
            server_round=1,
            attempt=attempt,
            arrays_digest=arrays_digest(plan.initial_arrays),
            witness=None,
            aggregation=aggregation.model_copy(update=changes),
        )

    return order


def rounds_of(federation: SecureFederation) -> dict[str, SecureRound]:
    """As after a start of each client."""
    found = {}
    for name in SITES:
        site = federation.sites[name]
        assert site.standing is not None
        found[name] = SecureRound(site, federation.workshop, site.standing)
    return found


def masks(federation: SecureFederation, rounds: dict[str, SecureRound], order: Order) -> None:
    """Everything up to the masked vectors of attempt 10."""
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    names = checks.names_of(context_of(order("ant", 10), signed.roster))._asdict()
    adverts = tuple(rounds[name].begin(order(name, 10), signed, arrays)[1] for name in SITES)
    dealt = {name: rounds[name].share(Adverts(**names, adverts=adverts)) for name in SITES}
    for site in SITES:
        boxes = {peer: {s.peer: s.box for s in dealt[peer].shares} for peer in SITES}
        shares = tuple(SealedShare(peer=p, box=boxes[p][site]) for p in SITES if p != site)
        rounds[site].mask(SealedShares(**names, site=site, shares=shares))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_second_update_does_not_go_into_the_same_attempt(
    federation: SecureFederation, *, restarted: bool
) -> None:
    order, rounds = orders_of(federation), rounds_of(federation)
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    for name in SITES:
        rounds[name].begin(order(name, 1), signed, arrays)
    masks(federation, rounds, order)
    if restarted:
        rounds = rounds_of(federation)
    for name in SITES:  # another update, with noise and a debit of its own
        rounds[name].begin(order(name, 2), signed, arrays)
    with pytest.raises(AlreadySpentError, match="an attempt that no update of this site went into"):
        masks(federation, rounds, order)


def test_a_kept_update_serves_later_attempts_only(federation: SecureFederation) -> None:
    order, rounds = orders_of(federation), rounds_of(federation)
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    rounds["ant"].begin(order("ant", 5), signed, arrays)
    for attempt in (5, 4):
        with pytest.raises(OutOfOrderError, match=f"expected an attempt after 5, got {attempt}"):
            rounds["ant"].begin(order("ant", attempt), signed, arrays)
    rounds["ant"].begin(order("ant", 6), signed, arrays)
    with federation.sites["ant"].open_ledger() as ledger:
        assert [entry.kind for entry in ledger.entries()] == ["open", "reserve", "settle"]


def test_a_forgotten_update_is_overwritten(federation: SecureFederation) -> None:
    order, rounds = orders_of(federation), rounds_of(federation)
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    rounds["ant"].begin(order("ant", 1), signed, arrays)
    update: Any = rounds["ant"]._update
    assert np.count_nonzero(update.values)
    rounds["ant"].forget()
    assert not np.count_nonzero(update.values)


def test_secrets_do_not_wait_for_years(federation: SecureFederation) -> None:
    order, rounds = orders_of(federation), rounds_of(federation)
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    late = write_timestamp(utc_now() + LONGEST_ATTEMPT + timedelta(minutes=1))
    with pytest.raises(DeadlineError, match="expected an attempt of at most 7 days"):
        rounds["ant"].begin(order("ant", 1, deadline=late), signed, arrays)
    with federation.sites["ant"].open_ledger() as ledger:
        assert [entry.kind for entry in ledger.entries()] == ["open"]


def test_the_noise_of_a_run_is_that_of_its_first_order(federation: SecureFederation) -> None:
    order, rounds = orders_of(federation), rounds_of(federation)
    signed, arrays = federation.roster, dict(federation.plan.initial_arrays)
    first = order("ant", 1)
    rounds["ant"].begin(first, signed, arrays)
    assert first.dp_sgd is not None
    more = first.dp_sgd.model_copy(update={"noise_multiplier": 2 * first.dp_sgd.noise_multiplier})
    other = order("ant", 2).model_copy(update={"dp_sgd": more})
    with pytest.raises(MessageError, match="expected the mechanism that the run was debited for"):
        rounds["ant"].begin(other, signed, arrays)
