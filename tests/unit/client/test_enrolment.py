"""Joining over real gRPC: what is asked, shown, collected, pinned and refused."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from client.enrolment import (
    collect,
    join,
    present_certificate,
    read_invitation,
    wait_for_approval,
)
from client.identity_folder import IdentityFolder
from coordinator.service.servers import Servers
from coordinator.service.throttle import Throttle
from core.errors import IdentityError, RosterRollbackError, SessionError
from core.messages import encode
from privacy.identities.certificates import read_certificate
from privacy.identities.clock import utc_now
from privacy.identities.enrolment import join_fingerprint
from tests.support.joining import Consortium, site_config


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Consortium, Servers]]:
    consortium = Consortium()
    _, servers = consortium.serve(throttle=Throttle(burst=10_000))
    yield consortium, servers
    servers.stop()


@pytest.fixture
def consortium(running: tuple[Consortium, Servers]) -> Consortium:
    consortium = running[0]
    consortium.members.clear()
    consortium.requests.clear()
    consortium.refused = frozenset()
    consortium.clock_error = timedelta()
    consortium.sign()
    return consortium


@pytest.fixture
def servers(running: tuple[Consortium, Servers]) -> Servers:
    return running[1]


@pytest.fixture
def identity(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(site_config(tmp_path).identity)


def ask(tmp_path: Path, identity: IdentityFolder, invitation: Any) -> list[str]:
    shown: list[str] = []
    join(site_config(tmp_path), identity, invitation, shown.append)
    return shown


def test_a_site_joins_waits_and_collects(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    (fingerprint,) = ask(tmp_path, identity, invitation)
    assert fingerprint == join_fingerprint(consortium.requests["north"])
    membership = identity.require_membership()
    assert not wait_for_approval(identity, membership, 0)
    assert identity.roster() is None
    consortium.approve()
    assert wait_for_approval(identity, membership, None)
    assert identity.roster() == consortium.signed
    name = read_certificate(identity.certificate_pem()).dns_names
    assert name == (consortium.members["north"].tls_name,)


def test_joining_again_after_it_was_cut_short_changes_nothing(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    """Also where the answer was lost: the token is used, by these very keys."""
    invitation = consortium.invitation(servers)
    first = ask(tmp_path, identity, invitation)
    (identity.folder / "membership.json").unlink()
    assert ask(tmp_path, identity, invitation) == first
    assert identity.membership() is not None


def test_a_token_that_another_used_is_refused(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    thief = IdentityFolder(site_config(tmp_path / "thief").identity)
    with pytest.raises(IdentityError, match="the coordinator refuses this site: identity"):
        join(site_config(tmp_path / "thief"), thief, invitation, pytest.fail)
    assert thief.membership() is None


def test_a_refused_site_is_told(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.refused = frozenset({"north"})
    with pytest.raises(IdentityError, match="expected site north to be approved, got a refusal"):
        wait_for_approval(identity, invitation, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "south"}, "expected an invitation for north, got one for south"),
        ({"num_examples": 41}, "for the declared size 40, got one for 41"),
        ({"expires": "2020-01-01T00:00:00Z"}, "got one that expired at 2020-01-01T00:00:00Z"),
        ({"tls_name": None}, "got none"),
    ],
)
def test_an_invitation_that_does_not_fit_is_refused_before_anything_is_sent(
    tmp_path: Path,
    identity: IdentityFolder,
    consortium: Consortium,
    servers: Servers,
    changes: dict[str, Any],
    message: str,
) -> None:
    invitation = consortium.invitation(servers).model_copy(update=changes)
    with pytest.raises(IdentityError, match=message):
        ask(tmp_path, identity, invitation)
    assert consortium.requests == {}


def test_a_second_invitation_may_not_bring_another_admin(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    ask(tmp_path, identity, consortium.invitation(servers))
    for field, value in (("admin_key", "0" * 64), ("ca_pem", Consortium().authority.root_pem)):
        other = consortium.invitation(servers).model_copy(update={field: value})
        with pytest.raises(IdentityError, match=f"got one with another {field}"):
            ask(tmp_path, identity, other)


def test_a_coordinator_with_another_root_is_not_spoken_to(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    root = Consortium().authority.root_pem
    with pytest.raises(SessionError, match="expected the coordinator to answer, got UNAVAILABLE"):
        ask(tmp_path, identity, consortium.invitation(servers, ca_pem=root))
    assert consortium.requests == {}


def test_a_coordinator_with_another_name_is_not_spoken_to(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers, server_name="other.clinic.cloister.internal")
    with pytest.raises(SessionError, match="UNAVAILABLE"):
        ask(tmp_path, identity, invitation)


def test_a_roster_of_another_admin_is_refused(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve()
    assert consortium.signed is not None
    forged = invitation.model_copy(update={"admin_key": "ab" * 32})
    with pytest.raises(IdentityError, match="signed by the key abab"):
        collect(identity, forged, now=utc_now())
    assert identity.roster() is None
    with pytest.raises(IdentityError, match="No such file"):
        identity.certificate_pem()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"status": "revoked"}, "expected north to be active in the roster, got revoked"),
        ({"num_examples": 41}, "expected the public size 40 of the invitation in the"),
        ({"node_key": "0" * 64}, "expected this site's node key in the roster, got 0000"),
        ({"name": "elsewhere"}, "expected north in the roster, got one without it"),
    ],
)
def test_an_entry_that_is_not_this_site_s_is_refused(
    tmp_path: Path,
    identity: IdentityFolder,
    consortium: Consortium,
    servers: Servers,
    entry: dict[str, Any],
    message: str,
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve(**entry)
    with pytest.raises(IdentityError, match=message):
        collect(identity, invitation, now=utc_now())
    assert identity.roster() is None


def test_an_older_roster_than_the_pinned_one_is_refused(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve()
    old = consortium.signed
    consortium.sign()
    collect(identity, invitation, now=utc_now())
    newest, consortium.signed = consortium.signed, old
    with pytest.raises(RosterRollbackError, match="or later, got epoch"):
        collect(identity, invitation, now=utc_now())
    assert identity.roster() == newest


def test_clocks_that_are_a_day_apart_are_refused(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve()
    consortium.clock_error = timedelta(days=1)
    with pytest.raises(IdentityError, match="expected clocks at most 5 minutes apart") as info:
        collect(identity, invitation, now=utc_now())
    assert info.value.hint == "set the clocks of both machines (NTP)"


def test_a_certificate_that_ran_out_is_collected_anew(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve()
    collect(identity, invitation, now=utc_now())
    present = present_certificate(identity, invitation, utc_now())
    assert present == identity.certificate_pem()
    credentials = consortium.authority.issuing
    name = consortium.members["north"].tls_name
    old = credentials.issue(identity.tls_key(), name, "client", 1, utc_now() - timedelta(minutes=5))
    identity.keep_certificate(old)
    assert present_certificate(identity, invitation, utc_now()) == old
    later = utc_now() + timedelta(hours=2)
    with pytest.raises(IdentityError):  # the coordinator's clock says that it is not so late
        present_certificate(identity, invitation, later)
    with pytest.raises(IdentityError, match="not yet valid: from"):
        present_certificate(identity, invitation, utc_now() - timedelta(days=1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected an invitation at .*none.json, got: No such file"),
        (b"{}", "expected an invitation in .*, got: Invitation does not fit"),
        (b"\xff", "got: Invitation is not readable JSON"),
        (b"[" * 300_000, "got: expected Invitation of at most"),
    ],
)
def test_a_file_that_is_no_invitation_is_named(
    tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "none.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(IdentityError, match=message):
        read_invitation(path)


def test_an_invitation_s_file_is_read(
    tmp_path: Path, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    (tmp_path / "invitation.json").write_bytes(encode(invitation))
    assert read_invitation(tmp_path / "invitation.json") == invitation


def test_nobody_there_is_named_and_asked_again(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    gone = invitation.model_copy(update={"enrolment_address": "127.0.0.1:1"})
    assert not wait_for_approval(identity, gone, 0)
    assert "cannot ask the coordinator: expected the coordinator to answer" in caplog.text


def test_another_node_key_collects_nothing(
    tmp_path: Path, identity: IdentityFolder, consortium: Consortium, servers: Servers
) -> None:
    invitation = consortium.invitation(servers)
    ask(tmp_path, identity, invitation)
    consortium.approve()
    thief = IdentityFolder(site_config(tmp_path / "thief").identity)
    thief.make_keys()
    with pytest.raises(IdentityError, match="the coordinator refuses this site"):
        collect(thief, invitation, now=utc_now())


def test_an_organisation_s_own_certificate_goes_with_the_request(
    tmp_path: Path, consortium: Consortium, servers: Servers
) -> None:
    credentials = consortium.add("north")
    tmp_path.joinpath("site.pem").write_bytes(credentials.chain_pem)
    tmp_path.joinpath("site.key").write_bytes(credentials.tls_key_pem)
    tmp_path.joinpath("site.key").chmod(0o600)
    config = site_config(tmp_path, certificate=tmp_path / "site.pem", key=tmp_path / "site.key")
    identity = IdentityFolder(config.identity)
    invitation = consortium.invitation(servers, tls_name=None)
    join(config, identity, invitation, lambda _: None)
    assert consortium.requests["north"].certificate_pem
    consortium.approve()
    assert collect(identity, invitation, now=utc_now())
    assert not (identity.folder / "certificate.pem").exists()
    with pytest.raises(IdentityError, match="has expired"):
        present_certificate(identity, invitation, utc_now() + timedelta(days=3))
