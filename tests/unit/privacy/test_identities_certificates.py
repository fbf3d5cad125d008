"""The matrix of certificates that must not be taken, before any network comes in."""

from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import IdentityError
from privacy.identities.authority import Authority, create_authority
from privacy.identities.certificates import (
    Purpose,
    check_certificate,
    load_chain,
    read_certificate,
    write_chain,
)
from privacy.identities.names import role_tls_name, server_tls_name, site_tls_name
from privacy.identities.tls_keys import TlsKey
from tests.support.certificates import CLIENT, NOW, SERVER, Forgery, organisation_root

NORTH = site_tls_name("clinic", "north")
LATER = NOW + timedelta(hours=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("clinic", NOW)


@pytest.fixture(scope="module")
def north(authority: Authority) -> str:
    return authority.issuing.issue(TlsKey.generate().csr_pem(), NORTH, "client", 24, NOW)


def refused(
    text: str, chain: str, root: str, name: str = NORTH, purpose: Purpose = "client"
) -> None:
    with pytest.raises(IdentityError, match=text):
        check_certificate(chain, root, name, purpose, LATER)


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        (NORTH, "client"),
        (site_tls_name("clinic", "north_1"), "client"),
        (site_tls_name("clinic", "n" * 64), "client"),
        (role_tls_name("clinic", "ana", "operator"), "client"),
        (role_tls_name("clinic", "ana", "auditor"), "client"),
        (server_tls_name("clinic"), "server"),
    ],
)
def test_what_the_authority_issues_is_taken(
    authority: Authority, name: str, purpose: Purpose
) -> None:
    key = TlsKey.generate()
    chain = authority.issuing.issue(key.csr_pem(), name, purpose, 24, NOW)
    facts = check_certificate(chain, authority.root_pem, name, purpose, LATER)
    assert facts.dns_names == (name,)
    assert facts.usages == {purpose}
    assert facts.public_key_digest == key.public_key_digest
    assert facts.not_after == NOW + timedelta(hours=24)
    assert facts == read_certificate(chain.encode())


def test_a_federation_with_an_awkward_name_has_certificates_too() -> None:
    federation = "f_" * 32
    authority = create_authority(federation, NOW)
    name = site_tls_name(federation, "s_" * 32)
    chain = authority.issuing.issue(TlsKey.generate().csr_pem(), name, "client", 1, NOW)
    check_certificate(chain, authority.root_pem, name, "client", NOW)


def test_an_expired_certificate_is_refused(authority: Authority, north: str) -> None:
    with pytest.raises(IdentityError, match=r"got one that has expired: from .* to 2026-06-02T12"):
        check_certificate(north, authority.root_pem, NORTH, "client", NOW + timedelta(hours=25))


def test_a_certificate_that_is_not_yet_valid_is_refused(authority: Authority, north: str) -> None:
    with pytest.raises(IdentityError, match=r"got one that is not yet valid: .*\nhint: set the cl"):
        check_certificate(north, authority.root_pem, NORTH, "client", NOW - timedelta(hours=1))


def test_a_certificate_whose_authority_has_expired_is_refused(authority: Authority) -> None:
    chain = Forgery((NORTH,), lifetime=timedelta(days=500)).chain(authority)
    with pytest.raises(IdentityError, match="got one that does not: .*not valid at"):
        check_certificate(chain, authority.root_pem, NORTH, "client", NOW + timedelta(days=400))


def test_a_certificate_of_another_ca_is_refused(authority: Authority) -> None:
    """The same names, in a federation of the same name."""
    other = create_authority("clinic", NOW)
    chain = other.issuing.issue(TlsKey.generate().csr_pem(), NORTH, "client", 24, NOW)
    refused("chains to the federation's root, got one that does not", chain, authority.root_pem)


def test_a_chain_that_brings_its_own_root_is_refused(authority: Authority) -> None:
    other = create_authority("clinic", NOW)
    chain = other.issuing.issue(TlsKey.generate().csr_pem(), NORTH, "client", 24, NOW)
    refused("got one that does not", chain + other.root_pem, authority.root_pem)


def test_a_chain_without_its_authority_is_refused(authority: Authority, north: str) -> None:
    leaf = write_chain(load_chain(north, "chain")[:1])
    refused("got one that does not", leaf, authority.root_pem)


def test_a_self_signed_certificate_is_refused(authority: Authority) -> None:
    forgery = Forgery((NORTH,))
    own_root = organisation_root(forgery.key)
    refused("got one that does not", forgery.pem(forgery.key, own_root), authority.root_pem)


def test_another_name_is_refused(authority: Authority, north: str) -> None:
    refused(
        r"expected a certificate with the one name 'south.*', got 'north\.site\.clinic",
        north,
        authority.root_pem,
        site_tls_name("clinic", "south"),
    )


@pytest.mark.parametrize(
    "names", [(), (NORTH, site_tls_name("clinic", "south")), (NORTH, NORTH), (NORTH.upper(),)]
)
def test_no_name_two_names_and_another_case_are_refused(
    authority: Authority, names: tuple[str, ...]
) -> None:
    chain = Forgery(names).chain(authority)
    refused("expected a certificate with the one name", chain, authority.root_pem)


def test_a_wildcard_stands_for_nobody(authority: Authority) -> None:
    chain = Forgery(("*.site.clinic.cloister.internal",)).chain(authority)
    refused("expected a certificate with the one name", chain, authority.root_pem)


