"""From a certificate to an entry of the roster, and the proof; without a socket."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from coordinator.service.peers import Gate, Handshake, Peer, member_of, operator_of
from core.errors import CloisterError, IdentityError, RosterRollbackError, SessionError
from core.messages import decode
from core.wire.documents import SignedRoster, session_transcript
from core.wire.frames import Heartbeat, Hello, Proof
from tests.support.certificates import NOW
from tests.support.enrolled import FEDERATION, Enrolled
from tests.support.wire_site import Credentials

SITE_NONCE, OUR_NONCE = b"s" * 32, b"c" * 32


class Door:
    """A gate of the federation, and a clock."""

    def __init__(self) -> None:
        self.now = NOW
        self.federation = Enrolled(now=lambda: NOW)
        self.north = self.federation.add("north")
        self.gate = Gate(
            self.federation.authority.root_pem, self.federation.roster, now=lambda: self.now
        )

    def identify(self, credentials: Credentials | None = None) -> Peer:
        """As a connection with these credentials."""
        chain = (credentials or self.north).chain_pem
        first, *rest = chain.split(b"-----BEGIN")[1:]
        leaf, above = b"-----BEGIN" + first, b"".join(b"-----BEGIN" + item for item in rest)
        return self.gate.identify({"x509_pem_cert": [leaf], "x509_pem_cert_chain": [above]})

    def handshake(self) -> Handshake:
        return Handshake(FEDERATION, self.identify(), nonce=OUR_NONCE)


@pytest.fixture
def door() -> Door:
    return Door()


def hello(**changes: Any) -> Hello:
    return replace(Hello(1, FEDERATION, "north", "0" * 32, SITE_NONCE), **changes)


def proof(door: Door, **changes: Any) -> Proof:
    said: dict[str, Any] = {
        "federation": FEDERATION,
        "site": "north",
        "instance": "0" * 32,
        "site_nonce": SITE_NONCE,
        "coordinator_nonce": OUR_NONCE,
    }
    purpose = changes.pop("purpose", "session")
    signature = door.north.node_key.sign(purpose, session_transcript(**(said | changes)))
    return Proof(bytes.fromhex(signature))


def test_a_certificate_leads_to_its_entry(door: Door) -> None:
    ann = door.federation.grant("ann", "operator")
    assert member_of(door.identify()).name == "north"
    assert operator_of(door.identify(ann)).name == "ann"
    with pytest.raises(IdentityError, match="expected a site, got the operator ann"):
        member_of(door.identify(ann))
    with pytest.raises(IdentityError, match="expected an operator or an auditor, got the site"):
        operator_of(door.identify())


def test_a_connection_without_a_certificate_is_nobodys(door: Door) -> None:
    with pytest.raises(IdentityError, match="got a connection without one"):
        door.gate.identify({"transport_security_type": [b"ssl"]})
    with pytest.raises(IdentityError, match="expected a certificate as PEM"):
        door.gate.identify({"x509_pem_cert": [b"garbage"]})


@pytest.mark.parametrize(
    ("ahead", "message"),
    [
        (timedelta(hours=25), "has expired"),
        (timedelta(hours=-25), "not yet valid"),
    ],
)
def test_the_certificates_time_is_checked_again(door: Door, ahead: timedelta, message: str) -> None:
    door.now = NOW + ahead
    with pytest.raises(IdentityError, match=message):
        door.identify()


def test_a_chain_to_another_root_is_refused(door: Door) -> None:
    other = Door()
    with pytest.raises(IdentityError, match="chains to the federation's root"):
        door.identify(other.north)


def _revoke(door: Door) -> None:
    door.federation.change("north", status="revoked")


def _remove(door: Door) -> None:
    del door.federation.members["north"]
    door.federation.sign()


def _other_key(door: Door) -> None:
    door.federation.change("north", node_key="1" * 64)


def _no_roster(door: Door) -> None:
    door.federation.signed = None


def _old_roster(door: Door) -> None:
    door.federation.lifetime = timedelta(minutes=1)
    door.federation.sign()
    door.now = NOW + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("change", "coming", "staying"),
    [
        (_revoke, "one that is revoked", "one that is revoked"),
        (_remove, "got it 0 times", "got one without it"),
        (_other_key, "", "expected the keys and the name that north came in with"),
        (_no_roster, "got none yet: nobody is approved", "nobody is approved"),
        (_old_roster, "got one that expired at", "got one that expired at"),
    ],
)
def test_who_is_no_longer_in_the_roster_does_not_come_in_and_does_not_stay(
    door: Door, change: Callable[[Door], None], coming: str, staying: str
) -> None:
    peer = door.identify()
    change(door)
    if coming:
        with pytest.raises(IdentityError, match=coming):
            door.identify()
    with pytest.raises(IdentityError, match=staying):
        door.gate.check_still(peer, door.gate.roster())


def test_a_site_stays_when_others_change_or_a_certificate_is_renewed(door: Door) -> None:
    peer = door.identify()
    door.federation.add("south")
    door.federation.change("north", num_examples=50)
    door.gate.check_still(peer, door.gate.roster())


def test_an_operators_name_does_not_stand_for_a_site(door: Door) -> None:
    """Names of sites and of operators are two kinds."""
    peer = door.identify()
    _remove(door)
    door.federation.grant("north", "operator")
    with pytest.raises(IdentityError, match="got one without it"):
        door.gate.check_still(peer, door.gate.roster())


def test_the_proof_opens_the_session(door: Door) -> None:
    handshake = door.handshake()
    assert handshake.challenge(hello()).nonce == OUR_NONCE
    welcome = handshake.welcome(proof(door), NOW)
    assert decode(SignedRoster, welcome.roster) == door.federation.signed
    assert welcome.time_unix_milliseconds == NOW.timestamp() * 1000


def test_each_handshake_has_a_nonce_of_its_own(door: Door) -> None:
    nonces = {Handshake(FEDERATION, door.identify()).challenge(hello()).nonce for _ in range(8)}
    assert len(nonces) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "other"},
        {"site": "south"},
        {"instance": "1" * 32},
        {"site_nonce": b"x" * 32},
        {"coordinator_nonce": b"x" * 32},  # a proof that was recorded in another session
        {"purpose": "renew"},
    ],
)
def test_a_signature_over_anything_else_is_no_proof(door: Door, changes: dict[str, Any]) -> None:
    handshake = door.handshake()
    handshake.challenge(hello())
    with pytest.raises(IdentityError, match="expected a proof by the node key"):
        handshake.welcome(proof(door, **changes), NOW)


def test_a_proof_by_another_key_is_none(door: Door) -> None:
    handshake = door.handshake()
    handshake.challenge(hello())
    with pytest.raises(IdentityError, match="of north, got another"):
        handshake.welcome(proof(Door()), NOW)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"site": "south"}, IdentityError, "expected a session of clinic/north"),
        ({"federation": "other"}, IdentityError, "got one of other/north"),
        ({"roster_epoch": 2}, RosterRollbackError, "got one that has seen 2"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(
    door: Door, changes: dict[str, Any], kind: type[CloisterError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        door.handshake().challenge(hello(**changes))


def test_frames_out_of_place_are_refused(door: Door) -> None:
    handshake = door.handshake()
    with pytest.raises(SessionError, match="expected a Hello before anything else"):
        handshake.welcome(proof(door), NOW)
    with pytest.raises(SessionError, match="expected a Hello, got Heartbeat"):
        handshake.challenge(Heartbeat())
    handshake.challenge(hello())
    with pytest.raises(SessionError, match="expected a Proof, got Heartbeat"):
        handshake.welcome(Heartbeat(), NOW)


def test_an_operator_opens_no_session(door: Door) -> None:
    ann = door.identify(door.federation.grant("ann", "operator"))
    with pytest.raises(IdentityError, match="expected a site, got the operator ann"):
        Handshake(FEDERATION, ann)
