"""An organisation with a CA of its own, which issues every certificate of a federation."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from privacy.identities.clock import utc_now
from privacy.identities.tls_keys import TlsKey
from privacy.signing import write_private_file
from tests.support.certificates import CLIENT, SERVER, Forgery, organisation_root

SERVER_NAME = "fl.hospital.example"
# Tests that took the time before the certificate was made find it valid.
_AGO = timedelta(minutes=1)


@dataclass
class Organisation:
    """A CA with a root and nothing between it and the leaves; its files lie in ``folder``."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = TlsKey.generate()
        self.root = organisation_root(self.key, utc_now())
        (self.folder / "ca.pem").write_text(self.root)

    def leaf(self, name: str, usage: x509.ObjectIdentifier, key: TlsKey) -> str:
        """A certificate for ``key``."""
        forgery = Forgery(dns_names=(name,), usages=(usage,), key=key, now=utc_now() - _AGO)
        return forgery.pem(self.key, self.root)

    def files(self, name: str) -> tuple[Path, Path]:
        """A new client's certificate and key, under the DNS name ``name``."""
        key, stem = TlsKey.generate(), self.folder / name
        certificate, private = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_text(self.leaf(name, CLIENT, key))
        write_private_file(private, key.private_pem())
        return certificate, private

    def overrides(self, name: str = SERVER_NAME, key: TlsKey | None = None) -> list[str]:
        """Settings of the coordinator: its certificate is one of this CA."""
        server = TlsKey.generate()
        (self.folder / "server.pem").write_text(self.leaf(name, SERVER, server))
        write_private_file(self.folder / "server.key", (key or server).private_pem())
        return [
            f"authority.ca={self.folder / 'ca.pem'}",
            f"authority.certificate={self.folder / 'server.pem'}",
            f"authority.key={self.folder / 'server.key'}",
            f"authority.server_name={SERVER_NAME}",
        ]
