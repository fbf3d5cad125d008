"""The coordinator's folder: where everything lies, and how it is opened.

coordinator.toml   its own configuration
federation.toml    the federation's, unless coordinator.toml names another file
vault.key          opens what is sealed; not there where the environment holds the key
authority/         the root certificate, the sealed issuing authority and server key, and the
                   admin's public key
offline/           the root key and the admin's key: to be moved to an offline medium
operator/          the first operator's key and certificate, for run, status and stop
state.sqlite       invitations, requests, rosters, runs; see ``store``
runs/<run id>/     a run directory each, its checkpoints sealed
service.json       where the running service listens
service.lock       held while it runs
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from coordinator.run_directory import write_json
from coordinator.service.store import Store
from core.config import FederationConfig
from core.config_files import load_config
from core.coordinator_config import CoordinatorConfig
from core.errors import ServiceError
from privacy.vault import Vault


@dataclass(frozen=True)
class Ports:
    """Where a running service listens; they differ from the configuration's where that says 0."""

    pid: int
    sessions: int
    enrolment: int
    metrics: int


class CoordinatorFolder:
    """Paths, and what lies there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_file = root / "coordinator.toml"
        self.federation_file = root / "federation.toml"
        self.vault_key = root / "vault.key"
        self.authority = root / "authority"
        self.root_certificate = self.authority / "root.pem"
        self.issuing_authority = self.authority / "issuing.sealed"
        self.server_key = self.authority / "server.key.sealed"
        self.admin_public_key = self.authority / "admin.pub"
        self.offline = root / "offline"
        self.root_key = self.offline / "root.key"
        self.admin_key = self.offline / "admin.key"
        self.operator = root / "operator"
        self.state = root / "state.sqlite"
        self.runs = root / "runs"
        self.service_file = root / "service.json"

    def config(self, overrides: Sequence[str] = ()) -> CoordinatorConfig:
        """The coordinator's configuration.

        Raises:
            ServiceError: There is no coordinator's folder.
            ConfigError: The file does not fit.
        """
        if not self.config_file.is_file():
            raise ServiceError(
                f"expected a coordinator's folder at {self.root}, got none",
                hint=f"cloister coordinator init --folder {self.root}",
            )
        return load_config(CoordinatorConfig, self.config_file, overrides)

    def federation(
        self, config: CoordinatorConfig, overrides: Sequence[str] = ()
    ) -> FederationConfig:
        """The federation's file."""
        return load_config(FederationConfig, config.federation, overrides)

    def vault(self) -> Vault:
        """Opens what is sealed here; see ``Vault.load``."""
        return Vault.load(self.vault_key)

    def store(self) -> Store:
        """The open database."""
        return Store(self.state)

    def admin_public(self) -> str:
        """The key that signs rosters."""
        return read_text(self.admin_public_key).strip()

    def run(self, run_id: str) -> Path:
        """A run's directory."""
        return self.runs / run_id

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one running service.

        Raises:
            ServiceError: Another one runs here, others could write here, or this user cannot.
        """
        self._check_closed()
        try:
            file = (self.root / "service.lock").open("wb")
        except OSError as error:
            raise ServiceError(f"cannot write in {self.root}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ServiceError(
                    f"expected no service in {self.root} yet, got one that runs",
                    hint="`cloister coordinator status` asks it; `stop` ends it",
                ) from error
            yield

    def _check_closed(self) -> None:
        """Who can write here can put another admin's public key in place of the admin's."""
        for folder in (self.root, self.authority):
            try:
                status = folder.stat()
            except OSError as error:
                raise ServiceError(f"expected {folder}, got: {error.strerror}") from error
            mode = stat.S_IMODE(status.st_mode)
            if mode & 0o022 or status.st_uid != os.geteuid():
                raise ServiceError(
                    f"expected {folder} to belong to user {os.geteuid()} and nobody else to write "
                    f"there, got user {status.st_uid} and mode {mode:04o}",
                    hint=f"chmod 700 {folder}; if others could write there, look at what they did",
                )

    @contextlib.contextmanager
    def listening(self, ports: Ports) -> Iterator[None]:
        """Says where the service listens, for as long as the block lasts."""
        write_json(self.service_file, asdict(ports))
        try:
            yield
        finally:
            self.service_file.unlink(missing_ok=True)

    def addresses(self, config: CoordinatorConfig) -> tuple[str, str]:
        """Where sites and operators reach sessions, and enrolment.

        Raises:
            ServiceError: The configuration leaves a port open, and no service runs that chose it.
        """
        ports, listen = self.ports(), config.listen
        addresses = []
        for address, chosen in (
            (listen.address, ports and ports.sessions),
            (listen.enrolment_address, ports and ports.enrolment),
        ):
            port = split_address(address)[1] or chosen
            if not port:
                raise ServiceError(
                    f"expected a port in {address}, or a running service that chose one, got none",
                    hint="start the service first, or set a port in coordinator.toml",
                )
            addresses.append(f"{listen.public_host}:{port}")
        return addresses[0], addresses[1]

    def ports(self) -> Ports | None:
        """Where the running service says it listens; ``None`` where none does."""
        try:
            return Ports(**json.loads(self.service_file.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


def read_text(path: Path) -> str:
    """A file of the folder, such as a certificate.

    Raises:
        ServiceError: It cannot be read.
    """
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ServiceError(f"expected {path}, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServiceError(f"expected ASCII in {path}, got something else") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address."""
    host, _, port = address.rpartition(":")
    return host, int(port)
