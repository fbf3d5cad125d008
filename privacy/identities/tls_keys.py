"""The key of a TLS certificate, and the request that proves one has it.

P-256, since the TLS library under gRPC takes no Ed25519 certificates; the organisation's own CA
may have issued for P-384 or RSA too.
"""

from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from core.digests import sha256_hex
from core.errors import IdentityError, SiteKeyError
from privacy.signing import read_private_file

TlsPrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
TlsPublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 4096
_MAX_REQUEST_CHARACTERS: Final = 16_384
_KINDS: Final = "P-256, P-384 or RSA of 2048 to 4096 bits"


class TlsKey:
    """The private key of a TLS certificate.

    **Guarantees**: The private part is in no ``repr``, and is written only where ``private_pem``
    is.
    """

    def __init__(self, private: TlsPrivateKey) -> None:
        self.private = private

    @classmethod
    def generate(cls) -> "TlsKey":
        """A new P-256 key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path) -> "TlsKey":
        """Reads a key file, as safely as ``read_private_file``.

        Raises:
            SiteKeyError: It is missing, not safe, or holds no key that TLS can use.
        """
        return cls.from_pem(read_private_file(path), origin=str(path))

    @classmethod
    def from_pem(cls, pem: bytes, *, origin: str) -> "TlsKey":
        """Takes a key in the clear; ``origin`` names it in messages.

        Raises:
            SiteKeyError: It holds no key that TLS can use.
        """
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SiteKeyError(f"expected a private TLS key in {origin}, got no key") from error
        if not isinstance(private, TlsPrivateKey) or not _is_strong(private.public_key()):
            raise SiteKeyError(f"expected a key of {_KINDS} in {origin}, got another kind of key")
        return cls(private)

    def private_pem(self) -> bytes:
        """The private key in the clear, for a file of mode 0600 or a vault."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_key_digest(self) -> str:
        """SHA-256 of the public key, as in ``PeerCertificate``."""
        return public_key_digest(self.private.public_key())

    def csr_pem(self) -> str:
        """A PKCS #10 request, signed with this key. It asks for no name: the CA knows whose."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self.private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def __repr__(self) -> str:
        return f"TlsKey(public={self.public_key_digest[:16]}..., private=***)"


def read_csr(csr_pem: str) -> TlsPublicKey:
    """The public key of a PKCS #10 request. Names and extensions that it asks for are not read.

    **Guarantees**: Returns only a key whose private part signed the request. Only
    ``IdentityError`` escapes.

    Raises:
        IdentityError: It cannot be read, is for another kind of key, or is signed by another.

    Source: RFC 2986.
    """
    if len(csr_pem) > _MAX_REQUEST_CHARACTERS:
        raise IdentityError(
            f"expected a certificate request of at most {_MAX_REQUEST_CHARACTERS} characters, "
            f"got {len(csr_pem)}"
        )
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode("ascii"))
        public = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise IdentityError(
            "expected a certificate request (PKCS #10) as PEM, got what cannot be read"
        ) from error
    if not isinstance(public, TlsPublicKey) or not _is_strong(public):
        raise IdentityError(f"expected a certificate request for a key of {_KINDS}, got another")
    if not proven:
        raise IdentityError("expected a certificate request signed by its own key, got another")
    return public


def public_key_digest(public: object) -> str:
    """SHA-256 of a key's SubjectPublicKeyInfo.

    Raises:
        IdentityError: It is no kind of key that TLS can use here.
    """
    if not isinstance(public, TlsPublicKey) or not _is_strong(public):
        raise IdentityError(f"expected a certificate for a key of {_KINDS}, got another kind")
    return sha256_hex(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _is_strong(public: TlsPublicKey) -> bool:
    if isinstance(public, rsa.RSAPublicKey):
        return _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS
    return isinstance(public.curve, _CURVES)
