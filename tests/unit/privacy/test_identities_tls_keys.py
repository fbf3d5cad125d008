from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from core.errors import IdentityError, SiteKeyError
from privacy.identities.tls_keys import TlsKey, public_key_digest, read_csr
from privacy.signing import write_private_file


def test_a_key_comes_back_from_its_file(tmp_path: Path) -> None:
    key = TlsKey.generate()
    write_private_file(tmp_path / "key", key.private_pem())
    assert TlsKey.load(tmp_path / "key").private_pem() == key.private_pem()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    write_private_file(tmp_path / "key", TlsKey.generate().private_pem())
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SiteKeyError, match="readable by its owner only, got mode 0644"):
        TlsKey.load(tmp_path / "key")


@pytest.mark.parametrize(
    "private", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_an_organisation_may_use_other_kinds(
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
    key = TlsKey.from_pem(TlsKey(private).private_pem(), origin="a test")
    assert public_key_digest(read_csr(key.csr_pem())) == key.public_key_digest


@pytest.mark.parametrize(
    "private",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),  # noqa: S505
    ],
)
def test_a_key_that_tls_does_not_take_is_refused(
    private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(
        SiteKeyError, match="expected a key of P-256, .* in a test, got another kin"
    ):
        TlsKey.from_pem(pem, origin="a test")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = request.sign(private, algorithm).public_bytes(Encoding.PEM).decode()
    with pytest.raises(
        IdentityError, match="certificate request for a key of P-256.*, got another"
    ):
        read_csr(csr)


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_junk_is_no_key(pem: bytes) -> None:
    with pytest.raises(SiteKeyError, match="expected a private TLS key in a test, got no key"):
        TlsKey.from_pem(pem, origin="a test")


def test_the_private_part_is_in_no_repr() -> None:
    key = TlsKey.generate()
    assert repr(key) == f"TlsKey(public={key.public_key_digest[:16]}..., private=***)"


def test_a_request_names_nobody() -> None:
    request = x509.load_pem_x509_csr(TlsKey.generate().csr_pem().encode())
    assert request.subject == x509.Name([])
    assert len(request.extensions) == 0


def test_a_request_signed_by_another_key_is_refused() -> None:
    """The public key of one request in the place of another's: what a thief of a request sends."""
    mine, theirs = (x509.load_pem_x509_csr(TlsKey.generate().csr_pem().encode()) for _ in range(2))
    points = [
        request.public_key().public_bytes(  # type: ignore[union-attr]
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        for request in (mine, theirs)
    ]
    der = mine.public_bytes(Encoding.DER).replace(points[0], points[1])
    forged = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM).decode()
    with pytest.raises(
        IdentityError, match="certificate request signed by its own key, got anothe"
    ):
        read_csr(forged)


@pytest.mark.parametrize("text", ["", "junk", "\u00e9", "-----BEGIN CERTIFICATE REQUEST-----\nAA"])
def test_junk_is_no_request(text: str) -> None:
    with pytest.raises(IdentityError, match=r"expected a certificate request \(PKCS #10\) as PEM"):
        read_csr(text)


def test_a_request_has_an_end() -> None:
    with pytest.raises(IdentityError, match="of at most 16384 characters, got 16385"):
        read_csr("a" * 16_385)


CSR = TlsKey.generate().csr_pem()


@given(st.integers(0, len(CSR) - 1), st.characters(max_codepoint=127))
def test_nothing_else_escapes_from_a_damaged_request(index: int, letter: str) -> None:
    with suppress(IdentityError):
        read_csr(CSR[:index] + letter + CSR[index + 1 :])
