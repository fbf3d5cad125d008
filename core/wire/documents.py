"""Documents of identity and control: what is signed, pinned or asked for, as canonical JSON.

They are encoded and parsed by ``core.messages.encode`` and ``decode``.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from core.config import FederationConfig
from core.config_sections import Digest, Name
from core.digests import canonical_json
from core.messages import RunId, Text, WireMessage

PROTOCOL_VERSION: Final = 1

PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Token = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", repr=False)]
"""Admits a request, so it is in no ``repr``."""
Pem = Annotated[str, Field(max_length=16_384)]
DNS_NAME: Final = r"^[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64}){0,7}$"
DnsName = Annotated[str, Field(pattern=DNS_NAME)]
Address = Annotated[str, Field(pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")]
Timestamp = Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]
"""UTC, whole seconds."""
Role = Literal["operator", "auditor"]


def session_transcript(
    federation: str, site: str, instance: str, site_nonce: bytes, coordinator_nonce: bytes
) -> bytes:
    """What a site's node key signs to open a session (purpose ``session``)."""
    return canonical_json(
        {
            "protocol": PROTOCOL_VERSION,
            "federation": federation,
            "site": site,
            "instance": instance,
            "site-nonce": site_nonce.hex(),
            "coordinator-nonce": coordinator_nonce.hex(),
        }
    )


class RosterMember(WireMessage):
    """A site as the federation's admin admitted it."""

    name: Name
    """The site."""
    node_key: PublicKey
    """Its Ed25519 key, made at the site."""
    tls_name: DnsName
    """The DNS name that its TLS certificate must bear."""
    num_examples: int = Field(ge=1, le=10**12)
    """Its public size: the weight of its update."""
    status: Literal["active", "revoked"] = "active"
    """A revoked member stays listed, so that its name is not given away again."""


class RosterOperator(WireMessage):
    """A person or program that may watch, or watch and steer."""

    name: Name
    """Who."""
    role: Role
    """``operator``: start, stop, status. ``auditor``: read."""
    tls_name: DnsName
    """The DNS name that the TLS certificate must bear."""
    status: Literal["active", "revoked"] = "active"
    """Revoked ones stay listed."""


class Roster(WireMessage):
    """Who belongs to the federation. Each change has a higher epoch."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    federation: Name
    """The federation."""
    epoch: int = Field(ge=1)
    """Grows with each change; a site refuses a lower one than it has seen."""
    issued: Timestamp
    """When it was signed."""
    expires: Timestamp
    """After this nobody accepts it."""
    members: tuple[RosterMember, ...] = ()
    """The sites, by name."""
    operators: tuple[RosterOperator, ...] = ()
    """Operators and auditors, by name."""


class SignedRoster(WireMessage):
    """A roster with the offline admin key's signature over its canonical JSON."""

    roster: Roster
    """The roster."""
    signature: Signature
    """Ed25519, purpose ``roster``."""


class Invitation(WireMessage):
    """All that a site needs to join; handed over on a channel that both trust, used once."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    federation: Name
    """The federation."""
    site: Name
    """Whom it is for."""
    num_examples: int = Field(ge=1, le=10**12)
    """The public size under which the site is invited."""
    token: Token
    """128 random bits, good once and for 24 hours."""
    expires: Timestamp
    """When the token ends."""
    address: Address
    """Where sessions are opened."""
    enrolment_address: Address
    """Where the site joins."""
    server_name: DnsName
    """The name that the coordinator's certificate bears."""
    ca_pem: Pem
    """The root certificate that the coordinator's chains to."""
    admin_key: PublicKey
    """The key that signs rosters; pinned at the site from here on."""
    tls_name: DnsName | None = None
    """The name that the site's certificate will bear; ``None`` where the organisation's own CA
    issues it, and the site says which one."""


class JoinRequest(WireMessage):
    """A site asks to be enrolled."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    federation: Name
    """The federation."""
    site: Name
    """Who asks."""
    token: Token
    """From the invitation."""
    node_key: PublicKey
    """Its new Ed25519 key."""
    csr_pem: Pem
    """PKCS #10 request, signed with the TLS key: proof of possession, whoever issues the
    certificate."""
    certificate_pem: Pem = ""
    """The certificate that the organisation's own CA issued, where it does."""
    signature: Signature
    """By the node key over this request without this field, purpose ``join``: proof of
    possession."""


class JoinReply(WireMessage):
    """Received, and what to compare by telephone."""

    fingerprint: Digest
    """Over the federation, the site, its node key and its TLS public key; the admin approves this
    very one."""


