"""What the servers ask of whoever keeps the federation's books: who belongs, and who may join."""

from typing import Protocol

from core.wire.documents import (
    CollectReply,
    CollectRequest,
    ControlReply,
    ControlRequest,
    JoinReply,
    JoinRequest,
    RenewReply,
    RenewRequest,
    RosterMember,
    RosterOperator,
    SignedRoster,
)


class Doorkeeper(Protocol):
    """Called from several threads at once; every method may raise ``CloisterError``.

    The servers have parsed the request and, where a method names a peer, made sure of it: its
    certificate, its place in the roster, and an operator's role. All else is checked here.
    """

    def roster(self) -> SignedRoster | None:
        """The present roster, its signature checked; ``None`` before the first approval.

        Asked at every call of a peer and once or twice a second besides: it must be quick.
        """

    def join(self, request: JoinRequest) -> JoinReply:
        """Takes a token and keeps the request until the admin decides."""

    def collect(self, request: CollectRequest) -> CollectReply:
        """Says where a request stands, and hands out the certificate."""

    def renew(self, member: RosterMember, request: RenewRequest) -> RenewReply:
        """The next certificate of ``member``, whose present one opened the connection."""

    def control(self, operator: RosterOperator, request: ControlRequest) -> ControlReply:
        """Does what an operator asks; an auditor asks for ``status`` only."""
