"""The signed roster: who belongs to the federation.

The admin's offline key signs it; each site pins the newest that it saw. Deliberately not checked
here: that a peer is the one that its entry names. That is the certificate's and the node key's.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from core.digests import json_digest
from core.errors import IdentityError, RosterRollbackError
from core.wire.documents import Roster, SignedRoster
from privacy.identities.clock import CLOCK_ALLOWANCE, read_timestamp, write_timestamp
from privacy.signing import SiteKey, sign_document, verify_document

_PURPOSE: Final = "roster"
_UNSIGNED: Final = "0" * 128


def sign_roster(roster: Roster, admin: SiteKey) -> SignedRoster:
    """Signs a roster.

    Raises:
        IdentityError: It contradicts itself; see ``check_roster``.
    """
    _check_consistent(roster)
    unsigned = SignedRoster(roster=roster, signature=_UNSIGNED)
    signature = sign_document(admin, _PURPOSE, unsigned)
    return SignedRoster(roster=roster, signature=signature)


def check_roster(
    signed: SignedRoster,
    *,
    admin_key: str,
    federation: str,
    now: datetime,
    pinned: SignedRoster | None,
) -> Roster:
    """Checks a roster before anyone in it is believed.

    **Guarantees**: Returns only a roster that the admin's key signed for this federation, that is
    valid now, in which no two entries share a name, a node key or a TLS name, and that is not
    older than the pinned one; of one epoch there is one roster.

    Args:
        signed: The roster.
        admin_key: The key that was pinned when the site joined.
        federation: The federation.
        now: The time at which it must be good.
        pinned: The newest roster that was seen before; it may have expired since.

    Raises:
        RosterRollbackError: The pinned one is newer.
        IdentityError: Anything else of the above is not so.

    Source: the rollback and freeze attacks of The Update Framework's specification, section 1.5.
    """
    roster = signed.roster
    _check_origin(signed, admin_key, federation)
    _check_consistent(roster)
    _check_time(roster, now)
    if pinned is not None:
        _check_origin(pinned, admin_key, federation)
        _check_newer(roster, pinned.roster)
    return roster


def _check_origin(signed: SignedRoster, admin_key: str, federation: str) -> None:
    verify_document(admin_key, _PURPOSE, signed)
    if signed.roster.federation != federation:
        raise IdentityError(
            f"expected the roster of {federation!r}, got that of {signed.roster.federation!r}"
        )


def _check_time(roster: Roster, now: datetime) -> None:
    if read_timestamp(roster.issued) > now + CLOCK_ALLOWANCE:
        raise IdentityError(
            f"expected a roster issued before {write_timestamp(now)}, got one of {roster.issued}",
            hint="set the clocks of both machines (NTP)",
        )
    if read_timestamp(roster.expires) <= now:
        raise IdentityError(
            f"expected a roster that is valid at {write_timestamp(now)}, got one that expired at "
            f"{roster.expires}",
            hint="check the clock; the admin signs the next roster with the offline key",
        )


def _check_newer(roster: Roster, pinned: Roster) -> None:
    if roster.epoch < pinned.epoch:
        raise RosterRollbackError(
            f"expected a roster of epoch {pinned.epoch} or later, got epoch {roster.epoch}",
            hint="somebody shows an old roster, perhaps one from before a revocation",
        )
    if roster.epoch == pinned.epoch and _digest(roster) != _digest(pinned):
        raise IdentityError(
            f"expected the one roster of epoch {roster.epoch}, got another of the same epoch",
            hint="the admin signed two rosters of one epoch: have the next one signed",
        )


def _check_consistent(roster: Roster) -> None:
    _check_distinct("sites", (member.name for member in roster.members))
    _check_distinct("operators", (operator.name for operator in roster.operators))
    _check_distinct("node keys", (member.node_key for member in roster.members))
    tls_names = [member.tls_name for member in roster.members]
    tls_names += [operator.tls_name for operator in roster.operators]
    _check_distinct("TLS names", tls_names)
    if read_timestamp(roster.issued) >= read_timestamp(roster.expires):
        raise IdentityError(
            f"expected a roster that expires after {roster.issued}, got {roster.expires}"
        )


def _check_distinct(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise IdentityError(f"expected a roster with distinct {what}, got {value!r} twice")
        seen.add(value)


def _digest(roster: Roster) -> str:
    return json_digest(roster.model_dump(mode="json"))
