"""A federation with real keys and certificates, and a doorkeeper that keeps its books in memory."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from coordinator.grids.remote import RemoteGrid
from coordinator.service.servers import Servers, ServerTls, serve
from core.coordinator_config import LivenessSection
from core.errors import IdentityError
from core.wire.documents import (
    CollectReply,
    CollectRequest,
    ControlReply,
    ControlRequest,
    JoinReply,
    JoinRequest,
    RenewReply,
    RenewRequest,
    Roster,
    RosterMember,
    RosterOperator,
    SignedRoster,
    StatusReport,
)
from privacy.identities.authority import create_authority
from privacy.identities.clock import utc_now, write_timestamp
from privacy.identities.enrolment import (
    check_collect_request,
    check_join_request,
    check_renew_request,
    check_token,
    new_token,
    token_hash,
)
from privacy.identities.names import role_tls_name, server_tls_name, site_tls_name
from privacy.identities.roster import sign_roster
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from tests.support.wire_site import Credentials

FEDERATION = "clinic"


@dataclass
class Enrolled:
    """The federation ``clinic``, whose sites have joined; it is the servers' ``Doorkeeper``."""

    now: Callable[[], datetime] = utc_now
    admin: SiteKey = field(default_factory=SiteKey.generate)
    members: dict[str, RosterMember] = field(default_factory=dict)
    operators: dict[str, RosterOperator] = field(default_factory=dict)
    invited: dict[str, str] = field(default_factory=dict)
    """Hash of the token, by site; a used one is gone."""
    requests: dict[str, JoinRequest] = field(default_factory=dict)
    asked: list[tuple[str, ControlRequest]] = field(default_factory=list)
    lifetime: timedelta = timedelta(days=1)
    broken: Exception | None = None
    """What every question is answered with."""

    def __post_init__(self) -> None:
        self.authority = create_authority(FEDERATION, self.now())
        self._epoch = 0
        self._lock = threading.Lock()
        self.signed: SignedRoster | None = None

    def add(self, site: str, **changes: Any) -> Credentials:
        """A site that has joined, with its keys."""
        node_key, tls_key = SiteKey.generate(), TlsKey.generate()
        tls_name = site_tls_name(FEDERATION, site)
        chain = self.authority.issuing.issue(tls_key, tls_name, "client", 24, self.now())
        self.members[site] = RosterMember(
            name=site, node_key=node_key.public_hex, tls_name=tls_name, num_examples=40, **changes
        )
        self.sign()
        return self.credentials(site, node_key, tls_key, chain)

    def grant(self, name: str, role: Any) -> Credentials:
        """An operator or auditor; it has no node key."""
        tls_key, tls_name = TlsKey.generate(), role_tls_name(FEDERATION, name, role)
        chain = self.authority.issuing.issue(tls_key, tls_name, "client", 24, self.now())
        self.operators[name] = RosterOperator(name=name, role=role, tls_name=tls_name)
        self.sign()
        return self.credentials(name, SiteKey.generate(), tls_key, chain)

    def credentials(self, name: str, node_key: SiteKey, key: TlsKey, chain: str) -> Credentials:
        """What somebody needs who has these keys."""
        return Credentials(
            name,
            node_key,
            key.private_pem(),
            chain.encode(),
            self.authority.root_pem.encode(),
            server_tls_name(FEDERATION),
        )

    def change(self, site: str, **changes: Any) -> None:
        """Changes an entry and signs the next roster."""
        self.members[site] = self.members[site].model_copy(update=changes)
        self.sign()

    def sign(self) -> None:
        """The next roster."""
        now = self.now()
        self._epoch += 1
        roster = Roster(
            federation=FEDERATION,
            epoch=self._epoch,
            issued=write_timestamp(now),
            expires=write_timestamp(now + self.lifetime),
            members=tuple(sorted(self.members.values(), key=lambda member: member.name)),
            operators=tuple(sorted(self.operators.values(), key=lambda item: item.name)),
        )
        self.signed = sign_roster(roster, self.admin)

    def tls(self) -> ServerTls:
        """A certificate for the server."""
        key, name = TlsKey.generate(), server_tls_name(FEDERATION)
        chain = self.authority.issuing.issue(key, name, "server", 24, self.now())
        root = self.authority.root_pem.encode()
        return ServerTls(key.private_pem(), chain.encode(), root)

    def serve(self, grid: RemoteGrid | None = None, **settings: Any) -> tuple[RemoteGrid, Servers]:
        """Both servers on free ports of this machine."""
        grid, tls = grid or RemoteGrid(LivenessSection()), self.tls()
        servers = serve(
            grid,
            self,
            settings.pop("tls", lambda: tls),
            federation=FEDERATION,
            address="127.0.0.1:0",
            enrolment_address="127.0.0.1:0",
            **settings,
        )
        return grid, servers

    def invite(self, site: str) -> str:
        """A token for a site."""
        token = new_token()
        self.invited[site] = token_hash(token, FEDERATION, site)
        return token

    # The doorkeeper.

    def roster(self) -> SignedRoster | None:
        """The newest one."""
        self._may_break()
        return self.signed

    def join(self, request: JoinRequest) -> JoinReply:
        """Takes a token once."""
        self._may_break()
        facts = check_join_request(request, federation=FEDERATION)
        with self._lock:
            stored = self.invited.get(request.site, "0" * 64)
            expires = write_timestamp(self.now() + timedelta(hours=1))
            check_token(request, stored_hash=stored, expires=expires, now=self.now())
            del self.invited[request.site]
            self.requests[request.site] = request
        return JoinReply(fingerprint=facts.fingerprint)

    def collect(self, request: CollectRequest) -> CollectReply:
        """Says that it waits for the admin."""
        self._may_break()
        known = self.requests.get(request.site)
        if known is None:
            raise IdentityError(f"expected a site that asked to join, got {request.site}")
        check_collect_request(
            request,
            federation=FEDERATION,
            site=known.site,
            node_key=known.node_key,
            now=self.now(),
        )
        return CollectReply(state="pending", time=write_timestamp(self.now()))

    def renew(self, member: RosterMember, request: RenewRequest) -> RenewReply:
        """Issues the next certificate."""
        check_renew_request(
            request,
            federation=FEDERATION,
            site=member.name,
            node_key=member.node_key,
            now=self.now(),
        )
        chain = self.authority.issuing.issue(
            request.csr_pem, member.tls_name, "client", 24, self.now()
        )
        return RenewReply(certificate_pem=chain)

    def control(self, operator: RosterOperator, request: ControlRequest) -> ControlReply:
        """Notes it."""
        self._may_break()
        self.asked.append((operator.name, request))
        return ControlReply(
            report=StatusReport(federation=FEDERATION, version="0", roster_epoch=self._epoch)
        )

    def _may_break(self) -> None:
        if self.broken is not None:
            raise self.broken
