"""From an invitation to the roster: who gets in, and who does not."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.errors import IdentityError, RosterRollbackError, ServiceError
from core.messages import encode
from core.wire.documents import ControlRequest, JoinRequest, RosterOperator
from privacy.identities.certificates import check_certificate
from privacy.identities.enrolment import make_renew_request
from privacy.identities.names import site_tls_name
from privacy.identities.roster import sign_roster
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from tests.support.office import FEDERATION, Newcomer, Office, make_folder


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(make_folder(tmp_path / "coordinator"))
    yield office
    office.store.close()


def test_a_site_gets_in(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    fingerprint = newcomer.join(office.reception).fingerprint
    assert newcomer.collect(office.reception).state == "pending"
    assert [a.fingerprint for a in office.admissions.pending()] == [fingerprint]

    office.admin.approve("north", fingerprint, office.now)
    reply = newcomer.collect(office.reception)
    assert reply.state == "approved"
    check_certificate(
        reply.certificate_pem,
        office.credentials.root_pem,
        site_tls_name(FEDERATION, "north"),
        "client",
        office.now,
    )
    assert reply.roster is not None
    assert reply.roster == office.reception.roster()
    (member,) = reply.roster.roster.members
    assert (member.name, member.num_examples) == ("north", 40)
    assert member.node_key == newcomer.node_key.public_hex


def test_the_fingerprint_may_be_written_as_it_was_spoken(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    digits = newcomer.join(office.reception).fingerprint.upper()
    spoken = " ".join(digits[i : i + 8] for i in range(0, 64, 8)).replace(" ", "-", 2)
    office.admin.approve("north", spoken, office.now)
    assert newcomer.collect(office.reception).state == "approved"


def test_another_fingerprint_is_refused(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    newcomer.join(office.reception)
    with pytest.raises(IdentityError, match="that north made, got another\nhint: compare all"):
        office.admin.approve("north", "0" * 64, office.now)
    assert newcomer.collect(office.reception).state == "pending"


def test_who_did_not_join_cannot_be_approved(office: Office) -> None:
    office.invite()
    with pytest.raises(IdentityError, match="expected a pending request of north, got none"):
        office.admin.approve("north", "0" * 64, office.now)


def test_a_token_is_good_once(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    newcomer.join(office.reception)
    for again in (newcomer, Newcomer(newcomer.invitation, office.now)):
        with pytest.raises(IdentityError, match="got one that is wrong, used or expired"):
            again.join(office.reception)
    assert newcomer.collect(office.reception).state == "pending"


def test_of_two_that_bring_a_token_at_once_one_gets_in(office: Office) -> None:
    invitation = office.invite()
    rivals = [Newcomer(invitation, office.now).request() for _ in range(8)]
    start, outcomes = threading.Barrier(len(rivals)), []

    def join(request: JoinRequest) -> None:
        start.wait()
        try:
            office.reception.join(request)
            outcomes.append("in")
        except IdentityError:
            outcomes.append("out")

    threads = [threading.Thread(target=join, args=(request,)) for request in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["out"] * 7
    assert len(office.admissions.pending()) == 1


def test_a_later_invitation_ends_an_earlier_one(office: Office) -> None:
    early, late = Newcomer(office.invite(), office.now), Newcomer(office.invite(), office.now)
    with pytest.raises(IdentityError, match="wrong, used or expired"):
        early.join(office.reception)
    late.join(office.reception)


def test_an_expired_token_is_refused(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    request = newcomer.request()
    office.now += timedelta(hours=24)
    with pytest.raises(IdentityError, match="wrong, used or expired"):
        office.reception.join(request)


def test_a_token_of_another_site_is_refused(office: Office) -> None:
    invitation = office.invite("south")
    changes = {"site": "north", "tls_name": site_tls_name(FEDERATION, "north")}
    with pytest.raises(IdentityError, match="valid token for site 'north'"):
        Newcomer(invitation.model_copy(update=changes), office.now).join(office.reception)


def test_a_second_request_takes_the_place_of_one_that_waits(office: Office) -> None:
    first = Newcomer(office.invite(), office.now)
    first_fingerprint = first.join(office.reception).fingerprint
    second = Newcomer(office.invite(), office.now)
    second.join(office.reception)
    assert first.collect(office.reception).state == "refused"
    with pytest.raises(IdentityError, match="that north made, got another"):
        office.admin.approve("north", first_fingerprint, office.now)


def test_a_site_that_lost_its_keys_is_invited_again(office: Office) -> None:
    old = office.enrol()
    new = office.enrol()
    assert new.collect(office.reception).state == "approved"
    assert old.collect(office.reception).state == "refused"
    signed = office.reception.roster()
    assert signed is not None
    assert [member.node_key for member in signed.roster.members] == [new.node_key.public_hex]


def test_a_site_that_is_not_in_the_federation_s_file_is_not_invited(office: Office) -> None:
    with pytest.raises(IdentityError, match="got 'east'\nhint: the sites are north, south, west"):
        office.invite("east")


def test_a_revoked_site_is_shut_out_for_good(office: Office) -> None:
    newcomer = office.enrol()
    invitation = office.invite()
    office.admin.revoke_site("north", office.now)
    signed = office.reception.roster()
    assert signed is not None
    assert [member.status for member in signed.roster.members] == ["revoked"]
    assert newcomer.collect(office.reception).state == "refused"
    with pytest.raises(IdentityError, match="wrong, used or expired"):
        Newcomer(invitation, office.now).join(office.reception)
    with pytest.raises(IdentityError, match="expected a site that was not revoked"):
        office.invite()


def test_an_invitation_can_be_revoked_before_anybody_joined(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    office.admin.revoke_site("north", office.now)
    with pytest.raises(IdentityError, match="wrong, used or expired"):
        newcomer.join(office.reception)


def test_who_was_never_invited_cannot_be_revoked(office: Office) -> None:
    with pytest.raises(IdentityError, match="expected a site that was invited or admitted"):
        office.admin.revoke_site("north", office.now)
    with pytest.raises(IdentityError, match="got 'eve'\nhint: it lists operator"):
        office.admin.revoke_operator("eve", office.now)


def test_a_revoked_operator_stays_listed_and_out(office: Office) -> None:
    office.admin.revoke_operator("operator", office.now)
    with pytest.raises(IdentityError, match="name that was not revoked, got 'operator'"):
        office.admin.grant("operator", "auditor", "x.tiny.cloister.internal", office.now)


def test_a_stranger_s_question_is_refused(office: Office) -> None:
    with pytest.raises(IdentityError, match="expected a site that asked to join"):
        Newcomer(office.invite(), office.now).collect(office.reception)


def test_an_old_question_is_refused(office: Office) -> None:
    newcomer = office.enrol()
    with pytest.raises(IdentityError, match="of the last 5 minutes"):
        newcomer.collect(office.reception, office.now - timedelta(minutes=6))


def test_a_site_that_was_off_for_long_collects_again(office: Office) -> None:
    newcomer = office.enrol()
    office.now += timedelta(days=60)
    chain = newcomer.collect(office.reception, office.now).certificate_pem
    name = site_tls_name(FEDERATION, "north")
    check_certificate(chain, office.credentials.root_pem, name, "client", office.now)


def test_the_next_certificate_takes_the_node_key(office: Office) -> None:
    newcomer = office.enrol()
    signed = office.reception.roster()
    assert signed is not None
    (member,) = signed.roster.members
    key = TlsKey.generate()
    request = make_renew_request(FEDERATION, "north", newcomer.node_key, key, office.now)
    chain = office.reception.renew(member, request).certificate_pem
    check_certificate(chain, office.credentials.root_pem, member.tls_name, "client", office.now)
    forged = make_renew_request(FEDERATION, "north", SiteKey.generate(), key, office.now)
    with pytest.raises(IdentityError, match="signed by the key"):
        office.reception.renew(member, forged)


def test_each_change_has_a_higher_epoch_and_a_new_end(office: Office) -> None:
    before = office.reception.roster()
    office.now += timedelta(days=30)
    office.admin.renew(office.now)
    after = office.reception.roster()
    assert before is not None
    assert after is not None
    assert after.roster.epoch == before.roster.epoch + 1
    assert after.roster.expires > before.roster.expires
    assert after.roster.operators == before.roster.operators


def test_an_expired_roster_is_refused_until_it_is_signed_again(office: Office) -> None:
    office.now += timedelta(days=91)
    with pytest.raises(IdentityError, match="got one that expired"):
        office.reception.roster()
    office.admin.renew(office.now)
    assert office.reception.roster() is not None


def test_a_roster_that_another_key_signed_is_refused(office: Office) -> None:
    present = office.admissions.roster()
    assert present is not None
    later = present.roster.model_copy(update={"epoch": present.roster.epoch + 1})
    with office.store.transaction():
        office.store.write(
            "INSERT INTO rosters VALUES (?, ?)",
            (later.epoch, encode(sign_roster(later, SiteKey.generate()))),
        )
    with pytest.raises(IdentityError, match="SignedRoster signed by the key"):
        office.reception.roster()
    with pytest.raises(IdentityError, match="SignedRoster signed by the key"):
        office.admin.renew(office.now)


def test_a_running_service_does_not_go_back(office: Office) -> None:
    office.admin.renew(office.now)
    assert office.reception.roster() is not None
    with office.store.transaction():
        office.store.write("DELETE FROM rosters WHERE epoch = ?", (2,))
    with pytest.raises(RosterRollbackError, match="expected a roster of epoch 2 or later"):
        office.reception.roster()
    with office.store.transaction():
        office.store.write("DELETE FROM rosters WHERE epoch > ?", (0,))
    with pytest.raises(IdentityError, match="expected the roster that was there before"):
        office.reception.roster()
    assert office.open_reception().roster() is None


def test_a_federation_s_file_of_another_name_is_refused(office: Office) -> None:
    office.admin._federation = "other"
    with pytest.raises(ServiceError, match="expected the roster of other, got that of tiny"):
        office.admin.renew(office.now)


def test_an_auditor_only_watches(office: Office) -> None:
    auditor = RosterOperator(name="ann", role="auditor", tls_name="x.y")
    assert office.reception.control(auditor, ControlRequest(command="status")).code == ""
    reply = office.reception.control(auditor, ControlRequest(command="stop"))
    assert reply.code == "identity"
    assert "expected an operator for stop, got the auditor ann" in reply.message
    assert [request.command for request in office.asked] == ["status"]


def test_tokens_and_requests_lie_sealed_on_the_disk(office: Office) -> None:
    newcomer = Newcomer(office.invite(), office.now)
    newcomer.join(office.reception)
    data = b"".join(
        path.read_bytes() for path in office.folder.root.iterdir() if "sqlite" in path.name
    )
    assert b"north" in data
    for secret in (newcomer.invitation.token, newcomer.node_key.public_hex, "BEGIN CERT"):
        assert secret.encode() not in data
