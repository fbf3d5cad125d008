"""One site's part in one attempt at secure aggregation. No IO.

    site         advert         share                     masked           confirm            reveal
    coordinator         adverts       SealedShares to it         survivors       confirmations

The site believes nothing that the coordinator says: it computes the threshold itself, and whatever
weakens privacy is checked here, whoever else checks it. Deliberately not checked here: that the
update is paid for and in its range (the caller), that the roster is the admin's and not an old one
(``privacy.identities.roster``), and that what was opened became the next model (the next order).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
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
    RevealedShare,
    SealedShares,
    Survivors,
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
from privacy.secure_aggregation.shamir import share_bytes
from privacy.secure_aggregation.site_secrets import SiteSecrets
from privacy.signing import SiteKey


class Stage(Enum):
    """How far a site is in an attempt."""

    NEW = "before its advert"
    ADVERTISED = "after its advert"
    DEALT = "after it dealt its shares"
    READY = "after it opened the others' shares"
    MASKED = "after it masked its values"
    SENT = "after its masked values left"
    CONFIRMED = "after its one confirmation"
    ENDED = "after the end of the attempt"


# (stage, step) -> stage
_STEPS: Final[dict[tuple[Stage, str], Stage]] = {
    (Stage.NEW, "advert"): Stage.ADVERTISED,
    (Stage.ADVERTISED, "share"): Stage.DEALT,
    (Stage.DEALT, "open_shares"): Stage.READY,
    (Stage.READY, "mask"): Stage.MASKED,
    (Stage.MASKED, "masked"): Stage.SENT,
    (Stage.SENT, "confirm"): Stage.CONFIRMED,
    (Stage.CONFIRMED, "reveal"): Stage.ENDED,
}


class SiteAttempt:
    """One site in one attempt: a method for each step, in the order of ``_STEPS``, each once.

    Guarantees:
        A step that comes out of order or late, or is fed what the protocol does not allow, raises,
        gives nothing out and ends the attempt. After the end no step is possible, and no secret
        is left here. Keys are fresh for each attempt and in no ``repr``. The site signs one pair
        of U2 and U3; of each site it reveals one kind of share, once, and only where at least the
        threshold of the cohort confirmed the same pair. With at most ``max_colluding(cohort)``
        other sites on its side, a lying coordinator opens no sum with this site's values in it
        that is over fewer than ``least_survivors`` sites, the colluding ones counted.

    Not safe to share between threads.

    Args:
        context: The attempt.
        site: Who this is.
        key: Its node key.
        roster: The roster that this site has checked and pinned.
        min_cohort: The site's own floor; it can only raise the context's.
        colluding: How many other sites may side with the coordinator; a cohort that does not
            withstand so many is refused. Any cohort withstands one.
        now: Gives the time, with its zone.
        random: Gives random bytes; any other than the default is for tests.

    Raises:
        ContextMismatchError: The attempt is about another roster or protocol.
        OutOfOrderError: Its members are not in order, or one comes twice.
        UnknownMemberError: It asks a site that is not active, or does not ask this one.
        BadSignatureError: ``key`` is not the one that the roster has for this site.
    """

    def __init__(
        self,
        context: AttemptContext,
        *,
        site: str,
        key: SiteKey,
        roster: Roster,
        min_cohort: int,
        now: Callable[[], datetime],
        colluding: int = 1,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._members: Final = checks.members_of(context, roster)
        checks.check_member(site, self._members)
        checks.check_node_key(key, self._members[site].node_key)
        self._context: Final = context
        self._names: Final = checks.names_of(context)
        self._site: Final = site
        self._key: Final = key
        self._floor: Final = max(min_cohort, context.min_cohort, MIN_COHORT)
        self._colluding: Final = colluding
        self._now: Final = now
        self._stage = Stage.NEW
        self._secrets = SiteSecrets(site, context.digest(), random)
        self._advert: Advert | None = None
        self._adverts_digest = b""
        self._cohort: tuple[str, ...] = ()
        self._sharers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SiteAttempt(site={self._site!r}, {self._stage.value}, secrets=***)"

    @property
    def ended(self) -> bool:
        """Whether the attempt is over for this site, well or not."""
        return self._stage is Stage.ENDED

    @property
    def cohort(self) -> int:
        """Sites whose adverts were exchanged (U1).

        Raises:
            OutOfOrderError: They were not yet.
        """
        if not self._cohort:
            raise OutOfOrderError("expected the adverts before a cohort, got none yet")
        return len(self._cohort)

    @property
    def least_survivors(self) -> int:
        """The fewest sites whose sum can be opened; noise may count on so many.

        Raises:
            OutOfOrderError: There were no adverts yet.
        """
        return least_survivors(self.cohort, self._floor)

    def advert(self) -> Advert:
        """Shows the public parts of this site's fresh keys, signed."""
        with self._step("advert"):
            self._advert = checks.sign(
                self._key,
                Advert(
                    **self._names._asdict(),
                    site=self._site,
                    cipher_key=self._secrets.cipher_key,
                    mask_key=self._secrets.mask_key,
                    seed_commitment=self._secrets.commitment,
                    signature=checks.UNSIGNED,
                ),
            )
            return self._advert

    def share(self, adverts: Adverts) -> SealedShares:
        """Takes the keys of the others (U1), and deals its own secrets to them.

        Raises:
            ContextMismatchError: It is of another attempt, or an advert in it is.
            AdvertAlteredError: This site's own is not in it as it left.
            BadSignatureError: A member did not sign its advert.
            UnknownMemberError: One is not of an active member of the attempt.
            OutOfOrderError: One comes twice or out of order; or the step does.
            RepeatedKeyError: A key comes twice.
            WeakKeyError: A key agrees on what anyone knows.
            CohortTooSmallError: They are fewer than the floor, or do not withstand so many
                colluding sites.
            ModulusCapacityError: The sum of so many can overflow.
            DeadlineError: It is too late.
        """
        with self._step("share"):
            checks.check_attempt(adverts, self._names)
            checks.check_own_advert(self._advert, adverts)
            checks.check_adverts(adverts.adverts, self._names, self._members)
            cohort = tuple(advert.site for advert in adverts.adverts)
            checks.check_size("adverts", len(cohort), self._floor)
            checks.check_withstands(len(cohort), self._colluding)
            check_capacity(len(cohort), self._context.bits)
            self._secrets.agree(a for a in adverts.adverts if a.site != self._site)
            places = {name: self._members[name].place for name in cohort}
            digest = adverts_digest(adverts)
            boxes = self._secrets.deal(places, threshold(len(cohort)), digest)
            self._cohort, self._adverts_digest = cohort, digest
            return SealedShares(**self._names._asdict(), site=self._site, shares=boxes)

    def open_shares(self, delivered: SealedShares) -> tuple[str, ...]:
        """Takes the shares that were dealt to this site.

        Returns:
            Those who dealt (U2), this site too, by name.

        Raises:
            ContextMismatchError: It is of another attempt, or for another site.
            OutOfOrderError: A sender comes twice or out of order; or the step does.
            UnknownMemberError: A sender is not in U1.
            CohortTooSmallError: They are fewer than ``least_survivors``.
            ShareUnopenedError: A share does not open.
            DeadlineError: It is too late.
        """
        with self._step("open_shares"):
            checks.check_attempt(delivered, self._names)
            checks.check_receiver(delivered.site, self._site)
            senders = [share.peer for share in delivered.shares]
            checks.check_ascending("sharers", senders)
            peers = set(self._cohort) - {self._site}
            for sender in senders:
                checks.check_member(sender, peers)
            checks.check_size("sharers", len(senders) + 1, self.least_survivors)
            self._secrets.open(delivered.shares)
            self._sharers = tuple(sorted([self._site, *senders]))
            return self._sharers

    def mask(self, values: npt.NDArray[np.uint32], mark_spent: Callable[[], None]) -> None:
        """Masks this site's encoded update in place.

        Args:
            values: One contiguous vector, as long as the context says.
            mark_spent: Records on the disk that this round's update leaves the site, or raises.
                Called before anything is masked. Where it raises, ``values`` are as they were,
                and the attempt is over.

        Raises:
            ValueRangeError: It is no such vector; nothing was marked.
            OutOfOrderError: The step is out of order.
            DeadlineError: It is too late.
        """
        with self._step("mask"):
            checks.check_vector(values, self._context.dimension)
            masks = self._secrets.masks(self._sharers)
            mark_spent()
            add_masks(values, masks)

    def masked(self, digest: str) -> MaskedInput:
        """Says what leaves.

        Args:
            digest: ``arrays_digest`` of the arrays that leave.
        """
        with self._step("masked"):
            unsigned = MaskedInput(
                **self._names._asdict(),
                site=self._site,
                digest=digest,
                signature=checks.UNSIGNED,
            )
            return checks.sign(self._key, unsigned)

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Signs, once and for all, whose values the sum holds (U3).

        Raises:
            ContextMismatchError: It is of another attempt.
            SurvivorsError: Other sites dealt than those whose shares came, a survivor did not
                deal, or this site is none.
            OutOfOrderError: A survivor comes twice or out of order; or the step does.
            CohortTooSmallError: They are fewer than ``least_survivors``.
            DeadlineError: It is too late.
        """
        with self._step("confirm"):
            checks.check_attempt(survivors, self._names)
            checks.check_sharers(survivors.sharers, self._sharers)
            checks.check_survivors(survivors.survivors, self._sharers)
            checks.check_survives(self._site, survivors.survivors)
            checks.check_size("survivors", len(survivors.survivors), self.least_survivors)
            confirmation = checks.sign(
                self._key,
                Confirmation(
                    **self._names._asdict(),
                    site=self._site,
                    adverts_digest=self._adverts_digest.hex(),
                    sharers=survivors.sharers,
                    survivors=survivors.survivors,
                    signature=checks.UNSIGNED,
                ),
            )
            self._survivors = survivors.survivors
            return confirmation

    def reveal(self, confirmations: Confirmations) -> Revealed:
        """Gives out one share of each site of U2, and forgets everything.

        Raises:
            ContextMismatchError: It is of another attempt.
            ConfirmationError: They confirm others than this site did, or are fewer than the
                threshold, or one is not of a survivor.
            OutOfOrderError: One comes twice or out of order; or the step does.
            BadSignatureError: A survivor did not sign.
            DeadlineError: It is too late.
        """
        with self._step("reveal"):
            checks.check_attempt(confirmations, self._names)
            checks.check_confirmed(confirmations, self._sharers, self._survivors)
            checks.check_confirmations(
                confirmations,
                self._names,
                self._adverts_digest,
                threshold(self.cohort),
                self._members,
            )
            revealed = Revealed(
                **self._names._asdict(),
                site=self._site,
                shares=tuple(self._revealed_share(owner) for owner in self._sharers),
            )
            self.wipe()
            return revealed

    def wipe(self) -> None:
        """Ends the attempt and forgets its secrets."""
        self._stage = Stage.ENDED
        self._secrets.wipe()

    def _revealed_share(self, owner: str) -> RevealedShare:
        """A survivor's mask of its own comes off by its seed, a lost site's pair masks by its
        key; both for one site would lay its values open."""
        held = self._secrets.held(owner)
        if owner in self._survivors:
            return RevealedShare(owner=owner, kind="seed", share=share_bytes(held.seed).hex())
        return RevealedShare(owner=owner, kind="key", share=share_bytes(held.key).hex())

    @contextmanager
    def _step(self, step: str) -> Iterator[None]:
        """Takes a step of the table; whatever goes wrong in it ends the attempt."""
        try:
            after = _STEPS.get((self._stage, step))
            if after is None:
                raise OutOfOrderError(f"expected no {step} {self._stage.value}, got one")
            checks.check_deadline(self._context, self._now())
            yield
            self._stage = after
        except BaseException:
            self.wipe()
            raise
