"""``cloister coordinator init``: a folder with all keys, wholly or not at all."""

import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from coordinator.service.access import Where, write_access
from coordinator.service.admin import Admin
from coordinator.service.admissions import Admissions
from coordinator.service.credentials import load_credentials, seal_issuing, seal_server_key
from coordinator.service.folder import CoordinatorFolder, split_address
from coordinator.service.store import Store
from core.config import FederationConfig
from core.config_files import config_of_overrides, load_config
from core.config_text import config_text
from core.coordinator_config import CoordinatorConfig
from core.errors import ServiceError
from privacy.identities.authority import create_authority
from privacy.identities.names import role_tls_name, server_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey, write_private_file
from privacy.vault import KEY_VARIABLE, Vault

FIRST_OPERATOR = "operator"


def create_folder(
    root: Path, overrides: Sequence[str], *, federation: Path, copy: bool, now: datetime
) -> CoordinatorFolder:
    """Makes the coordinator's folder.

    Args:
        root: Where; must be empty or missing.
        overrides: For ``coordinator.toml``.
        federation: The federation's file.
        copy: Take a copy of it, for a file whose paths are its own matter; else name it.
        now: The time.

    Raises:
        ServiceError: Something is there already, or the disk cannot be written.
        ConfigError: An override or the federation's file does not fit.
        IdentityError: The organisation's own certificate is not one that a site would take.
    """
    config = config_of_overrides(CoordinatorConfig, overrides, Path.cwd(), origin="--set")
    source = load_config(FederationConfig, federation)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ServiceError(
            f"expected no folder at {root} yet, or an empty one, got one that holds something",
            hint="choose another --folder",
        )
    unfinished = root.absolute().with_name(f".{root.absolute().name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        folder = CoordinatorFolder(unfinished)
        _write_configuration(folder, config, federation, copy=copy)
        _write_identity(folder, config, source.federation.name, now)
        unfinished.rename(root)
    except OSError as error:
        raise ServiceError(f"cannot make the folder {root}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return CoordinatorFolder(root)


def _write_configuration(
    folder: CoordinatorFolder, config: CoordinatorConfig, federation: Path, *, copy: bool
) -> None:
    named = federation.absolute()
    if copy:
        shutil.copyfile(federation, folder.federation_file)
        named = Path(folder.federation_file.name)
    written = config.model_copy(update={"federation": named})
    folder.config_file.write_text(config_text(written), encoding="utf-8")


def _write_identity(
    folder: CoordinatorFolder, config: CoordinatorConfig, federation: str, now: datetime
) -> None:
    for path in (folder.authority, folder.offline, folder.runs):
        path.mkdir(mode=0o700)
    vault = Vault.load(None) if KEY_VARIABLE in os.environ else Vault.create(folder.vault_key)
    admin_key = SiteKey.generate()
    write_private_file(folder.admin_key, admin_key.private_pem())
    folder.admin_public_key.write_text(admin_key.public_hex + "\n", encoding="ascii")
    Store.create(folder.state)
    with folder.store() as store:
        admin = Admin(Admissions(store, vault), admin_key, federation)
        if config.authority.ca is None:
            _write_authority(folder, federation, vault, now)
            _write_operator(folder, config, federation, vault, now)
            tls_name = role_tls_name(federation, FIRST_OPERATOR, "operator")
            admin.grant(FIRST_OPERATOR, "operator", tls_name, now)
        else:
            load_credentials(folder, config.authority, federation, vault).chain(now)
            admin.renew(now)


def _write_authority(
    folder: CoordinatorFolder, federation: str, vault: Vault, now: datetime
) -> None:
    authority = create_authority(federation, now)
    write_private_file(folder.root_key, authority.root_key.private_pem())
    folder.root_certificate.write_text(authority.root_pem, encoding="ascii")
    write_private_file(folder.issuing_authority, seal_issuing(authority.issuing, vault))
    write_private_file(folder.server_key, seal_server_key(TlsKey.generate(), vault))


def _write_operator(
    folder: CoordinatorFolder,
    config: CoordinatorConfig,
    federation: str,
    vault: Vault,
    now: datetime,
) -> None:
    credentials = load_credentials(folder, config.authority, federation, vault)
    key = TlsKey.generate()
    _, port = split_address(config.listen.address)
    where = Where(
        federation=federation,
        name=FIRST_OPERATOR,
        address=f"{config.listen.public_host}:{port}",
        server_name=server_tls_name(federation),
    )
    chain = credentials.issue_client(
        key.csr_pem(), role_tls_name(federation, FIRST_OPERATOR, "operator"), now
    )
    write_access(folder.operator, where, key=key, chain_pem=chain, root_pem=credentials.root_pem)
