"""What all parties of one attempt must have been told alike, and the sizes that follow from it.

The digest of the context salts every key and stands in every signature and every sealed share:
two sites that were told different things derive different keys, and nothing can be opened.
Deliberately not checked here: who signed the roster. That is ``check_roster``'s.

Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", section 6 and appendix A (active adversary).
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from core.config_sections import SecureAggregationSection
from core.digests import canonical_json, json_digest
from core.errors import (
    CohortTooSmallError,
    ContextMismatchError,
    DeadlineError,
    IdentityError,
    ThresholdError,
    UnknownMemberError,
)
from core.messages import AggregationOrder, TrainTask
from core.wire.documents import Roster
from privacy.identities.clock import read_timestamp
from privacy.secure_aggregation.fixed_point import FixedPoint, check_capacity, fitting_bits

MIN_COHORT: Final = 3
"""With two, each site knows the other's update from the sum."""


@dataclass(frozen=True)
class AttemptContext:
    """One attempt at one round's sum, as each party computes it from what it was sent.

    Guarantees:
        Two contexts have one digest only if all their fields are equal.
    """

    federation: str
    run_id: str
    server_round: int
    attempt: int
    nonce: str
    """The coordinator's, hexadecimal."""
    roster_epoch: int
    roster_digest: str
    model_digest: str
    """Of the global weights that the attempt's training begins from."""
    task_digest: str
    """Of the terms."""
    members: tuple[str, ...]
    """Whom the attempt asks, sorted."""
    weights: tuple[tuple[str, int], ...]
    """Name and public size of each member, from the roster."""
    dimension: int
    min_cohort: int
    step: str
    """Of the fixed point, as ``float.hex`` writes it."""
    bits: int
    """Of one coordinate of one site."""
    deadline: str
    protocol: str
    noise_multiplier: str = ""
    """Of each site's share of the noise in mode ``distributed``, as ``float.hex`` writes it: a site
    counts on the others' shares, so that all must have been told the same. Empty in other modes,
    where each site's noise is its own."""

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of all fields: 32 bytes."""
        return hashlib.sha256(canonical_json(vars(self))).digest()

    def hexdigest(self) -> str:
        """``digest`` as 64 lower-case hexadecimal digits."""
        return self.digest().hex()

    def fixed_point(self) -> FixedPoint:
        """How a site's values become integers."""
        return FixedPoint(float.fromhex(self.step), self.bits)

    def ends(self) -> datetime:
        """The deadline; ``context_of`` has checked that it can be read."""
        return read_timestamp(self.deadline)

    def fraction(self, site: str) -> float:
        """A member's public weight over the largest one, in (0, 1].

        Raises:
            UnknownMemberError: It is no member.
        """
        weights = dict(self.weights)
        if site not in weights:
            raise UnknownMemberError(f"expected a member of the attempt, got {site!r}")
        return weights[site] / max(weights.values())

    def total_fraction(self, sites: Iterable[str]) -> float:
        """What divides the opened sum of ``sites`` into their weighted mean, correctly rounded."""
        return math.fsum(self.fraction(site) for site in sites)


def context_of(order: TrainTask, roster: Roster) -> AttemptContext:
    """The context of an order; site and coordinator both compute it.

    Guarantees:
        Returns only where the order belongs to this very roster and to its own terms, asks
        distinct active members of it, at least as many as the terms want, and where the sum of
        all of them fits into 32 bits. Members' weights and the fixed point are computed here,
        never taken from the order.

    Args:
        order: The training order.
        roster: The roster that the party has checked and pinned.

    Raises:
        ContextMismatchError: The order has no secure aggregation, or another roster, federation,
            terms or order of members.
        UnknownMemberError: A member is not in the roster, or revoked.
        CohortTooSmallError: It asks too few.
        ModulusCapacityError: The sum of so many can overflow.
        DeadlineError: There is no such time.
    """
    aggregation, section = _checked_parts(order, roster)
    weights = _weights(aggregation.members, roster)
    least = max(section.min_cohort, MIN_COHORT)
    if len(weights) < least:
        raise CohortTooSmallError(f"expected at least {least} members, got {len(weights)}")
    grid = _grid(order, section, len(weights))
    check_capacity(len(weights), grid.bits)
    context = AttemptContext(
        federation=roster.federation,
        run_id=order.run_id,
        server_round=order.server_round,
        attempt=order.attempt,
        nonce=aggregation.nonce,
        roster_epoch=roster.epoch,
        roster_digest=aggregation.roster_digest,
        model_digest=order.arrays_digest,
        task_digest=order.task_digest,
        members=aggregation.members,
        weights=weights,
        dimension=aggregation.dimension,
        min_cohort=section.min_cohort,
        step=grid.step.hex(),
        bits=grid.bits,
        deadline=aggregation.deadline,
        protocol=aggregation.protocol,
        noise_multiplier=_noise_multiplier(order),
    )
    try:
        context.ends()
    except IdentityError as error:
        raise DeadlineError(f"expected a deadline, got {context.deadline!r}") from error
    return context


