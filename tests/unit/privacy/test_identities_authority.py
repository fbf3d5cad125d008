from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from core.errors import IdentityError
from privacy.identities.authority import (
    Authority,
    IssuingAuthority,
    create_authority,
    create_issuing_authority,
)
from privacy.identities.certificates import check_certificate, load_chain, read_certificate
from privacy.identities.names import server_tls_name, site_tls_name
from privacy.identities.tls_keys import TlsKey
from tests.support.certificates import NOW, Forgery, organisation_root

NORTH = site_tls_name("clinic", "north")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("clinic", NOW)


def only(pem: str) -> x509.Certificate:
    return load_chain(pem, "a test's")[0]


def extension(pem: str, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return only(pem).extensions.get_extension_for_class(kind)


def test_the_root_is_for_ten_years_and_the_issuing_authority_for_one(authority: Authority) -> None:
    root, issuing = only(authority.root_pem), only(authority.issuing.certificate_pem)
    assert root.not_valid_after_utc == NOW + timedelta(days=3650)
    assert issuing.not_valid_after_utc == NOW + timedelta(days=365) == authority.issuing.not_after
    assert root.not_valid_before_utc == NOW - timedelta(minutes=5)


def test_the_authorities_are_limited_in_depth_and_use(authority: Authority) -> None:
    for pem, depth in ((authority.root_pem, 1), (authority.issuing.certificate_pem, 0)):
        limits = extension(pem, x509.BasicConstraints)
        assert limits.critical
        assert limits.value == x509.BasicConstraints(ca=True, path_length=depth)
        usage = extension(pem, x509.KeyUsage).value
        assert isinstance(usage, x509.KeyUsage)
        assert usage.key_cert_sign
        assert not usage.digital_signature


def test_both_authorities_are_constrained_to_the_federation_s_domain(authority: Authority) -> None:
    for pem in (authority.root_pem, authority.issuing.certificate_pem):
        found = extension(pem, x509.NameConstraints)
        assert found.critical
        assert isinstance(found.value, x509.NameConstraints)
        assert found.value.permitted_subtrees == [x509.DNSName("clinic.cloister.internal")]
        assert len(found.value.excluded_subtrees or []) == 2


def test_a_leaf_says_one_name_one_use_and_that_it_is_no_authority(authority: Authority) -> None:
    chain = authority.issuing.issue(TlsKey.generate().csr_pem(), NORTH, "client", 24, NOW)
    assert chain.endswith(authority.issuing.certificate_pem)
    assert len(load_chain(chain, "chain")) == 2
    leaf = only(chain)
    assert leaf.subject == x509.Name([])
    names = extension(chain, x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.DNSName(NORTH)]  # type: ignore[call-overload]
    uses = extension(chain, x509.ExtendedKeyUsage).value
    assert list(uses) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]  # type: ignore[call-overload]
    assert extension(chain, x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)


def test_serial_numbers_are_random(authority: Authority) -> None:
    key = TlsKey.generate()
    serials = {
        only(authority.issuing.issue(key, NORTH, "client", 1, NOW)).serial_number for _ in range(8)
    }
    assert len(serials) == 8
    assert min(serials).bit_length() > 100


def test_a_leaf_ends_no_later_than_its_authority(authority: Authority) -> None:
    near_the_end = authority.issuing.not_after - timedelta(hours=1)
    chain = authority.issuing.issue(TlsKey.generate(), NORTH, "client", 24, near_the_end)
    assert read_certificate(chain).not_after == authority.issuing.not_after


@pytest.mark.parametrize("when", [timedelta(days=366), timedelta(days=365), timedelta(days=-1)])
def test_an_authority_that_is_not_valid_issues_nothing(
    authority: Authority, when: timedelta
) -> None:
    with pytest.raises(
        IdentityError, match=r"expected an issuing authority that is valid at .*\nh"
    ):
        authority.issuing.issue(TlsKey.generate(), NORTH, "client", 24, NOW + when)


@pytest.mark.parametrize("hours", [0, -1, 24 * 90 + 1])
def test_a_leaf_is_short_lived(authority: Authority, hours: int) -> None:
    with pytest.raises(IdentityError, match=f"a lifetime of 1 to 2160 hours, got {hours}"):
        authority.issuing.issue(TlsKey.generate(), NORTH, "client", hours, NOW)


