"""A federation whose sites really join: an admin who approves, and sites with their folders."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from client.enrolment import collect, join
from client.identity_folder import IdentityFolder
from coordinator.grids.remote import RemoteGrid
from coordinator.service.servers import Servers
from coordinator.service.throttle import Throttle
from core.config_sections import DataSection, PolicySection
from core.site_config import IdentitySection, SiteConfig, SiteSection
from core.wire.documents import CollectReply, CollectRequest, Invitation, RosterMember
from privacy.identities.clock import write_timestamp
from privacy.identities.enrolment import check_collect_request
from privacy.identities.names import server_tls_name, site_tls_name
from tests.support.enrolled import FEDERATION, Enrolled

SIZE = 40


@dataclass
class Consortium(Enrolled):
    """``Enrolled``, and an admin who approves."""

    refused: frozenset[str] = frozenset()
    clock_error: timedelta = timedelta()
    certificate_hours: int = 24

    def invitation(self, servers: Servers, site: str = "north", **changes: Any) -> Invitation:
        """What the admin hands over."""
        fields: dict[str, Any] = {
            "federation": FEDERATION,
            "site": site,
            "num_examples": SIZE,
            "token": self.invite(site),
            "expires": write_timestamp(self.now() + timedelta(hours=24)),
            "address": f"127.0.0.1:{servers.port}",
            "enrolment_address": f"127.0.0.1:{servers.enrolment_port}",
            "server_name": server_tls_name(FEDERATION),
            "ca_pem": self.authority.root_pem,
            "admin_key": self.admin.public_hex,
            "tls_name": site_tls_name(FEDERATION, site),
        }
        return Invitation(**(fields | changes))

    def approve(self, site: str = "north", **changes: Any) -> None:
        """The admin heard the fingerprint by telephone."""
        fields: dict[str, Any] = {
            "name": site,
            "node_key": self.requests[site].node_key,
            "tls_name": site_tls_name(FEDERATION, site),
            "num_examples": SIZE,
        }
        self.members[site] = RosterMember(**(fields | changes))
        self.sign()

    def collect(self, request: CollectRequest) -> CollectReply:
        """Hands out a certificate to approved sites."""
        self._may_break()
        known = self.requests[request.site]
        check_collect_request(
            request,
            federation=FEDERATION,
            site=known.site,
            node_key=known.node_key,
            now=self.now(),
        )
        time = write_timestamp(self.now() + self.clock_error)
        if request.site in self.refused:
            return CollectReply(state="refused", time=time)
        if request.site not in self.members:
            return CollectReply(state="pending", time=time)
        chain = self.authority.issuing.issue(
            known.csr_pem,
            site_tls_name(FEDERATION, request.site),
            "client",
            self.certificate_hours,
            self.now(),
        )
        return CollectReply(state="approved", time=time, certificate_pem=chain, roster=self.signed)


def site_config(folder: Path, site: str = "north", **identity: Any) -> SiteConfig:
    """A site's file, as far as its identity is concerned."""
    return SiteConfig(
        site=SiteSection(name=site, num_examples=SIZE),
        data=DataSection(format="jsonl", path=folder / "records.jsonl"),
        policy=PolicySection(max_epsilon=1.0),
        identity=IdentitySection(folder=folder / "identity", **identity),
    )


@dataclass
class Joined:
    """A site that has joined a running coordinator."""

    consortium: Consortium
    grid: RemoteGrid
    servers: Servers
    config: SiteConfig
    identity: IdentityFolder
    membership: Invitation


def joined_site(consortium: Consortium, folder: Path, site: str = "north") -> Joined:
    """Servers, and a site that has its certificate; the caller stops the servers."""
    grid, servers = consortium.serve(throttle=Throttle(burst=10_000))
    config = site_config(folder, site)
    identity = IdentityFolder(config.identity)
    invitation = consortium.invitation(servers, site)
    join(config, identity, invitation, lambda _: None)
    consortium.approve(site)
    assert collect(identity, invitation, now=consortium.now())
    return Joined(consortium, grid, servers, config, identity, identity.require_membership())
