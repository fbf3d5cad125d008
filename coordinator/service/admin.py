"""What the admin does: invite, approve, revoke, grant. It takes the folder, not the service.

Whoever holds the admin's key is the admin; the running service only publishes what was signed.
"""

import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from coordinator.service.admissions import Admissions, Applicant
from core.config import FederationConfig
from core.errors import IdentityError, ServiceError
from core.wire.documents import (
    Invitation,
    Role,
    Roster,
    RosterMember,
    RosterOperator,
    SignedRoster,
)
from privacy.identities.clock import write_timestamp
from privacy.identities.enrolment import INVITATION_LIFETIME, new_token, token_hash
from privacy.identities.names import site_tls_name
from privacy.identities.roster import sign_roster
from privacy.signing import SiteKey, verify_document

ROSTER_LIFETIME: Final = timedelta(days=90)

Entry = TypeVar("Entry", RosterMember, RosterOperator)


@dataclass(frozen=True)
class Reachable:
    """What an invitation says of the coordinator."""

    address: str
    enrolment_address: str
    server_name: str
    root_pem: str
    admin_key: str
    own_authority: bool
    """Whether the federation's CA issues the sites' certificates."""


def invite(
    admissions: Admissions,
    config: FederationConfig,
    site: str,
    coordinator: Reachable,
    now: datetime,
) -> Invitation:
    """An invitation with a new token; earlier ones for the same site are good no more.

    Raises:
        IdentityError: The configuration does not list the site, or the roster has revoked it.
    """
    sizes = {member.name: member.num_examples for member in config.sites}
    if site not in sizes:
        raise IdentityError(
            f"expected a site of the federation's file, got {site!r}",
            hint=f"the sites are {', '.join(sorted(sizes)[:8])}",
        )
    present = admissions.roster()
    for member in present.roster.members if present else ():
        if member.name == site and member.status == "revoked":
            raise IdentityError(
                f"expected a site that was not revoked, got {site!r}, which was",
                hint="a revoked name is not given again: list the site under another name",
            )
    federation, token = config.federation.name, new_token()
    expires = now + INVITATION_LIFETIME
    admissions.invite(site, token_hash(token, federation, site), sizes[site], expires)
    return Invitation(
        federation=federation,
        site=site,
        num_examples=sizes[site],
        token=token,
        expires=write_timestamp(expires),
        address=coordinator.address,
        enrolment_address=coordinator.enrolment_address,
        server_name=coordinator.server_name,
        ca_pem=coordinator.root_pem,
        admin_key=coordinator.admin_key,
        tls_name=site_tls_name(federation, site) if coordinator.own_authority else None,
    )