def test_a_server_s_certificate_is_no_client_s(authority: Authority) -> None:
    name = server_tls_name("clinic")
    chain = authority.issuing.issue(TlsKey.generate(), name, "server", 24, NOW)
    refused(
        "expected a certificate for a TLS client, got one for server",
        chain,
        authority.root_pem,
        name,
    )


def test_a_client_s_certificate_is_no_server_s(authority: Authority, north: str) -> None:
    refused(
        "for a TLS server, got one for client", north, authority.root_pem, NORTH, purpose="server"
    )


def test_a_certificate_without_a_use_is_refused(authority: Authority) -> None:
    chain = Forgery((NORTH,), usages=None).chain(authority)
    refused("for a TLS client, got one for no named use", chain, authority.root_pem)


@pytest.mark.parametrize("purpose", ["client", "server"])
@pytest.mark.parametrize(
    "name", ["north.example", "evilclinic.cloister.internal", "x.site.other.cloister.internal"]
)
def test_a_stolen_issuing_key_reaches_no_name_outside_its_domain(
    authority: Authority, name: str, purpose: Purpose
) -> None:
    chain = Forgery((name,), usages=(CLIENT, SERVER)).chain(authority)
    refused("got one that does not: .*name constraint", chain, authority.root_pem, name, purpose)


def test_a_site_s_key_issues_nothing(authority: Authority) -> None:
    key = TlsKey.generate()
    site = authority.issuing.issue(key.csr_pem(), NORTH, "client", 24, NOW)
    name = site_tls_name("clinic", "south")
    chain = Forgery((name,)).pem(key, site) + site
    refused("got one that does not", chain, authority.root_pem, name)


def test_an_issuing_authority_makes_no_other_authority(authority: Authority) -> None:
    key = TlsKey.generate()
    below = Forgery(usages=None, is_authority=True, key=key).chain(authority)
    refused("got one that does not", Forgery((NORTH,)).pem(key, below) + below, authority.root_pem)


def test_an_authority_is_no_client(authority: Authority) -> None:
    chain = Forgery((NORTH,), is_authority=True).chain(authority)
    refused("got one that does not", chain, authority.root_pem)


def test_an_altered_certificate_is_refused(authority: Authority, north: str) -> None:
    leaf, issuing = load_chain(north, "chain")
    der = leaf.public_bytes(Encoding.DER).replace(b"north", b"south")
    altered = x509.load_der_x509_certificate(der)
    name = site_tls_name("clinic", "south")
    refused("got one that does not", write_chain([altered, issuing]), authority.root_pem, name)


def test_an_organisation_s_own_ca_is_taken() -> None:
    root_key = TlsKey.generate()
    root = organisation_root(root_key)
    chain = Forgery(("node.hospital.example",), usages=(CLIENT, SERVER)).pem(root_key, root)
    check_certificate(chain, root, "node.hospital.example", "client", LATER)
    check_certificate(chain, root, "node.hospital.example", "server", LATER)


def test_more_than_one_root_may_be_trusted(authority: Authority, north: str) -> None:
    other = create_authority("clinic", NOW)
    check_certificate(north, other.root_pem + authority.root_pem, NORTH, "client", LATER)


@pytest.mark.parametrize("text", ["", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n", "\u00e9"])
def test_junk_is_no_certificate(authority: Authority, north: str, text: str) -> None:
    with pytest.raises(IdentityError, match="expected a certificate as PEM, got what cannot be re"):
        read_certificate(text)
    refused("expected a certificate chain as PEM", text, authority.root_pem)
    refused("expected root certificates as PEM", north, text)


def test_a_chain_has_an_end(north: str) -> None:
    with pytest.raises(IdentityError, match="expected at most 4 in a certificate, got 6"):
        read_certificate(north * 3)
    with pytest.raises(IdentityError, match="expected a certificate of at most 65536 characters"):
        read_certificate(north * 100)


def test_a_key_kind_that_tls_does_not_take_is_refused(authority: Authority) -> None:
    weak = TlsKey(ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(IdentityError, match="expected a certificate for a key of P-256"):
        read_certificate(Forgery((NORTH,), key=weak).chain(authority))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x23"),  # one extension twice
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"),  # version 8
        (b"\x82\x23north", b"\xa5\x23north"),  # a kind of name that nobody uses
    ],
)
def test_a_certificate_against_the_rules_is_refused(north: str, old: bytes, new: bytes) -> None:
    der = b64decode("".join(north.split("-----")[2].split()))
    assert der.count(old) == 1
    text = b64encode(der.replace(old, new)).decode()
    with pytest.raises(IdentityError, match="expected a certificate as PEM, got what cannot be"):
        read_certificate(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")


def test_a_server_s_name_is_one_that_strict_path_validation_takes() -> None:
    root_key = TlsKey.generate()
    root = organisation_root(root_key)
    chain = Forgery(("a_b.example",), usages=(SERVER,)).pem(root_key, root)
    refused("got one that does not: invalid domain name", chain, root, "a_b.example", "server")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_nothing_else_escapes_from_a_damaged_certificate(north: str, data: st.DataObject) -> None:
    body = bytearray(b64decode("".join(north.split("-----")[2].split())))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    text = b64encode(bytes(body)).decode()
    with suppress(IdentityError):
        read_certificate(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
