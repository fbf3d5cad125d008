"""A federation's own CA: a root that is kept offline, and an authority that issues for days.

Whatever happens to the issuing key, it can make no certificate that anyone would take outside
the federation's own domain: both authorities are constrained to it.
"""

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.errors import IdentityError
from privacy.identities.certificates import USAGES, Purpose, load_chain, write_chain
from privacy.identities.clock import CLOCK_ALLOWANCE, write_timestamp
from privacy.identities.names import federation_domain, server_tls_name
from privacy.identities.tls_keys import TlsKey, TlsPublicKey, read_csr

ROOT_LIFETIME: Final = timedelta(days=3650)
ISSUING_LIFETIME: Final = timedelta(days=365)
_MAX_HOURS: Final = 24 * 90


class IssuingAuthority:
    """Issues short-lived certificates under a federation's domain.

    **Guarantees**: A certificate that it issued bears one DNS name, under the federation's
    domain; is for clients or for the server, never for both; is no authority itself; ends no
    later than the authority; and takes from a request nothing but the public key.

    Source: RFC 5280 section 4.2.
    """

    def __init__(self, federation: str, key: TlsKey, certificate_pem: str) -> None:
        """Takes a key and its certificate, once it is sure that they fit each other.

        Raises:
            IdentityError: The certificate is another key's, or not this federation's authority.
        """
        (certificate,) = load_chain(certificate_pem, "the issuing authority's certificate")[:1]
        if certificate.public_key() != key.private.public_key():
            raise IdentityError("expected the issuing authority's certificate, got another key's")
        if _constraint(certificate) != federation_domain(federation):
            raise IdentityError(
                f"expected an authority constrained to {federation_domain(federation)}, "
                f"got one for {_constraint(certificate) or 'any name'}"
            )
        self._federation = federation
        self.key = key
        self._certificate = certificate

    @property
    def certificate_pem(self) -> str:
        """Its certificate."""
        return write_chain([self._certificate])

    @property
    def not_after(self) -> datetime:
        """When it ends; a new one then takes the root key."""
        return self._certificate.not_valid_after_utc

    def issue(
        self, request: str | TlsKey, tls_name: str, purpose: Purpose, hours: int, now: datetime
    ) -> str:
        """A certificate for a key.

        Args:
            request: A PKCS #10 request, or the key itself where it is ours (the server's).
            tls_name: The one DNS name, as ``privacy.identities.names`` gives it.
            purpose: What the holder does with it.
            hours: How long it is good for, at most 90 days.
            now: It is valid from ``CLOCK_ALLOWANCE`` before this.

        Returns:
            The certificate and this authority's, as PEM.

        Raises:
            IdentityError: The request cannot be read or proves nothing, the name is not one that
                this authority gives for this purpose, or the authority is not valid now.
        """
        public = read_csr(request) if isinstance(request, str) else request.private.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise IdentityError("expected a request for an elliptic curve key, got an RSA key")
        self._check_name(tls_name, purpose)
        if not 1 <= hours <= _MAX_HOURS:
            raise IdentityError(f"expected a lifetime of 1 to {_MAX_HOURS} hours, got {hours}")
        if not self._certificate.not_valid_before_utc <= now < self.not_after:
            raise IdentityError(
                f"expected an issuing authority that is valid at {write_timestamp(now)}, "
                f"got one until {write_timestamp(self.not_after)}",
                hint="check the clock; after a year the root key makes the next authority",
            )
        end = min(now + timedelta(hours=hours), self.not_after)
        builder = _builder(x509.Name([]), self._certificate.subject, public, now, end)
        names = x509.SubjectAlternativeName([x509.DNSName(tls_name)])
        builder = (
            # Critical, since the subject is empty: RFC 5280 section 4.2.1.6.
            builder.add_extension(names, critical=True)
            .add_extension(x509.ExtendedKeyUsage([USAGES[purpose]]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        )
        leaf = _sign(builder, self.key, is_authority=False)
        return write_chain([leaf, self._certificate])

    def _check_name(self, tls_name: str, purpose: Purpose) -> None:
        domain = federation_domain(self._federation)
        is_server = tls_name == server_tls_name(self._federation)
        if not tls_name.endswith(f".{domain}") or is_server != (purpose == "server"):
            wanted = server_tls_name(self._federation) if purpose == "server" else f"*.{domain}"
            raise IdentityError(
                f"expected a {purpose}'s name like {wanted}, got {tls_name!r}",
                hint="this authority gives one name to the server and all others to clients",
            )

    def __repr__(self) -> str:
        return f"IssuingAuthority({self._federation!r}, key=***)"


@dataclass(frozen=True)
class Authority:
    """A federation's two-tier CA, as it is made."""

    root_key: TlsKey
    """To be kept offline; signs the next issuing authority."""
    root_pem: str
    """What all trust."""
    issuing: IssuingAuthority
    """What issues from day to day."""


def create_authority(federation: str, now: datetime) -> Authority:
    """A new root of ten years, and an issuing authority of one."""
    key = TlsKey.generate()
    name = _name(federation, "Cloister root")
    builder = _builder(name, name, key.private.public_key(), now, now + ROOT_LIFETIME)
    root = _sign_authority(builder, key, federation, path_length=1)
    root_pem = write_chain([root])
    return Authority(key, root_pem, create_issuing_authority(federation, key, root_pem, now))


def create_issuing_authority(
    federation: str, root_key: TlsKey, root_pem: str, now: datetime
) -> IssuingAuthority:
    """The next issuing authority, with a new key.

    Raises:
        IdentityError: The root's key and certificate do not fit each other.
    """
    (root,) = load_chain(root_pem, "the root certificate")[:1]
    if root.public_key() != root_key.private.public_key():
        raise IdentityError("expected the key of the root certificate, got another one")
    key = TlsKey.generate()
    end = min(now + ISSUING_LIFETIME, root.not_valid_after_utc)
    name = _name(federation, "Cloister issuing authority")
    builder = _builder(name, root.subject, key.private.public_key(), now, end)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(USAGES.values())), critical=False)
    certificate = _sign_authority(builder, root_key, federation, path_length=0)
    return IssuingAuthority(federation, key, write_chain([certificate]))


def _name(federation: str, role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, role),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: TlsPublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_ALLOWANCE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign_authority(
    builder: x509.CertificateBuilder, key: TlsKey, federation: str, *, path_length: int
) -> x509.Certificate:
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(federation_domain(federation))],
        # A constraint on one kind of name leaves the other kinds free.
        excluded_subtrees=[
            x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
            x509.IPAddress(ipaddress.ip_network("::/0")),
        ],
    )
    limits = x509.BasicConstraints(ca=True, path_length=path_length)
    builder = builder.add_extension(limits, critical=True)
    return _sign(builder.add_extension(constraints, critical=True), key, is_authority=True)


def _sign(builder: x509.CertificateBuilder, key: TlsKey, *, is_authority: bool) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.private.public_key())
    builder = builder.add_extension(usage, critical=True).add_extension(issuer, critical=False)
    return builder.sign(key.private, hashes.SHA256())


def _constraint(certificate: x509.Certificate) -> str | None:
    """The one domain that an authority may issue under."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None
    names = [item.value for item in found.permitted_subtrees or [] if _is_dns(item)]
    return names[0] if len(names) == 1 else None


def _is_dns(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.DNSName)
