"""A federation whose certificates the organisations' own CA issues."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import IdentityError, SiteKeyError
from privacy.identities.tls_keys import TlsKey
from tests.support.certificates import CLIENT
from tests.support.office import Newcomer, Office, make_folder
from tests.support.organisation import SERVER_NAME, Organisation


@pytest.fixture
def organisation(tmp_path: Path) -> Organisation:
    return Organisation(tmp_path)


@pytest.fixture
def office(tmp_path: Path, organisation: Organisation) -> Iterator[Office]:
    office = Office(make_folder(tmp_path / "coordinator", *organisation.overrides()))
    yield office
    office.store.close()


def newcomer(office: Office, organisation: Organisation, name: str) -> Newcomer:
    site = Newcomer(office.invite(), office.now)
    site.certificate_pem = organisation.leaf(name, CLIENT, site.tls_key)
    return site


def test_a_site_gets_in_with_the_organisation_s_certificate(
    office: Office, organisation: Organisation
) -> None:
    site = newcomer(office, organisation, "north.hospital.example")
    assert site.invitation.tls_name is None
    assert site.invitation.server_name == SERVER_NAME
    office.admin.approve("north", site.join(office.reception).fingerprint, office.now)
    reply = site.collect(office.reception)
    assert reply.certificate_pem == site.certificate_pem
    assert reply.roster is not None
    assert reply.roster.roster.members[0].tls_name == "north.hospital.example"


def test_a_certificate_of_another_ca_is_refused(office: Office, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    site = newcomer(office, Organisation(tmp_path / "other"), "north.hospital.example")
    with pytest.raises(IdentityError, match="chains to the federation's root"):
        site.join(office.reception)


def test_a_request_without_a_certificate_is_refused(office: Office) -> None:
    site = Newcomer(office.invite(), office.now)
    ours = site.invitation.model_copy(update={"tls_name": "north.site.tiny.cloister.internal"})
    with pytest.raises(IdentityError, match="own CA issues it, got none"):
        Newcomer(ours, office.now).join(office.reception)


def test_a_foreign_certificate_is_refused_where_our_own_ca_issues(
    tmp_path: Path, organisation: Organisation
) -> None:
    office = Office(make_folder(tmp_path / "ours"))
    invitation = office.invite().model_copy(update={"tls_name": None})
    site = Newcomer(invitation, office.now)
    site.certificate_pem = organisation.leaf("north.hospital.example", CLIENT, site.tls_key)
    with pytest.raises(IdentityError, match="got one from another CA"):
        site.join(office.reception)
    office.store.close()


def test_the_organisation_s_ca_renews_certificates_itself(office: Office) -> None:
    with pytest.raises(IdentityError, match="own CA, got the organisation's\nhint: have the"):
        office.credentials.issue_client(TlsKey.generate().csr_pem(), "north", office.now)


def test_a_server_certificate_of_another_name_stops_init(
    tmp_path: Path, organisation: Organisation
) -> None:
    with pytest.raises(IdentityError, match="certificate with the one name 'fl.hospital.example'"):
        make_folder(tmp_path / "coordinator", *organisation.overrides(name="other.example"))
    assert not (tmp_path / "coordinator").exists()


def test_a_server_key_that_does_not_fit_stops_init(
    tmp_path: Path, organisation: Organisation
) -> None:
    with pytest.raises(SiteKeyError, match="private key of the server's certificate"):
        make_folder(tmp_path / "coordinator", *organisation.overrides(key=TlsKey.generate()))
    assert not (tmp_path / "coordinator").exists()
