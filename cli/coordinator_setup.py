"""`cloister coordinator init|invite|approve|revoke|grant|renew`: what works on the folder."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cli.arguments import EMBEDDED
from coordinator.service.access import KEY_FILE, Where, write_access
from coordinator.service.admin import Admin, Reachable, invite
from coordinator.service.admissions import Admissions
from coordinator.service.creation import create_folder
from coordinator.service.credentials import (
    Credentials,
    load_credentials,
    read_issued,
    replace_issuing,
)
from coordinator.service.folder import CoordinatorFolder
from core.config import FederationConfig
from core.coordinator_config import CoordinatorConfig
from core.errors import ConfigError, ServiceError
from core.messages import encode
from privacy.identities.authority import create_issuing_authority
from privacy.identities.clock import utc_now
from privacy.identities.names import role_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from privacy.vault import Vault


def run_init(options: argparse.Namespace) -> int:
    """Makes the folder."""
    folder = create_folder(
        options.folder,
        options.overrides,
        federation=options.config or EMBEDDED,
        copy=options.config is None,
        now=utc_now(),
    )
    sys.stdout.write(
        f"made {folder.root}\n"
        f"Move {folder.offline} to a medium that you keep offline; approve, revoke, grant and "
        "renew then take it as --admin-key FILE.\n"
        f"Next: cloister coordinator start --folder {folder.root}\n"
    )
    return 0


def run_invite(options: argparse.Namespace) -> int:
    """Writes an invitation."""
    with _opened(options.folder) as office:
        folder, credentials = office.folder, office.credentials
        session_address, enrolment_address = folder.addresses(office.config)
        coordinator = Reachable(
            address=session_address,
            enrolment_address=enrolment_address,
            server_name=credentials.server_name,
            root_pem=credentials.root_pem,
            admin_key=folder.admin_public(),
            own_authority=credentials.issuing is not None,
        )
        invitation = invite(
            office.admissions, office.federation, options.site, coordinator, utc_now()
        )
    data = encode(invitation)
    if options.output is None:
        sys.stdout.write(data.decode("ascii") + "\n")
    else:
        _write_secret(options.output, data)
        sys.stdout.write(
            f"wrote {options.output}: hand it to {options.site} on a channel that both trust; "
            f"it is good once, until {invitation.expires}\n"
        )
    return 0


def run_approve(options: argparse.Namespace) -> int:
    """Admits a site."""
    with _opened(options.folder) as office:
        admin = _admin(options, office)
        admin.approve(options.site, options.fingerprint, utc_now())
    sys.stdout.write(f"{options.site} belongs to the federation\n")
    return 0


def run_revoke(options: argparse.Namespace) -> int:
    """Shuts somebody out."""
    with _opened(options.folder) as office:
        admin = _admin(options, office)
        if options.operator:
            admin.revoke_operator(options.name, utc_now())
        else:
            admin.revoke_site(options.name, utc_now())
    sys.stdout.write(f"{options.name} is shut out\n")
    return 0


def run_grant(options: argparse.Namespace) -> int:
    """Lets somebody watch, or watch and steer."""
    target = options.output or options.folder / "operators" / options.name
    now = utc_now()
    with _opened(options.folder) as office:
        admin, credentials = _admin(options, office), office.credentials
        where = Where(
            federation=office.federation.federation.name,
            name=options.name,
            address=office.folder.addresses(office.config)[0],
            server_name=credentials.server_name,
        )
        key, chain, tls_name = _operator_certificate(options, office, target, now)
        # The certificate first: whoever is listed without one can be granted again.
        write_access(target, where, key=key, chain_pem=chain, root_pem=credentials.root_pem)
        admin.grant(options.name, options.role, tls_name, now)
    missing = "" if (target / KEY_FILE).exists() else f"; its key goes to {target / KEY_FILE}"
    sys.stdout.write(f"{options.name} is {options.role}: --identity {target}{missing}\n")
    return 0


def run_renew(options: argparse.Namespace) -> int:
    """Signs the roster again, and makes the next issuing authority where asked."""
    with _opened(options.folder) as office:
        admin, now = _admin(options, office), utc_now()
        if options.root_key is not None:
            if office.credentials.issuing is None:
                raise ConfigError("expected --root-key only with the federation's own CA")
            name = office.federation.federation.name
            root_key, root_pem = TlsKey.load(options.root_key), office.credentials.root_pem
            issuing = create_issuing_authority(name, root_key, root_pem, now)
            replace_issuing(office.folder, issuing, office.vault)
            sys.stdout.write("made the next issuing authority: restart the service\n")
        admin.renew(now)
    sys.stdout.write("signed the roster\n")
    return 0


@dataclass(frozen=True)
class _Office:
    """The folder, opened."""

    folder: CoordinatorFolder
    config: CoordinatorConfig
    federation: FederationConfig
    vault: Vault
    admissions: Admissions
    credentials: Credentials


@contextmanager
def _opened(root: Path) -> Iterator[_Office]:
    folder = CoordinatorFolder(root)
    config = folder.config()
    federation, vault = folder.federation(config), folder.vault()
    name = federation.federation.name
    credentials = load_credentials(folder, config.authority, name, vault)
    with folder.store() as store:
        admissions = Admissions(store, vault)
        yield _Office(folder, config, federation, vault, admissions, credentials)


def _admin(options: argparse.Namespace, office: _Office) -> Admin:
    path = options.admin_key or office.folder.admin_key
    if not os.path.lexists(path):
        raise ServiceError(
            f"expected the admin's key at {path}, got none",
            hint="--admin-key FILE names it on the offline medium",
        )
    key = SiteKey.load(path)
    expected = office.folder.admin_public()
    if key.public_hex != expected:
        raise ServiceError(
            f"expected the admin's key {expected[:16]}... in {path}, got {key.public_hex[:16]}..."
        )
    return Admin(office.admissions, key, office.federation.federation.name)


def _operator_certificate(
    options: argparse.Namespace, office: _Office, target: Path, now: datetime
) -> tuple[TlsKey | None, str, str]:
    """A new key where none is given, the certificate, and the name in it."""
    credentials = office.credentials
    if options.certificate is not None:
        chain, tls_name = read_issued(options.certificate, credentials, now)
        return None, chain, tls_name
    tls_name = role_tls_name(office.federation.federation.name, options.name, options.role)
    if options.csr is not None:
        try:
            request = options.csr.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"expected a certificate request at {options.csr}") from error
        return None, credentials.issue_client(request, tls_name, now), tls_name
    present = target / KEY_FILE
    if os.path.lexists(present):  # granted before: a new certificate for the same key
        return (
            None,
            credentials.issue_client(TlsKey.load(present).csr_pem(), tls_name, now),
            tls_name,
        )
    key = TlsKey.generate()
    return key, credentials.issue_client(key.csr_pem(), tls_name, now), tls_name


def _write_secret(path: Path, data: bytes) -> None:
    """A file with a token in it: only its owner may read it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data + b"\n")
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}") from error
