"""Who a peer is: from its TLS certificate to its one entry in the roster, and the session's proof.

Three things must agree before a site is believed: the certificate, which TLS has checked and which
is checked again here; the roster, which names the one holder of that certificate; and the node
key in that entry, which signs what both sides just made up.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from core.errors import IdentityError, RosterRollbackError, SessionError, SiteKeyError
from core.messages import encode
from core.wire.documents import (
    Roster,
    RosterMember,
    RosterOperator,
    SignedRoster,
    session_transcript,
)
from core.wire.frames import NONCE_BYTES, Challenge, Frame, Hello, Proof, Welcome
from privacy.identities.certificates import PeerCertificate, check_certificate, read_certificate
from privacy.identities.clock import read_timestamp, utc_now, write_timestamp
from privacy.signing import verify_signature

_CERTIFICATE: Final = "x509_pem_cert"
_CHAIN: Final = "x509_pem_cert_chain"

RosterEntry = RosterMember | RosterOperator


@dataclass(frozen=True)
class Peer:
    """An entry of the roster, and the certificate that stands for it."""

    entry: RosterEntry
    certificate: PeerCertificate
    roster: SignedRoster
    """The roster in which the entry was found."""


class Gate:
    """Tells from a connection's certificate whose it is.

    Guarantees:
        Returns only for a certificate that is valid now, is for a client, chains to the root and
        bears the one DNS name of exactly one active entry of a roster that has not expired.

    Args:
        root_pem: The roots that peers chain to.
        roster: The present roster, its signature checked.
        now: UTC.
    """

    def __init__(
        self,
        root_pem: str,
        roster: Callable[[], SignedRoster | None],
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._root_pem = root_pem
        self._roster = roster
        self._now = now

    def identify(self, auth_context: Mapping[str, Sequence[bytes]]) -> Peer:
        """Whose connection this is.

        Args:
            auth_context: gRPC's, of a connection over mutual TLS.

        Raises:
            IdentityError: Nobody's whom the roster has as active.
        """
        leaf = b"".join(auth_context.get(_CERTIFICATE, ()))
        above = b"".join(auth_context.get(_CHAIN, ()))
        # A server is given the chain without the leaf, a client with it.
        chain = above if above.startswith(leaf) else leaf + above
        if not leaf:
            raise IdentityError("expected a client certificate, got a connection without one")
        names = read_certificate(leaf).dns_names
        if len(names) != 1:
            raise IdentityError(
                f"expected a certificate with one DNS name, got {ascii(names)[:200]}"
            )
        certificate = check_certificate(chain, self._root_pem, names[0], "client", self._now())
        signed = self.roster()
        roster = signed.roster
        entries = [entry for entry in _entries(roster) if entry.tls_name == names[0]]
        if len(entries) != 1:
            raise IdentityError(
                f"expected the name {names[0]!r} once in the roster of epoch {roster.epoch}, "
                f"got it {len(entries)} times",
                hint="the admin approves each site and each operator first",
            )
        peer = Peer(entries[0], certificate, signed)
        _check_same_entry(peer, roster)
        return peer

    def roster(self) -> SignedRoster:
        """The present roster.

        Raises:
            IdentityError: There is none, or it has expired.
        """
        signed = self._roster()
        if signed is None:
            raise IdentityError("expected a signed roster, got none yet: nobody is approved")
        now = self._now()
        if read_timestamp(signed.roster.expires) <= now:
            raise IdentityError(
                f"expected a roster that is valid at {write_timestamp(now)}, got one that expired "
                f"at {signed.roster.expires}",
                hint="the admin signs the next roster with the offline key",
            )
        return signed

    def check_still(self, peer: Peer, signed: SignedRoster) -> None:
        """Checks that a peer is to this roster, and now, what it was when it came in.

        Raises:
            IdentityError: It is revoked or changed, or its certificate has expired.
        """
        if signed is not peer.roster:  # else the very one in which its entry was found, active
            _check_same_entry(peer, signed.roster)
        peer.certificate.check_time(self._now())


def _check_same_entry(peer: Peer, roster: Roster) -> None:
    for entry in _entries(roster):
        if entry.name == peer.entry.name and isinstance(entry, type(peer.entry)):
            break
    else:
        raise IdentityError(f"expected {peer.entry.name} in the roster, got one without it")
    if entry.status != "active":
        raise IdentityError(
            f"expected an active entry of {entry.name} in the roster of epoch "
            f"{roster.epoch}, got one that is {entry.status}"
        )
    if _identity(entry) != _identity(peer.entry):
        raise IdentityError(f"expected the keys and the name that {entry.name} came in with")


def member_of(peer: Peer) -> RosterMember:
    """The site that a peer is.

    Raises:
        IdentityError: It is an operator or an auditor.
    """
    if not isinstance(peer.entry, RosterMember):
        raise IdentityError(f"expected a site, got the {peer.entry.role} {peer.entry.name}")
    return peer.entry


def operator_of(peer: Peer) -> RosterOperator:
    """The operator or auditor that a peer is.

    Raises:
        IdentityError: It is a site.
    """
    if not isinstance(peer.entry, RosterOperator):
        raise IdentityError(f"expected an operator or an auditor, got the site {peer.entry.name}")
    return peer.entry


class Handshake:
    """The first four frames of a session, on the coordinator's side. No IO.

    Guarantees:
        A Welcome is made only for the site whose certificate opened the connection, and only if
        its node key signed the nonce that was made here for this handshake.

    Args:
        federation: The federation.
        peer: Whose connection it is.
        nonce: 32 random bytes, new each time.
    """

    def __init__(self, federation: str, peer: Peer, *, nonce: bytes | None = None) -> None:
        self._federation = federation
        self._member = member_of(peer)
        self._roster = peer.roster
        self._nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        self._hello: Hello | None = None

    @property
    def hello(self) -> Hello:
        """What the site said first."""
        if self._hello is None:
            raise SessionError("expected a Hello before anything else")
        return self._hello

    def challenge(self, frame: Frame) -> Challenge:
        """Takes the Hello.

        Raises:
            IdentityError: It names another federation or site than the certificate does.
            RosterRollbackError: The site has seen a newer roster than the one here.
            SessionError: It is no Hello.
        """
        if not isinstance(frame, Hello):
            raise SessionError(f"expected a Hello, got {type(frame).__name__}")
        said, known = (frame.federation, frame.site), (self._federation, self._member.name)
        if said != known:
            raise IdentityError(
                f"expected a session of {'/'.join(known)}, as the certificate says, "
                f"got one of {'/'.join(said)}"
            )
        epoch = self._roster.roster.epoch
        if frame.roster_epoch > epoch:
            raise RosterRollbackError(
                f"expected a site that knows epoch {epoch} at most, got one that has seen "
                f"{frame.roster_epoch}",
                hint="the coordinator's state is an old copy: restore the newest one",
            )
        self._hello = frame
        return Challenge(self._nonce)

    def welcome(self, frame: Frame, now: datetime) -> Welcome:
        """Takes the Proof.

        Raises:
            IdentityError: Another key signed, or something else was signed.
            SessionError: It is no Proof.
        """
        hello = self.hello
        if not isinstance(frame, Proof):
            raise SessionError(f"expected a Proof, got {type(frame).__name__}")
        transcript = session_transcript(
            self._federation, hello.site, hello.instance, hello.nonce, self._nonce
        )
        try:
            key = self._member.node_key
            verify_signature(key, "session", transcript, frame.signature.hex())
        except SiteKeyError as error:
            raise IdentityError(
                f"expected a proof by the node key {key[:16]}... of {hello.site}, got another"
            ) from error
        return Welcome(encode(self._roster), int(now.timestamp() * 1000))


def _entries(roster: Roster) -> tuple[RosterEntry, ...]:
    return (*roster.members, *roster.operators)


def _identity(entry: RosterEntry) -> tuple[str, ...]:
    if isinstance(entry, RosterMember):
        return entry.tls_name, entry.node_key
    return entry.tls_name, entry.role
