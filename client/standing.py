"""A site's standing in the federation: the key that it signs with, and the roster it believes."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from client.identity_folder import IdentityFolder
from client.membership import check_admission
from core.errors import IdentityError
from core.wire.documents import Invitation, Roster, SignedRoster
from privacy.identities.roster import check_roster
from privacy.signing import SiteKey


class Standing(Protocol):
    """What secure aggregation needs of a site's identity."""

    def node_key(self) -> SiteKey:
        """The key that the roster has for this site."""

    def believe(self, signed: SignedRoster, now: datetime) -> Roster:
        """The roster in ``signed``, checked and from now on the oldest that is believed.

        Raises:
            IdentityError: It is not the pinned admin's, it is old or has expired, or it does not
                have this site as active and with its key.
        """


@dataclass(frozen=True)
class PinnedOnDisk:
    """A deployed site's: what it pinned when it joined."""

    identity: IdentityFolder
    membership: Invitation

    def node_key(self) -> SiteKey:
        """See ``Standing``."""
        return self.identity.node_key()

    def believe(self, signed: SignedRoster, now: datetime) -> Roster:
        """See ``Standing``."""
        check_admission(self.identity, self.membership, signed, now)
        pinned = self.identity.roster()
        if pinned is None or signed.roster.epoch > pinned.roster.epoch:
            self.identity.pin_roster(signed)
        return signed.roster


@dataclass
class PinnedInMemory:
    """A simulated site's, as long as the simulation lasts."""

    site: str
    key: SiteKey
    admin_key: str
    federation: str
    _pinned: SignedRoster | None = field(default=None, init=False)

    def node_key(self) -> SiteKey:
        """See ``Standing``."""
        return self.key

    def believe(self, signed: SignedRoster, now: datetime) -> Roster:
        """See ``Standing``."""
        roster = check_roster(
            signed,
            admin_key=self.admin_key,
            federation=self.federation,
            now=now,
            pinned=self._pinned,
        )
        own = [member for member in roster.members if member.name == self.site]
        if [(m.status, m.node_key) for m in own] != [("active", self.key.public_hex)]:
            raise IdentityError(f"expected {self.site} in the roster with its key, got another")
        self._pinned = signed
        return roster
