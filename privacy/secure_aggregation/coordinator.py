"""The coordinator's part in one attempt at secure aggregation. No IO.

Trusted to bring the round about, never with a site's values: what is checked here keeps a faulty
site from spoiling the sum, and no site's privacy rests on it. Deliberately not checked here: from
whose session a message came and that a vector has the digest that it bears (their receiver), when
a stage has lasted long enough (the caller's clock), and the norm of the sum (who decodes it).
"""

from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from core.aggregation_messages import (
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    SealedShare,
    SealedShares,
    SignedBy,
    Survivors,
    Transcript,
)
from core.errors import OutOfOrderError
from core.wire.documents import Roster
from privacy.secure_aggregation import checks
from privacy.secure_aggregation.context import (
    MIN_COHORT,
    AttemptContext,
    least_survivors,
    threshold,
)
from privacy.secure_aggregation.fixed_point import check_capacity
from privacy.secure_aggregation.keys import adverts_digest
from privacy.secure_aggregation.masks import add_masks
from privacy.secure_aggregation.shamir import combine, read_share
from privacy.secure_aggregation.unmasking import unmasking


class Stage(Enum):
    """What the coordinator gathers."""

    ADVERTS = "while it gathers adverts"
    SHARES = "while it gathers shares"
    MASKED = "while it gathers masked values"
    CONFIRMATIONS = "while it gathers confirmations"
    REVEALED = "while it gathers revealed shares"
    OPENED = "after it opened the sum"


# (stage, step) -> stage
_STEPS: Final[dict[tuple[Stage, str], Stage]] = {
    (Stage.ADVERTS, "add_advert"): Stage.ADVERTS,
    (Stage.ADVERTS, "adverts"): Stage.SHARES,
    (Stage.SHARES, "add_shares"): Stage.SHARES,
    (Stage.SHARES, "deliveries"): Stage.MASKED,
    (Stage.MASKED, "add_masked"): Stage.MASKED,
    (Stage.MASKED, "survivors"): Stage.CONFIRMATIONS,
    (Stage.CONFIRMATIONS, "add_confirmation"): Stage.CONFIRMATIONS,
    (Stage.CONFIRMATIONS, "confirmations"): Stage.REVEALED,
    (Stage.REVEALED, "add_revealed"): Stage.REVEALED,
    (Stage.REVEALED, "open"): Stage.OPENED,
    (Stage.OPENED, "transcript"): Stage.OPENED,
}