def roster_digest(roster: Roster) -> str:
    """What an order says of the roster that it was made for."""
    return json_digest(roster.model_dump(mode="json"))


def coordinates(roster: Roster) -> dict[str, int]:
    """Each member's place in Shamir's scheme: its index in the roster, from 1."""
    return {member.name: index for index, member in enumerate(roster.members, start=1)}


def threshold(cohort: int) -> int:
    """How many sites open a secret of one of ``cohort``: more than two thirds of them.

    Guarantees:
        No two sets of so many sites have fewer than a third of the cohort in common.

    Raises:
        ThresholdError: No such number of sites is in the cohort.
    """
    least = 2 * cohort // 3 + 1
    check_threshold(least, cohort)
    return least


def check_threshold(threshold: int, cohort: int) -> None:
    """Checks a threshold, whoever computed it.

    Raises:
        ThresholdError: It is not above two thirds of the cohort, or above all of it.
    """
    if not 2 * cohort < 3 * threshold <= 3 * cohort:
        raise ThresholdError(
            f"expected a threshold above two thirds of {cohort} and at most that, got {threshold}"
        )


def least_survivors(cohort: int, min_cohort: int) -> int:
    """The fewest sites whose sum is opened.

    Args:
        cohort: Sites whose adverts were exchanged (U1).
        min_cohort: The floor of the terms, or the site's own where that is higher.
    """
    return max(threshold(cohort), min_cohort, MIN_COHORT)


def max_colluding(cohort: int) -> int:
    """How many sites may side with a lying coordinator and still learn only a sum of the others.

    With ``c`` of them and ``h`` honest sites that confirm once, two sums need ``h + 2 c >= 2 t``;
    and a sum of two others at least must be left.
    """
    return min(2 * threshold(cohort) - cohort - 1, cohort - 2)


def _checked_parts(
    order: TrainTask, roster: Roster
) -> tuple[AggregationOrder, SecureAggregationSection]:
    aggregation, section = order.aggregation, order.terms.secure_aggregation
    if aggregation is None or section is None:
        raise ContextMismatchError("expected an order with secure aggregation, got one without")
    for what, told, known in (
        ("the federation", order.terms.federation, roster.federation),
        ("the terms' digest", order.task_digest, order.terms.digest()),
        ("the roster's epoch", aggregation.roster_epoch, roster.epoch),
        ("the roster's digest", aggregation.roster_digest, roster_digest(roster)),
    ):
        if told != known:
            raise ContextMismatchError(f"expected {what} as {known}, got {told}")
    if aggregation.dimension < 1:
        raise ContextMismatchError(f"expected coordinates to sum, got {aggregation.dimension}")
    if aggregation.members != tuple(sorted(set(aggregation.members))):
        raise ContextMismatchError("expected members in the order of their names, each once")
    return aggregation, section


def _weights(members: tuple[str, ...], roster: Roster) -> tuple[tuple[str, int], ...]:
    active = {entry.name: entry for entry in roster.members if entry.status == "active"}
    for name in members:
        if name not in active:
            raise UnknownMemberError(
                f"expected active members of the roster of epoch {roster.epoch}, got {name!r}"
            )
    return tuple((name, active[name].num_examples) for name in members)


def _grid(order: TrainTask, section: SecureAggregationSection, cohort: int) -> FixedPoint:
    if order.terms.privacy.mode == "distributed":
        # Imported here: the noise builds on the sizes of a cohort that this module defines.
        from privacy.distributed import grid_of

        return FixedPoint(*grid_of(order))
    bits = fitting_bits(cohort, section.bits)
    return FixedPoint(section.max_update_norm / (2 ** (bits - 1) - 1), bits)


def _noise_multiplier(order: TrainTask) -> str:
    if order.terms.privacy.mode != "distributed" or order.dp_sgd is None:
        return ""
    return order.dp_sgd.noise_multiplier.hex()