class Admin:
    """Signs rosters."""

    def __init__(self, admissions: Admissions, key: SiteKey, federation: str) -> None:
        self._admissions = admissions
        self._key = key
        self._federation = federation

    def approve(self, site: str, fingerprint: str, now: datetime) -> Applicant:
        """Admits a site whose fingerprint its people read out.

        Guarantees:
            The very keys under this fingerprint enter the roster, and no other request does.

        Raises:
            IdentityError: No request is pending, or it has another fingerprint.
        """
        spoken = re.sub(r"[\s:-]", "", fingerprint).lower()

        def check(applicant: Applicant) -> None:
            if not hmac.compare_digest(spoken.encode(), applicant.fingerprint.encode()):
                raise IdentityError(
                    f"expected the fingerprint of the request that {site} made, got another",
                    hint="compare all of it with what the site's people read out; if theirs is "
                    "another than `status` shows, somebody else used the token: invite again",
                )

        def change(present: SignedRoster | None, applicant: Applicant) -> SignedRoster:
            member = RosterMember(
                name=applicant.site,
                node_key=applicant.node_key,
                tls_name=applicant.tls_name,
                num_examples=applicant.num_examples,
            )
            return self._next(
                present, now, members=lambda members: _with_entry(members, member, site)
            )

        return self._admissions.approve(site, check, change)

    def revoke_site(self, site: str, now: datetime) -> None:
        """Shuts a site out: its place in the roster, its requests and its invitations.

        Raises:
            IdentityError: Nothing is known of it.
        """
        present = self._admissions.roster()
        listed = site in {member.name for member in (present.roster.members if present else ())}
        asked = {applicant.site for applicant in self._admissions.pending()}
        if not listed and site not in asked | self._admissions.invited(now):
            raise IdentityError(
                f"expected a site that was invited or admitted, got {site!r}",
                hint="`cloister coordinator status` lists the sites",
            )
        self._admissions.shut_out(
            site,
            (lambda signed: self._next(signed, now, members=lambda all_: _revoked(all_, site)))
            if listed
            else None,
        )

    def grant(self, name: str, role: Role, tls_name: str, now: datetime) -> None:
        """Lets somebody watch, or watch and steer; one that is listed gets this role and name.

        Raises:
            IdentityError: The name was revoked.
        """
        entry = RosterOperator(name=name, role=role, tls_name=tls_name)
        self._admissions.change_roster(
            lambda present: self._next(
                present, now, operators=lambda all_: _with_entry(all_, entry, name)
            )
        )

    def revoke_operator(self, name: str, now: datetime) -> None:
        """Shuts an operator or an auditor out.

        Raises:
            IdentityError: The roster does not list it.
        """
        self._admissions.change_roster(
            lambda present: self._next(present, now, operators=lambda all_: _revoked(all_, name))
        )

    def renew(self, now: datetime) -> None:
        """Signs the present roster for another while."""
        self._admissions.change_roster(lambda present: self._next(present, now))

    def _next(
        self,
        present: SignedRoster | None,
        now: datetime,
        *,
        members: Callable[[Sequence[RosterMember]], Sequence[RosterMember]] = lambda same: same,
        operators: Callable[[Sequence[RosterOperator]], Sequence[RosterOperator]] = lambda same: (
            same
        ),
    ) -> SignedRoster:
        if present is None:
            return sign_roster(self._roster(1, now, members(()), operators(())), self._key)
        # Expired or not: only what this very key signed is carried on.
        verify_document(self._key.public_hex, "roster", present)
        if present.roster.federation != self._federation:
            raise ServiceError(
                f"expected the roster of {self._federation}, got that of "
                f"{present.roster.federation}",
                hint="one folder serves one federation: `init` makes another folder",
            )
        old = present.roster
        roster = self._roster(old.epoch + 1, now, members(old.members), operators(old.operators))
        return sign_roster(roster, self._key)

    def _roster(
        self,
        epoch: int,
        now: datetime,
        members: Sequence[RosterMember],
        operators: Sequence[RosterOperator],
    ) -> Roster:
        return Roster(
            federation=self._federation,
            epoch=epoch,
            issued=write_timestamp(now),
            expires=write_timestamp(now + ROSTER_LIFETIME),
            members=tuple(sorted(members, key=lambda member: member.name)),
            operators=tuple(sorted(operators, key=lambda operator: operator.name)),
        )


def _with_entry(entries: Sequence[Entry], entry: Entry, name: str) -> list[Entry]:
    """A new key for a listed name takes the old one's place; a revoked name stays so."""
    if any(old.name == name and old.status == "revoked" for old in entries):
        raise IdentityError(
            f"expected a name that was not revoked, got {name!r}, which was",
            hint="a revoked name is not given again: choose another",
        )
    return [old for old in entries if old.name != name] + [entry]


def _revoked(entries: Sequence[Entry], name: str) -> list[Entry]:
    if name not in {entry.name for entry in entries}:
        raise IdentityError(
            f"expected a name that the roster lists, got {name!r}",
            hint=f"it lists {', '.join(sorted(entry.name for entry in entries)[:8]) or 'none'}",
        )
    return [
        entry.model_copy(update={"status": "revoked"}) if entry.name == name else entry
        for entry in entries
    ]