class CollectRequest(WireMessage):
    """A site asks whether it was approved."""

    federation: Name
    """The federation."""
    site: Name
    """Who asks."""
    node_key: PublicKey
    """Its key."""
    time: Timestamp
    """Now; a request older than five minutes is refused."""
    signature: Signature
    """By the node key over this request without this field, purpose ``collect``."""


class CollectReply(WireMessage):
    """The certificate, once there is one."""

    state: Literal["pending", "approved", "refused"]
    """Where the request stands."""
    time: Timestamp
    """The coordinator's clock."""
    certificate_pem: Pem = ""
    """The site's certificate and the issuing CA's, where approved."""
    roster: SignedRoster | None = None
    """The roster that lists the site, where approved."""


class RenewRequest(WireMessage):
    """A site asks for its next certificate, over a session that its present one opened."""

    federation: Name
    """The federation."""
    site: Name
    """Who asks."""
    csr_pem: Pem
    """PKCS #10 request, of a new key or the same."""
    time: Timestamp
    """Now; a request older than five minutes is refused."""
    signature: Signature
    """By the node key over this request without this field, purpose ``renew``."""


class RenewReply(WireMessage):
    """The next certificate."""

    certificate_pem: Pem
    """The site's certificate and the issuing CA's."""


class ControlRequest(WireMessage):
    """What an operator or an auditor asks of the service."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    command: Literal["status", "run", "stop-run", "stop", "audit"]
    """``status`` is open to both roles; all else to operators."""
    config: FederationConfig | None = None
    """``run``: the run's configuration; its paths are the coordinator's."""
    run: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    """``stop-run``: which; empty for the present one. ``run`` without ``config``: which one goes
    on that was stopped or has failed. ``audit``: whose model the sites are asked about."""
    again: bool = False
    """``audit``: ask sites that were asked before, who pay anew."""


class SiteStatus(WireMessage):
    """A site as the coordinator sees it."""

    name: Name
    """The site."""
    status: Literal["active", "revoked", "invited", "pending", "not-invited"]
    """Its place in the roster, or on the way there."""
    connected: bool
    """Whether its session is open."""
    silent_seconds: float | None = Field(default=None, ge=0)
    """Since its last frame; ``None`` where it was never seen by this process."""
    fingerprint: str = ""
    """Of a pending request: what the admin approves."""
    epsilon: float | None = Field(default=None, ge=0)
    """Over its whole life, as its last reply said."""


class RunStatus(WireMessage):
    """A run."""

    run_id: RunId
    """The run."""
    name: Name
    """Its federation's name."""
    state: Literal["queued", "running", "finished", "stopped", "failed"]
    """Where it stands; after ``stopped`` and ``failed``, ``reason`` says why."""
    server_round: int = Field(ge=0)
    """Rounds applied."""
    num_rounds: int = Field(ge=1)
    """Rounds in all."""
    reason: Text = ""
    """Why it stopped or failed."""
    weights_digest: str = ""
    """Of the newest checkpoint's weights."""
    refusals: tuple[Text, ...] = Field(default=(), max_length=64)
    """The newest round's refusals and dropped replies, by site and name."""


class CountsStatus(WireMessage):
    """Counts for the audit of a run, since the service started."""

    run_id: RunId
    """The run."""
    state: Literal["waiting", "asking", "finished", "failed"]
    """Where it stands; after ``failed``, ``reason`` says why."""
    reason: Text = ""
    """Why it failed."""
    replied: tuple[Name, ...] = Field(default=(), max_length=1024)
    """The sites whose counts are in the run's folder."""
    absent: tuple[Text, ...] = Field(default=(), max_length=64)
    """The others, each with its reason."""


class StatusReport(WireMessage):
    """The service at a glance."""

    federation: Name
    """The federation."""
    version: str = Field(max_length=64)
    """Cloister's version."""
    roster_epoch: int = Field(ge=0)
    """0 before the first approval."""
    sites: tuple[SiteStatus, ...] = ()
    """All sites of the configuration and the roster."""
    runs: tuple[RunStatus, ...] = ()
    """Newest last."""
    counts: CountsStatus | None = None
    """The newest audit that was asked for."""


class ControlReply(WireMessage):
    """What came of a control request."""

    report: StatusReport | None = None
    """``status``."""
    run_id: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    """``run``: the new run; ``stop-run``: the one that stops; ``audit``: the audited one."""
    code: str = Field(default="", max_length=64)
    """An error's name, where the request was refused."""
    message: Text = ""
    """What was expected and what was asked."""