@pytest.mark.parametrize(
    "name",
    [
        "north.example",
        "clinic.cloister.internal",
        site_tls_name("other", "north"),
        "",
        "evil" + NORTH[-9:],
    ],
)
def test_a_name_outside_the_domain_is_not_issued(authority: Authority, name: str) -> None:
    with pytest.raises(IdentityError, match=r"expected a client's name like \*\.clinic\.cloister"):
        authority.issuing.issue(TlsKey.generate(), name, "client", 24, NOW)


def test_clients_do_not_get_the_server_s_name_nor_the_server_theirs(authority: Authority) -> None:
    with pytest.raises(IdentityError, match=r"expected a client's name like .*, got 'coordinator"):
        authority.issuing.issue(TlsKey.generate(), server_tls_name("clinic"), "client", 24, NOW)
    with pytest.raises(IdentityError, match=r"expected a server's name like coordinator.*, got 'n"):
        authority.issuing.issue(TlsKey.generate(), NORTH, "server", 24, NOW)


def test_nothing_but_the_key_is_taken_from_a_request(authority: Authority) -> None:
    key = TlsKey.generate()
    wishes = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "evil")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("evil.example")]), critical=False)
    )
    request = wishes.sign(key.private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    chain = authority.issuing.issue(request, NORTH, "client", 24, NOW)
    facts = check_certificate(chain, authority.root_pem, NORTH, "client", NOW)
    assert facts.public_key_digest == key.public_key_digest
    assert only(chain).subject == x509.Name([])


def test_a_request_that_proves_nothing_gets_nothing(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="expected a certificate request"):
        authority.issuing.issue("junk", NORTH, "client", 24, NOW)


def test_our_own_authority_issues_for_elliptic_curves_only(authority: Authority) -> None:
    key = TlsKey(rsa.generate_private_key(65537, 2048))
    with pytest.raises(IdentityError, match="expected a request for an elliptic curve key, got an"):
        authority.issuing.issue(key.csr_pem(), NORTH, "client", 24, NOW)


def test_an_authority_is_loaded_with_its_own_key_only(authority: Authority) -> None:
    issuing = authority.issuing
    IssuingAuthority("clinic", issuing.key, issuing.certificate_pem)
    with pytest.raises(IdentityError, match=r"issuing authority's certificate, got another key's"):
        IssuingAuthority("clinic", TlsKey.generate(), issuing.certificate_pem)


def test_an_authority_is_loaded_for_its_own_federation_only(authority: Authority) -> None:
    issuing = authority.issuing
    with pytest.raises(
        IdentityError, match=r"constrained to other\.cloister.*, got one for clinic"
    ):
        IssuingAuthority("other", issuing.key, issuing.certificate_pem)


def test_an_authority_without_constraints_is_none_of_ours() -> None:
    key = TlsKey(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(IdentityError, match="got one for any name"):
        IssuingAuthority("clinic", key, organisation_root(key))


def test_the_root_key_makes_the_next_authority(authority: Authority) -> None:
    later = NOW + timedelta(days=400)
    following = create_issuing_authority("clinic", authority.root_key, authority.root_pem, later)
    chain = following.issue(TlsKey.generate(), NORTH, "client", 24, later)
    check_certificate(chain, authority.root_pem, NORTH, "client", later)
    assert following.key.public_key_digest != authority.issuing.key.public_key_digest


def test_an_authority_ends_no_later_than_its_root(authority: Authority) -> None:
    later = NOW + timedelta(days=3600)
    following = create_issuing_authority("clinic", authority.root_key, authority.root_pem, later)
    assert following.not_after == NOW + timedelta(days=3650)


def test_only_the_root_key_makes_an_authority(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="expected the key of the root certificate, got anoth"):
        create_issuing_authority("clinic", TlsKey.generate(), authority.root_pem, NOW)


def test_secrets_are_in_no_repr(authority: Authority) -> None:
    assert repr(authority.issuing) == "IssuingAuthority('clinic', key=***)"
    assert "PRIVATE" not in repr(authority)
    assert "private=***" in repr(authority)


def test_a_clock_of_today_works_too() -> None:
    now = datetime.now(UTC)
    authority = create_authority("clinic", now)
    chain = authority.issuing.issue(TlsKey.generate(), NORTH, "client", 1, now)
    check_certificate(chain, authority.root_pem, NORTH, "client", now)


def test_a_forgery_of_the_test_support_is_what_it_says(authority: Authority) -> None:
    """Else a test of a refusal could pass for another reason."""
    chain = Forgery((NORTH,)).chain(authority)
    check_certificate(chain, authority.root_pem, NORTH, "client", NOW)
