"""A coordinator's folder with real keys, opened as the service and the admin open it."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from coordinator.service.admin import Admin, Reachable, invite
from coordinator.service.admissions import Admissions
from coordinator.service.creation import create_folder
from coordinator.service.credentials import Credentials, load_credentials
from coordinator.service.folder import CoordinatorFolder
from coordinator.service.reception import Reception
from coordinator.service.store import Store
from core.wire.documents import (
    CollectReply,
    ControlReply,
    ControlRequest,
    Invitation,
    JoinReply,
    JoinRequest,
    RosterOperator,
)
from privacy.identities.clock import utc_now
from privacy.identities.enrolment import make_collect_request, make_join_request
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from privacy.vault import Vault
from tests.support.federation import write_federation

LOOPBACK = (
    "listen.address=127.0.0.1:0",
    "listen.enrolment_address=127.0.0.1:0",
    "listen.public_host=127.0.0.1",
    "listen.metrics_port=0",
)
FEDERATION = "tiny"


def make_folder(root: Path, *overrides: str, federation: Path | None = None) -> CoordinatorFolder:
    """A fresh folder for the tiny federation, on free ports of this machine."""
    source = federation or write_federation(root.with_name("consortium"))
    return create_folder(
        root, (*LOOPBACK, *overrides), federation=source, copy=False, now=utc_now()
    )


@dataclass
class Office:
    """The folder, opened; its clock is the test's."""

    folder: CoordinatorFolder
    now: datetime = field(default_factory=utc_now)
    asked: list[ControlRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.folder.config()
        self.federation = self.folder.federation(self.config)
        self.vault: Vault = self.folder.vault()
        self.store: Store = self.folder.store()
        self.admissions = Admissions(self.store, self.vault)
        self.credentials: Credentials = load_credentials(
            self.folder, self.config.authority, FEDERATION, self.vault
        )
        self.key = SiteKey.load(self.folder.admin_key)
        self.admin = Admin(self.admissions, self.key, FEDERATION)
        self.reception = self.open_reception()

    def open_reception(self) -> Reception:
        """The doorkeeper, as a fresh process has it."""
        return Reception(
            self.admissions,
            self.credentials,
            federation=FEDERATION,
            admin_key=self.key.public_hex,
            control=self._control,
            now=lambda: self.now,
        )

    def invite(self, site: str = "north") -> Invitation:
        """An invitation."""
        coordinator = Reachable(
            address="127.0.0.1:1",
            enrolment_address="127.0.0.1:2",
            server_name=self.credentials.server_name,
            root_pem=self.credentials.root_pem,
            admin_key=self.key.public_hex,
            own_authority=self.credentials.issuing is not None,
        )
        return invite(self.admissions, self.federation, site, coordinator, self.now)

    def enrol(self, site: str = "north") -> "Newcomer":
        """A site that was invited, joined and was approved."""
        newcomer = Newcomer(self.invite(site), self.now)
        fingerprint = newcomer.join(self.reception).fingerprint
        self.admin.approve(site, fingerprint, self.now)
        return newcomer

    def _control(self, operator: RosterOperator, request: ControlRequest) -> ControlReply:
        self.asked.append(request)
        return ControlReply()


@dataclass
class Newcomer:
    """A site with an invitation and new keys."""

    invitation: Invitation
    now: datetime
    certificate_pem: str = ""
    node_key: SiteKey = field(default_factory=SiteKey.generate)
    tls_key: TlsKey = field(default_factory=TlsKey.generate)

    def request(self) -> JoinRequest:
        """What it sends to join."""
        return make_join_request(
            self.invitation,
            self.node_key,
            self.tls_key,
            certificate_pem=self.certificate_pem,
            now=self.now,
        )

    def join(self, reception: Reception) -> JoinReply:
        """Asks to be enrolled."""
        return reception.join(self.request())

    def collect(self, reception: Reception, now: datetime | None = None) -> CollectReply:
        """Asks whether it was approved."""
        request = make_collect_request(
            FEDERATION, self.invitation.site, self.node_key, now or self.now
        )
        return reception.collect(request)
