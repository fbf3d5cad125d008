"""Certificates that our own CA would never issue, and those that it would, for the other side."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from privacy.identities.authority import Authority
from privacy.identities.certificates import load_chain
from privacy.identities.tls_keys import TlsKey

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass
class Forgery:
    """What a certificate shall say, whether or not it may."""

    dns_names: tuple[str, ...] = ()
    usages: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT,)
    now: datetime = NOW
    lifetime: timedelta = timedelta(days=7)
    path_length: int | None = None
    is_authority: bool = False
    key: TlsKey = field(default_factory=TlsKey.generate)

    def pem(self, issuer: TlsKey, issuer_pem: str) -> str:
        """The certificate, issued by ``issuer``; alone, without its chain."""
        (authority,) = load_chain(issuer_pem, "issuer")[:1]
        public = self.key.private.public_key()
        name = [x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "forged")]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(name if self.is_authority else []))
            .issuer_name(authority.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now)
            .not_valid_after(self.now + self.lifetime)
            .add_extension(x509.BasicConstraints(self.is_authority, self.path_length), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.private.public_key()),
                False,
            )
            .add_extension(_key_usage(self.is_authority), True)
        )
        if self.dns_names:
            names = [x509.DNSName(name) for name in self.dns_names]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), True)
        if self.usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usages), False)
        signed = builder.sign(issuer.private, hashes.SHA256())
        return signed.public_bytes(Encoding.PEM).decode()

    def chain(self, authority: Authority) -> str:
        """The certificate as the stolen key of an issuing authority would make it."""
        issuing = authority.issuing
        return self.pem(issuing.key, issuing.certificate_pem) + issuing.certificate_pem


def organisation_root(key: TlsKey, now: datetime = NOW) -> str:
    """The root certificate of an organisation's own CA, without name constraints."""
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "Hospital CA")])
    public = key.private.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(_key_usage(True), True)
    )
    return builder.sign(key.private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
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
