"""TLS certificates: reading one, and checking that it says what it must.

TLS itself checks the chain and that the other side holds the key. What is checked here again is
what it leaves open: the one name, the purpose, the time, and the constraints of the authorities.
Deliberately not checked here: whether the holder still belongs to the federation. That is the
roster's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from core.digests import sha256_hex
from core.errors import IdentityError
from privacy.identities.clock import write_timestamp
from privacy.identities.tls_keys import public_key_digest

Purpose: TypeAlias = Literal["client", "server"]

USAGES: Final[dict[Purpose, x509.ObjectIdentifier]] = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}
# A leaf, the issuing CA and up to two above it; the root is known.
_MAX_CHAIN: Final = 4
_MAX_PEM_CHARACTERS: Final = 65_536
_MAX_QUOTED: Final = 200
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class PeerCertificate:
    """What a certificate says. Who may believe it is another matter: see ``check_certificate``."""

    dns_names: tuple[str, ...]
    """The DNS names that it bears; a common name is none."""
    usages: frozenset[Purpose]
    """What it may be used for; empty where it does not say."""
    not_before: datetime
    """UTC."""
    not_after: datetime
    """UTC."""
    fingerprint: str
    """SHA-256 of the certificate."""
    public_key_digest: str
    """SHA-256 of its public key, as ``TlsKey.public_key_digest``."""

    def check_time(self, now: datetime) -> None:
        """Checks that it is good now.

        Raises:
            IdentityError: It is not yet valid, or has expired.
        """
        span = f"from {write_timestamp(self.not_before)} to {write_timestamp(self.not_after)}"
        if now < self.not_before:
            raise IdentityError(
                f"expected a certificate that is valid at {write_timestamp(now)}, got one that is "
                f"not yet valid: {span}",
                hint="set the clocks of both machines (NTP)",
            )
        if now > self.not_after:
            raise IdentityError(
                f"expected a certificate that is valid at {write_timestamp(now)}, got one that "
                f"has expired: {span}",
                hint="check the clock; a client that was off for long has to join again",
            )

    def check_use(self, tls_name: str, purpose: Purpose) -> None:
        """Checks that it was made for this holder and this purpose.

        Raises:
            IdentityError: It bears another name, more than one, or another purpose.
        """
        if self.dns_names != (tls_name,):
            raise IdentityError(
                f"expected a certificate with the one name {tls_name!r}, "
                f"got {', '.join(self.dns_names)[:_MAX_QUOTED]!r}"
            )
        if purpose not in self.usages:
            raise IdentityError(
                f"expected a certificate for a TLS {purpose}, "
                f"got one for {' and '.join(sorted(self.usages)) or 'no named use'}"
            )


def read_certificate(pem: str | bytes) -> PeerCertificate:
    """Reads the first certificate of a PEM text.

    **Guarantees**: Only ``IdentityError`` escapes, whatever the text is.

    Raises:
        IdentityError: There is none, or it cannot be read.
    """
    return _facts(load_chain(pem, "a certificate")[0])


def check_certificate(
    chain_pem: str | bytes, root_pem: str | bytes, tls_name: str, purpose: Purpose, now: datetime
) -> PeerCertificate:
    """Checks a certificate and its chain up to the root.

    **Guarantees**: Returns only for a certificate that bears exactly this name, is for this
    purpose, is valid now, and chains to one of the roots through authorities that are valid now,
    may issue, and whose name constraints and path lengths permit it.

    Args:
        chain_pem: The certificate, then the authorities between it and the root.
        root_pem: The roots that are trusted.
        tls_name: The DNS name that it must bear.
        purpose: What its holder does with it.
        now: The time at which it must be good.

    Raises:
        IdentityError: Names the first thing that is not so.

    Source: RFC 5280 section 6, by ``cryptography.x509.verification``.
    """
    leaf, *intermediates = load_chain(chain_pem, "a certificate chain")
    facts = _facts(leaf)
    facts.check_time(now)
    facts.check_use(tls_name, purpose)
    roots = load_chain(root_pem, "root certificates")
    builder = verification.PolicyBuilder().store(verification.Store(roots)).time(now)
    try:
        if purpose == "client":
            builder.build_client_verifier().verify(leaf, intermediates)
        else:
            builder.build_server_verifier(x509.DNSName(tls_name)).verify(leaf, intermediates)
    except (verification.VerificationError, *_UNREADABLE) as error:
        raise IdentityError(
            f"expected a certificate for {tls_name!r} that chains to the federation's root, "
            f"got one that does not: {ascii(str(error))[1:-1][:_MAX_QUOTED]}",
            hint="certificates of another federation or CA do not count here",
        ) from error
    return facts


def load_chain(pem: str | bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM text, in order; keys and other text between them are skipped.

    Raises:
        IdentityError: There is none, there are too many, or one cannot be read.
    """
    with _reading(what):
        data = pem.encode("ascii") if isinstance(pem, str) else pem
        if len(data) > _MAX_PEM_CHARACTERS:
            raise IdentityError(
                f"expected {what} of at most {_MAX_PEM_CHARACTERS} characters, got {len(data)}"
            )
        chain = x509.load_pem_x509_certificates(data)
    if len(chain) > _MAX_CHAIN:
        raise IdentityError(f"expected at most {_MAX_CHAIN} in {what}, got {len(chain)}")
    return chain


def write_chain(chain: list[x509.Certificate]) -> str:
    """The certificates as PEM, and nothing else."""
    return "".join(item.public_bytes(Encoding.PEM).decode("ascii") for item in chain)


def _facts(certificate: x509.Certificate) -> PeerCertificate:
    with _reading("a certificate"):
        extensions = certificate.extensions
        return PeerCertificate(
            dns_names=_dns_names(extensions),
            usages=_usages(extensions),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            fingerprint=sha256_hex(certificate.public_bytes(Encoding.DER)),
            public_key_digest=public_key_digest(certificate.public_key()),
        )


def _dns_names(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _usages(extensions: x509.Extensions) -> frozenset[Purpose]:
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(purpose for purpose, oid in USAGES.items() if oid in usage)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise IdentityError(f"expected {what} as PEM, got what cannot be read") from error
