"""How an operator's commands reach the service: a folder with a key, a certificate and where to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from coordinator.run_directory import write_json
from coordinator.service.folder import read_text
from core.errors import ServiceError
from privacy.identities.tls_keys import TlsKey
from privacy.signing import write_private_file

KEY_FILE: Final = "operator.key"
CERTIFICATE_FILE: Final = "operator.pem"
ROOT_FILE: Final = "root.pem"
WHERE_FILE: Final = "operator.json"


@dataclass(frozen=True)
class Where:
    """Whom the folder belongs to, and which service it is for."""

    federation: str
    name: str
    address: str
    server_name: str


@dataclass(frozen=True)
class Access:
    """All it takes to ask the service."""

    where: Where
    key: TlsKey
    chain_pem: str
    root_pem: str

    @classmethod
    def load(cls, folder: Path) -> "Access":
        """Reads an operator's folder.

        Raises:
            ServiceError: A file is missing or something else.
            SiteKeyError: The key file is not safe.
        """
        try:
            where = Where(**json.loads(read_text(folder / WHERE_FILE)))
        except (ValueError, TypeError) as error:
            raise ServiceError(f"expected an operator's file {folder / WHERE_FILE}") from error
        return cls(
            where=where,
            key=TlsKey.load(folder / KEY_FILE),
            chain_pem=read_text(folder / CERTIFICATE_FILE),
            root_pem=read_text(folder / ROOT_FILE),
        )


def write_access(
    folder: Path, where: Where, *, key: TlsKey | None, chain_pem: str, root_pem: str
) -> None:
    """Makes an operator's folder, or renews the certificate in it.

    Args:
        folder: Made where it is missing.
        where: The service.
        key: A new key to write; ``None`` where the key lies there or elsewhere.
        chain_pem: The certificate.
        root_pem: Whom the service's certificate chains to.

    Raises:
        ServiceError: The disk cannot be written.
        SiteKeyError: A key is there already.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if key is not None:
            write_private_file(folder / KEY_FILE, key.private_pem())
        replace_text(folder / CERTIFICATE_FILE, chain_pem)
        replace_text(folder / ROOT_FILE, root_pem)
    except OSError as error:
        raise ServiceError(f"cannot write {folder}: {error.strerror}") from error
    write_json(folder / WHERE_FILE, asdict(where))


def replace_text(path: Path, text: str) -> None:
    """Writes a public file, wholly or not at all."""
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)
