"""What a site believes of the federation it joined: pins, roster and clock, checked. No network."""

from datetime import datetime

from client.identity_folder import IdentityFolder
from core.errors import IdentityError
from core.site_config import SiteConfig
from core.wire.documents import Invitation, Roster, RosterMember, SignedRoster
from privacy.identities.clock import CLOCK_ALLOWANCE, write_timestamp
from privacy.identities.roster import check_roster


def check_membership(membership: Invitation, config: SiteConfig, federation: str) -> None:
    """Refuses an identity that was made for another site, size or federation.

    Args:
        membership: What was pinned.
        config: The site's file.
        federation: The name in the federation's file that is installed here.

    Raises:
        IdentityError: It was.
    """
    found = (membership.federation, membership.site, membership.num_examples)
    size = config.site.num_examples
    wanted = (federation, config.site.name, found[2] if size is None else size)
    if found != wanted:
        raise IdentityError(
            f"expected the membership of {wanted[1]} in {wanted[0]} with {wanted[2]} examples, "
            f"got that of {found[1]} in {found[0]} with {found[2]}",
            hint="join with an invitation for this site, or name another identity.folder",
        )


def check_clock(coordinator: datetime, now: datetime) -> None:
    """Refuses to go on where the two clocks tell too different times.

    Expiry of certificates and rosters, and the freshness of requests, hang on them.

    Raises:
        IdentityError: They do.
    """
    if abs(coordinator - now) > CLOCK_ALLOWANCE:
        raise IdentityError(
            f"expected clocks at most {CLOCK_ALLOWANCE.seconds // 60} minutes apart, got "
            f"{write_timestamp(now)} here and {write_timestamp(coordinator)} at the coordinator",
            hint="set the clocks of both machines (NTP)",
        )


def check_admission(
    identity: IdentityFolder, membership: Invitation, signed: SignedRoster, now: datetime
) -> RosterMember:
    """This site's entry in a roster, which is checked against the pins.

    Raises:
        RosterRollbackError: An older roster than the pinned one.
        IdentityError: It is not the pinned admin's, or this site is not in it as it should be.
    """
    roster = check_roster(
        signed,
        admin_key=membership.admin_key,
        federation=membership.federation,
        now=now,
        pinned=identity.roster(),
    )
    return own_entry(roster, membership, identity.node_key().public_hex)


def own_entry(roster: Roster, membership: Invitation, node_key: str) -> RosterMember:
    """This site's entry in a checked roster.

    Raises:
        IdentityError: There is none, it was revoked, or it is of another key or size.
    """
    found = [member for member in roster.members if member.name == membership.site]
    if not found:
        raise IdentityError(f"expected {membership.site} in the roster, got one without it")
    member = found[0]
    if member.status != "active":
        raise IdentityError(
            f"expected {membership.site} to be active in the roster, got {member.status}",
            hint="ask the federation's admin",
        )
    if member.node_key != node_key:
        raise IdentityError(
            f"expected this site's node key in the roster, got {member.node_key[:16]}..."
        )
    if member.num_examples != membership.num_examples:
        raise IdentityError(
            f"expected the public size {membership.num_examples} of the invitation in the "
            f"roster, got {member.num_examples}"
        )
    return member