class CoordinatorAttempt:
    """The coordinator in one attempt: gathers a stage's messages, then closes it.

    Guarantees:
        A message that does not fit, comes out of order or again raises and changes nothing, so
        that the others' round goes on without its sender; a stage that too few have reached does
        not close. ``open`` gives the exact sum of the survivors' values modulo 2^32, or raises.
        No single masked vector is kept.

    Not safe to share between threads.

    Args:
        context: The attempt.
        roster: The roster that the attempt is about.
        dimension: The model's count of trained parameters.

    Raises:
        ContextMismatchError: The attempt is about another roster, protocol or dimension.
        OutOfOrderError: Its members are not in order, or one comes twice.
        UnknownMemberError: It asks a site that is not active.
    """

    def __init__(self, context: AttemptContext, *, roster: Roster, dimension: int) -> None:
        self._members: Final = checks.members_of(context, roster)
        checks.check_dimension(context, dimension)
        self._context: Final = context
        self._names: Final = checks.names_of(context)
        self._stage = Stage.ADVERTS
        self._adverts: dict[str, Advert] = {}
        self._adverts_digest = b""
        self._dealt: dict[str, dict[str, SealedShare]] = {}
        """By who dealt, then by for whom."""
        self._sum: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._summed: set[str] = set()
        self._confirmed: dict[str, SignedBy] = {}
        self._revealed: dict[str, dict[int, int]] = {}
        """Shares of each one's secret, by place."""
        self._revealers: set[str] = set()
        self._cohort: tuple[str, ...] = ()
        self._sharers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"CoordinatorAttempt({self._names.run_id}, {self._stage.value})"

    def add_advert(self, advert: Advert) -> None:
        """Takes a site's fresh keys.

        Raises:
            ContextMismatchError: It is of another attempt.
            UnknownMemberError, BadSignatureError: It is not a member's.
            RepeatedKeyError, WeakKeyError: A key is not the site's own, or no key at all.
            OutOfOrderError: It comes too late or again.
        """
        after = self._after("add_advert")
        checks.check_attempt(advert, self._names)
        checks.check_signature(advert, self._members)
        checks.check_first(advert, self._adverts)
        checks.check_distinct_keys([*self._adverts.values(), advert])
        checks.check_usable_keys(advert)
        self._adverts[advert.site] = advert
        self._stage = after

    def adverts(self) -> Adverts:
        """Closes U1: what goes to each of its sites.

        Raises:
            CohortTooSmallError: They are fewer than the terms want.
            ModulusCapacityError: The sum of so many can overflow.
            OutOfOrderError: It was closed before.
        """
        after = self._after("adverts")
        cohort = tuple(sorted(self._adverts))
        checks.check_size("adverts", len(cohort), max(self._context.min_cohort, MIN_COHORT))
        check_capacity(len(cohort), self._context.bits)
        closed = Adverts(
            **self._names._asdict(), adverts=tuple(self._adverts[site] for site in cohort)
        )
        self._cohort, self._adverts_digest, self._stage = cohort, adverts_digest(closed), after
        return closed

    def add_shares(self, dealt: SealedShares) -> None:
        """Takes what a site dealt to the others.

        Raises:
            ContextMismatchError: It is of another attempt.
            UnknownMemberError: The site is not in U1, or did not deal to just the others of it.
            OutOfOrderError: It comes too early, too late or again.
        """
        after = self._after("add_shares")
        checks.check_attempt(dealt, self._names)
        checks.check_member(dealt.site, self._cohort)
        checks.check_first(dealt, self._dealt)
        checks.check_dealt_to_all(dealt, self._cohort)
        self._dealt[dealt.site] = {share.peer: share for share in dealt.shares}
        self._stage = after

    def deliveries(self) -> dict[str, SealedShares]:
        """Closes U2: what goes to each of its sites.

        Raises:
            CohortTooSmallError: They are fewer than the least survivors.
            OutOfOrderError: It is not yet or no more time for it.
        """
        after = self._after("deliveries")
        sharers = tuple(sorted(self._dealt))
        checks.check_size("sharers", len(sharers), self._least)
        self._sharers, self._stage = sharers, after
        self._sum = np.zeros(self._context.dimension, np.uint32)
        return {site: self._delivery(site) for site in sharers}

    def add_masked(self, masked: MaskedInput, values: npt.NDArray[np.uint32]) -> None:
        """Adds a site's masked values to the sum.

        Args:
            masked: What it says of them.
            values: As they came; their digest is the one in ``masked``.

        Raises:
            ContextMismatchError: It is of another attempt.
            UnknownMemberError, BadSignatureError: It is not of a site of U2.
            ValueRangeError: It is another kind of vector.
            OutOfOrderError: It comes too early, too late or again.
        """
        after = self._after("add_masked")
        checks.check_attempt(masked, self._names)
        checks.check_member(masked.site, self._sharers)
        checks.check_first(masked, self._summed)
        checks.check_signature(masked, self._members)
        checks.check_vector(values, self._context.dimension)
        self._sum += values
        self._summed.add(masked.site)
        self._stage = after

    def survivors(self) -> Survivors:
        """Closes U3: what goes to each of its sites.

        Raises:
            CohortTooSmallError: They are fewer than the least survivors.
            OutOfOrderError: It is not yet or no more time for it.
        """
        after = self._after("survivors")
        survivors = tuple(sorted(self._summed))
        checks.check_size("survivors", len(survivors), self._least)
        self._survivors, self._stage = survivors, after
        return Survivors(**self._names._asdict(), sharers=self._sharers, survivors=survivors)

    def add_confirmation(self, confirmation: Confirmation) -> None:
        """Takes a survivor's signature.

        Raises:
            ContextMismatchError: It is of another attempt.
            UnknownMemberError, BadSignatureError: It is not a survivor's.
            ConfirmationError: It confirms others.
            OutOfOrderError: It comes too early, too late or again.
        """
        after = self._after("add_confirmation")
        checks.check_attempt(confirmation, self._names)
        checks.check_member(confirmation.site, self._survivors)
        checks.check_first(confirmation, self._confirmed)
        checks.check_same_keys(confirmation, self._adverts_digest)
        checks.check_confirmed(confirmation, self._sharers, self._survivors)
        checks.check_signature(confirmation, self._members)
        self._confirmed[confirmation.site] = SignedBy(
            site=confirmation.site, signature=confirmation.signature
        )
        self._stage = after

    def confirmations(self) -> Confirmations:
        """Closes the confirmations: what goes to each site that sent one.

        Raises:
            ConfirmationError: They are fewer than the threshold.
            OutOfOrderError: It is not yet or no more time for it.
        """
        after = self._after("confirmations")
        checks.check_enough_confirm(len(self._confirmed), self._threshold)
        self._stage = after
        return Confirmations(
            **self._names._asdict(),
            sharers=self._sharers,
            survivors=self._survivors,
            signatures=self._signatures(),
        )

    def add_revealed(self, revealed: Revealed) -> None:
        """Takes a site's shares.

        Raises:
            ContextMismatchError: It is of another attempt.
            UnknownMemberError: It is not of a site that confirmed.
            SurvivorsError: They are not one share of the right kind for each site of U2.
            ShareUnopenedError: One is no share.
            OutOfOrderError: It comes too early, too late or again.
        """
        after = self._after("add_revealed")
        checks.check_attempt(revealed, self._names)
        checks.check_member(revealed.site, self._confirmed)
        checks.check_first(revealed, self._revealers)
        checks.check_revealed(revealed, self._sharers, self._survivors)
        shares = {share.owner: read_share(bytes.fromhex(share.share)) for share in revealed.shares}
        place = self._members[revealed.site].place
        for owner, share in shares.items():
            self._revealed.setdefault(owner, {})[place] = share
        self._revealers.add(revealed.site)
        self._stage = after

    def open(self) -> npt.NDArray[np.int32]:
        """Takes all masks off.

        Returns:
            The sum of the survivors' values.

        Raises:
            CohortTooSmallError: Fewer than the threshold have revealed their shares.
            CommitmentError: Shares do not give the secret that their owner advertised.
            OutOfOrderError: It is not yet or no more time for it.
        """
        after = self._after("open")
        checks.check_size("sites that revealed", len(self._revealers), self._threshold)
        masks = unmasking(
            self._context,
            self._adverts,
            {owner: combine(points, self._threshold) for owner, points in self._revealed.items()},
            self._survivors,
        )
        add_masks(self._sum, masks)
        self._stage = after
        return self._sum.view(np.int32)

    def transcript(self, sum_digest: str) -> Transcript:
        """What everyone may know of the opened sum.

        Args:
            sum_digest: ``arrays_digest`` of the sum.

        Raises:
            OutOfOrderError: It was not opened.
        """
        self._after("transcript")
        return Transcript(
            **self._names._asdict(),
            sharers=self._sharers,
            survivors=self._survivors,
            adverts_digest=self._adverts_digest.hex(),
            sum_digest=sum_digest,
            signatures=self._signatures(),
        )

    @property
    def _threshold(self) -> int:
        return threshold(len(self._cohort))

    @property
    def _least(self) -> int:
        return least_survivors(len(self._cohort), self._context.min_cohort)

    def _after(self, step: str) -> Stage:
        after = _STEPS.get((self._stage, step))
        if after is None:
            raise OutOfOrderError(f"expected no {step} {self._stage.value}, got one")
        return after

    def _delivery(self, site: str) -> SealedShares:
        return SealedShares(
            **self._names._asdict(),
            site=site,
            shares=tuple(
                SealedShare(peer=peer, box=self._dealt[peer][site].box)
                for peer in self._sharers
                if peer != site
            ),
        )

    def _signatures(self) -> tuple[SignedBy, ...]:
        return tuple(self._confirmed[site] for site in sorted(self._confirmed))
