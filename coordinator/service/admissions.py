"""Who was invited, who asked to join, and the signed rosters: the tables, and no decision."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal

from coordinator.service.store import Row, Store
from core.digests import canonical_json
from core.errors import IdentityError, ServiceError
from core.messages import decode, encode
from core.sealed_arrays import Seal
from core.wire.documents import JoinRequest, SignedRoster
from privacy.identities.clock import write_timestamp
from privacy.identities.enrolment import check_token

_INVITATIONS: Final = "state/invitations"
_REQUESTS: Final = "state/requests"
# No token has this hash: a site without an invitation hears what one with a wrong token hears.
_NO_HASH: Final = "0" * 64

State = Literal["pending", "approved", "refused"]
RosterChange = Callable[[SignedRoster | None], SignedRoster]


@dataclass(frozen=True)
class Applicant:
    """A site that joined with its token: what it proved to have."""

    site: str
    num_examples: int
    node_key: str
    csr_pem: str
    certificate_pem: str
    """From the organisation's own CA; empty where ours issues."""
    tls_name: str
    fingerprint: str


class Admissions:
    """The tables of invitations, requests and rosters; what could help a thief is sealed."""

    def __init__(self, store: Store, vault: Seal) -> None:
        self._store = store
        self._vault = vault

    def invite(self, site: str, token_hash: str, num_examples: int, expires: datetime) -> None:
        """Notes an invitation; earlier ones for the same site are good no more."""
        sealed = self._seal(
            _INVITATIONS, site, {"token_hash": token_hash, "num_examples": num_examples}
        )
        with self._store.transaction():
            self._store.write("UPDATE invitations SET used = 1 WHERE site = ?", (site,))
            self._store.write(
                "INSERT INTO invitations (site, expires, used, sealed) VALUES (?, ?, 0, ?)",
                (site, write_timestamp(expires), sealed),
            )

    def invited(self, now: datetime) -> set[str]:
        """The sites with an invitation that is still good."""
        rows = self._store.rows(
            "SELECT site FROM invitations WHERE used = 0 AND expires > ?", (write_timestamp(now),)
        )
        return {row["site"] for row in rows}

    def redeem(
        self, request: JoinRequest, now: datetime, applicant: Callable[[int], Applicant]
    ) -> None:
        """Uses up the token of a request to join, and keeps the request.

        Guarantees:
            A token is taken once, of however many requests that bring it at the same time, and
            by the site that it was made for only. Afterwards the request is on the disk.

        Args:
            request: What the site sent.
            now: The time.
            applicant: What is kept of it, with the public size that the invitation names.

        Raises:
            IdentityError: The token is wrong, used or expired.
        """
        site = request.site
        with self._store.transaction():
            rows = self._store.rows(
                "SELECT * FROM invitations WHERE site = ? AND used = 0", (site,)
            )
            if not rows:
                check_token(request, stored_hash=_NO_HASH, expires=write_timestamp(now), now=now)
            (row,) = rows
            invitation = self._open(_INVITATIONS, site, row["sealed"])
            check_token(
                request, stored_hash=invitation["token_hash"], expires=row["expires"], now=now
            )
            sealed = self._seal(_REQUESTS, site, asdict(applicant(invitation["num_examples"])))
            self._store.write("UPDATE invitations SET used = 1 WHERE number = ?", (row["number"],))
            # A new request takes the place of one that nobody decided on.
            self._store.write(
                "UPDATE requests SET state = 'refused' WHERE site = ? AND state = 'pending'",
                (site,),
            )
            self._store.write(
                "INSERT INTO requests (site, state, sealed) VALUES (?, 'pending', ?)",
                (site, sealed),
            )

    def pending(self) -> list[Applicant]:
        """The requests that the admin has not decided on, by site."""
        rows = self._store.rows("SELECT * FROM requests WHERE state = 'pending' ORDER BY site")
        return [self._applicant(row) for row in rows]

    def find(self, site: str, node_key: str) -> tuple[State, Applicant]:
        """The newest request of a site under one node key.

        Raises:
            IdentityError: There is none.
        """
        rows = self._store.rows(
            "SELECT * FROM requests WHERE site = ? ORDER BY number DESC", (site,)
        )
        for row in rows:
            applicant = self._applicant(row)
            if applicant.node_key == node_key:
                return row["state"], applicant
        raise IdentityError(
            f"expected a site that asked to join, got {site} with the key {node_key[:16]}...",
            hint="join with an invitation first",
        )

    def approve(
        self, site: str, choose: Callable[[Applicant], None], change: Callable[..., SignedRoster]
    ) -> Applicant:
        """Admits the site's pending request and publishes the roster that lists it, together.

        Args:
            site: Whose request.
            choose: Raises where it is not the one that was meant.
            change: From the present roster and the request to the next roster.

        Raises:
            IdentityError: No request is pending, or ``choose`` or ``change`` says no.
        """
        with self._store.transaction():
            rows = self._store.rows(
                "SELECT * FROM requests WHERE site = ? AND state = 'pending'", (site,)
            )
            if not rows:
                raise IdentityError(
                    f"expected a pending request of {site}, got none",
                    hint="the site joins with an invitation; `status` shows who waits",
                )
            applicant = self._applicant(rows[0])
            choose(applicant)
            self._publish(lambda present: change(present, applicant))
            self._store.write(
                "UPDATE requests SET state = 'approved' WHERE number = ?", (rows[0]["number"],)
            )
        return applicant

    def shut_out(self, site: str, change: RosterChange | None) -> None:
        """Ends a site's invitations and requests, and publishes the roster that says so.

        Args:
            site: The site.
            change: Makes the next roster; ``None`` where the roster does not list the site.
        """
        with self._store.transaction():
            self._store.write("UPDATE invitations SET used = 1 WHERE site = ?", (site,))
            self._store.write("UPDATE requests SET state = 'refused' WHERE site = ?", (site,))
            if change is not None:
                self._publish(change)

    def roster(self) -> SignedRoster | None:
        """The newest roster; whether the admin signed it, whoever relies on it checks."""
        rows = self._store.rows("SELECT document FROM rosters ORDER BY epoch DESC LIMIT 1")
        return decode(SignedRoster, rows[0]["document"]) if rows else None

    def change_roster(self, change: RosterChange) -> None:
        """Publishes the roster that ``change`` makes of the present one."""
        with self._store.transaction():
            self._publish(change)

    def _publish(self, change: RosterChange) -> None:
        signed = change(self.roster())
        self._store.write(
            "INSERT INTO rosters (epoch, document) VALUES (?, ?)",
            (signed.roster.epoch, encode(signed)),
        )

    def _applicant(self, row: Row) -> Applicant:
        return Applicant(**self._open(_REQUESTS, row["site"], row["sealed"]))

    def _seal(self, purpose: str, site: str, document: dict[str, Any]) -> bytes:
        return self._vault.seal(f"{purpose}/{site}", canonical_json(document))

    def _open(self, purpose: str, site: str, sealed: bytes) -> dict[str, Any]:
        document = json.loads(self._vault.open(f"{purpose}/{site}", sealed))
        if not isinstance(document, dict):
            raise ServiceError(f"expected a sealed object in {purpose}/{site}, got another")
        return document
