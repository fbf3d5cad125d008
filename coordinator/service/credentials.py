"""What the service shows its peers and whom it believes: its certificate, its roots, its CA."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from coordinator.service.folder import CoordinatorFolder, read_text
from core.coordinator_config import AuthoritySection
from core.digests import canonical_json
from core.errors import IdentityError, ServiceError, SiteKeyError
from core.sealed_arrays import Seal
from privacy.identities.authority import IssuingAuthority
from privacy.identities.certificates import check_certificate, read_certificate
from privacy.identities.names import server_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.signing import write_synced

_ISSUING = "authority/issuing"
_SERVER_KEY = "authority/server-key"


@dataclass(frozen=True)
class Credentials:
    """Of one service."""

    root_pem: str
    """Whom sites and operators chain to, and what they trust."""
    server_name: str
    """The name in the server's certificate."""
    server_key: TlsKey
    issuing: IssuingAuthority | None
    """``None`` where the organisation's own CA issues."""
    server_chain: str
    """The server's certificate from that CA; empty where ours issues."""
    certificate_hours: int

    def chain(self, now: datetime) -> str:
        """The server's certificate and the authorities above it: a fresh one, where ours issues.

        Raises:
            IdentityError: It is not one that a site would take.
        """
        if self.issuing is None:
            chain = self.server_chain
        else:
            chain = self.issuing.issue(
                self.server_key, self.server_name, "server", self.certificate_hours, now
            )
        facts = check_certificate(chain, self.root_pem, self.server_name, "server", now)
        if facts.public_key_digest != self.server_key.public_key_digest:
            raise SiteKeyError(
                "expected the private key of the server's certificate, got another key",
                hint="authority.certificate and authority.key belong together",
            )
        return chain

    def issue_client(self, csr_pem: str, tls_name: str, now: datetime) -> str:
        """A certificate for a site, an operator or an auditor.

        Raises:
            IdentityError: The organisation's own CA issues, or the request proves nothing.
        """
        if self.issuing is None:
            raise IdentityError(
                "expected certificates of the federation's own CA, got the organisation's",
                hint="have the organisation's CA issue the certificate",
            )
        return self.issuing.issue(csr_pem, tls_name, "client", self.certificate_hours, now)


def load_credentials(
    folder: CoordinatorFolder, authority: AuthoritySection, federation: str, vault: Seal
) -> Credentials:
    """Opens the keys of the folder, or the organisation's own.

    Raises:
        ServiceError: A file is missing.
        VaultError: The vault's key is another one.
        IdentityError: Key and certificate do not fit each other.
        SiteKeyError: A key file is not safe.
    """
    own = (authority.ca, authority.certificate, authority.key, authority.server_name)
    match own:
        case (None, None, None, None):
            return Credentials(
                root_pem=read_text(folder.root_certificate),
                server_name=server_tls_name(federation),
                server_key=open_server_key(folder, vault),
                issuing=open_issuing(folder, federation, vault),
                server_chain="",
                certificate_hours=authority.certificate_hours,
            )
        case (ca, certificate, key, server_name) if ca and certificate and key and server_name:
            return Credentials(
                root_pem=read_text(ca),
                server_name=server_name,
                server_key=TlsKey.load(key),
                issuing=None,
                server_chain=read_text(certificate),
                certificate_hours=authority.certificate_hours,
            )
    raise RuntimeError("AuthoritySection lets no half of these through")


def seal_issuing(issuing: IssuingAuthority, vault: Seal) -> bytes:
    """The issuing authority as one sealed file, so that key and certificate change together."""
    document = {
        "key": issuing.key.private_pem().decode("ascii"),
        "certificate": issuing.certificate_pem,
    }
    return vault.seal(_ISSUING, canonical_json(document))


def open_issuing(folder: CoordinatorFolder, federation: str, vault: Seal) -> IssuingAuthority:
    """Reads what ``seal_issuing`` made."""
    document = json.loads(vault.open(_ISSUING, _read(folder.issuing_authority)))
    key = TlsKey.from_pem(document["key"].encode("ascii"), origin=str(folder.issuing_authority))
    return IssuingAuthority(federation, key, document["certificate"])


def replace_issuing(folder: CoordinatorFolder, issuing: IssuingAuthority, vault: Seal) -> None:
    """Puts the next issuing authority in the present one's place, wholly or not at all.

    Raises:
        ServiceError: The disk cannot be written.
    """
    path = folder.issuing_authority
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        write_synced(temporary, seal_issuing(issuing, vault), exclusive=False)
        temporary.replace(path)
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}") from error


def read_issued(path: Path, credentials: Credentials, now: datetime) -> tuple[str, str]:
    """A certificate that the organisation's own CA issued to an operator or auditor.

    Returns:
        The certificate with its chain, and the one name that it bears.

    Raises:
        ServiceError: It cannot be read.
        IdentityError: It bears no single name, or is not one that the service would take.
    """
    chain = read_text(path)
    names = read_certificate(chain).dns_names
    if credentials.issuing is not None or len(names) != 1:
        raise IdentityError(
            f"expected a certificate of the organisation's own CA with one name in {path}, "
            f"got {'one beside our own CA' if credentials.issuing else f'{len(names)} names'}",
            hint="without --certificate, our own CA issues one",
        )
    check_certificate(chain, credentials.root_pem, names[0], "client", now)
    return chain, names[0]


def seal_server_key(key: TlsKey, vault: Seal) -> bytes:
    """The server's key, sealed."""
    return vault.seal(_SERVER_KEY, key.private_pem())


def open_server_key(folder: CoordinatorFolder, vault: Seal) -> TlsKey:
    """Reads what ``seal_server_key`` made."""
    pem = vault.open(_SERVER_KEY, _read(folder.server_key))
    return TlsKey.from_pem(pem, origin=str(folder.server_key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServiceError(f"expected {path}, got: {error.strerror}") from error
