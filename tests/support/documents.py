"""One example of each document of identity and control, every field set."""

import tomllib

from core.config import FederationConfig
from core.messages import WireMessage
from core.wire.documents import (
    CollectReply,
    CollectRequest,
    ControlReply,
    ControlRequest,
    CountsStatus,
    Invitation,
    JoinReply,
    JoinRequest,
    RenewReply,
    RenewRequest,
    Roster,
    RosterMember,
    RosterOperator,
    RunStatus,
    SignedRoster,
    SiteStatus,
    StatusReport,
)

_TIME = "2026-11-22T10:00:00Z"
_LATER = "2026-11-23T10:00:00Z"
_PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
_CSR = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"

CONFIG = FederationConfig.model_validate(
    tomllib.loads("""
        federation = { name = "clinic", num_rounds = 3 }
        model = { vocab_size = 300, max_seq_len = 16, n_layer = 1, n_head = 2, n_embd = 16 }
        task = { kind = "causal-lm" }
        train = { steps_per_round = 2, global_batch_size = 8, learning_rate = 1e-2 }
        privacy = { noise_multiplier = 1.0 }
        [[sites]]
        name = "north"
        num_examples = 4000
    """),
    strict=False,  # TOML has lists where the model has tuples
)
MEMBER = RosterMember(
    name="north",
    node_key="1" * 64,
    tls_name="north.site.clinic.cloister.internal",
    num_examples=4000,
    status="revoked",
)
OPERATOR = RosterOperator(
    name="ann",
    role="auditor",
    tls_name="ann.auditor.clinic.cloister.internal",
    status="revoked",
)
ROSTER = Roster(
    federation="clinic",
    epoch=3,
    issued=_TIME,
    expires=_LATER,
    members=(MEMBER,),
    operators=(OPERATOR,),
)
SIGNED = SignedRoster(roster=ROSTER, signature="2" * 128)
INVITATION = Invitation(
    federation="clinic",
    site="north",
    num_examples=4000,
    token="3" * 32,
    expires=_LATER,
    address="coordinator.example:7443",
    enrolment_address="coordinator.example:7444",
    server_name="coordinator.clinic.cloister.internal",
    ca_pem=_PEM,
    admin_key="4" * 64,
    tls_name="north.site.clinic.cloister.internal",
)
JOIN = JoinRequest(
    federation="clinic",
    site="north",
    token="3" * 32,
    node_key="1" * 64,
    csr_pem=_CSR,
    certificate_pem=_PEM,
    signature="5" * 128,
)
JOINED = JoinReply(fingerprint="6" * 64)
COLLECT = CollectRequest(
    federation="clinic", site="north", node_key="1" * 64, time=_TIME, signature="7" * 128
)
COLLECTED = CollectReply(state="approved", time=_TIME, certificate_pem=_PEM, roster=SIGNED)
RENEW = RenewRequest(
    federation="clinic", site="north", csr_pem=_CSR, time=_TIME, signature="8" * 128
)
RENEWED = RenewReply(certificate_pem=_PEM)
CONTROL = ControlRequest(command="run", config=CONFIG, run="0123456789abcdef", again=True)
SITE = SiteStatus(
    name="north",
    status="pending",
    connected=True,
    silent_seconds=0.5,
    fingerprint="6" * 64,
    epsilon=1.25,
)
RUN = RunStatus(
    run_id="0123456789abcdef",
    name="clinic",
    state="stopped",
    server_round=2,
    num_rounds=3,
    reason="expected 2 sites within 60 seconds, got 1",
    weights_digest="9" * 64,
    refusals=("north refused (budget-exceeded)",),
)
ASKED = CountsStatus(
    run_id="0123456789abcdef",
    state="finished",
    reason="the disk was full",
    replied=("north",),
    absent=("south: policy-refused: expected nothing to be counted",),
)
STATUS = StatusReport(
    federation="clinic",
    version="0.1.0",
    roster_epoch=3,
    sites=(SITE,),
    runs=(RUN,),
    counts=ASKED,
)
CONTROLLED = ControlReply(
    report=STATUS, run_id="0123456789abcdef", code="run", message="expected an operator"
)

DOCUMENTS: tuple[WireMessage, ...] = (
    MEMBER,
    OPERATOR,
    ROSTER,
    SIGNED,
    INVITATION,
    JOIN,
    JOINED,
    COLLECT,
    COLLECTED,
    RENEW,
    RENEWED,
    CONTROL,
    SITE,
    RUN,
    ASKED,
    STATUS,
    CONTROLLED,
)
