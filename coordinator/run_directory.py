"""The run directory, and the one process that writes to it.

run.json       configuration, digests, versions, the log's public key; written once
terms.json     each site's privacy constants; written once, so that every round has the same
record.jsonl   one line an event, appended; nothing is ever rewritten
audit.seed     what the commitment is to; secret until the audit
log.key        signs the record's lines; log.checkpoint is how far: see coordinator.run_log
summary.json   the result, written when the run ends or stops
checkpoints/   see core.checkpoints; sealed where the coordinator is a service
run.lock       held while a coordinator writes here
"""

import contextlib
import fcntl
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from coordinator.run_log import RunLog, log_key
from core.audit_seed import AuditSeed
from core.config import FederationConfig, config_digest
from core.digests import canonical_json
from core.errors import RunError
from core.run_record import (
    RECORD_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    TERMS_FILE,
    Line,
    RunRecord,
    SiteTerms,
    read_header,
    read_lines,
    read_terms,
)
from core.sealed_arrays import Seal
from privacy.transparency_log import log_lines

CHECKPOINTS: Final = "checkpoints"
_LOCK_FILE: Final = "run.lock"
_VERSIONS_OF: Final = ("cloister", "flwr", "numpy", "opacus", "torch")


@contextlib.contextmanager
def held_folder(folder: Path, *, hint: str) -> Iterator[None]:
    """Holds a run's folder, made where it is missing, against every other process.

    Raises:
        RunError: Another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("wb")
    except OSError as error:
        raise RunError(f"cannot write the run directory {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"expected {folder} to be free, got one that another process writes to", hint=hint
            ) from error
        yield


class RunDirectory:
    """A run directory that this process, and no other, writes to."""

    def __init__(
        self, folder: Path, header: Line, lines: list[Line], log: RunLog, seal: Seal | None
    ) -> None:
        self.folder = folder
        self.header = header
        self.seal = seal
        self._lines = lines
        self._log = log

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        folder: Path,
        config: FederationConfig,
        *,
        task_digest: str,
        run_id: str | None = None,
        seal: Seal | None = None,
    ) -> Iterator["RunDirectory"]:
        """Begins a run in ``folder``, or goes on with the one that is there.

        Guarantees:
            A directory belongs to one configuration and one task hash, and to one process at a
            time. After a crash at any moment it can be opened again: a torn last line is cut
            off, all other lines are as they were written.

        Args:
            folder: The directory; made where it is missing.
            config: The federation's configuration.
            task_digest: Digest of what the sites are asked.
            run_id: The id of a new run; ``None`` for a fresh random one.
            seal: Encrypts the checkpoints; ``None`` leaves them in the clear.

        Raises:
            RunError: Another run, another configuration or another process is there, or the
                directory cannot be written.
            LogTamperedError: The record is shorter than was signed, or another.
        """
        with held_folder(folder, hint="wait for it, or choose another --output"):
            yield cls._open_locked(folder, config, task_digest, run_id, seal)

    @classmethod
    def _open_locked(
        cls,
        folder: Path,
        config: FederationConfig,
        task_digest: str,
        run_id: str | None,
        seal: Seal | None,
    ) -> "RunDirectory":
        if not (folder / RUN_FILE).exists():
            _refuse_foreign(folder)
            key = log_key(folder, seal, new=True)
            header = _header(
                config,
                task_digest,
                run_id or secrets.token_hex(8),
                AuditSeed.of_folder(folder).commitment,
                key.public_hex,
            )
            write_json(folder / RUN_FILE, header)
            log = RunLog.open(folder, header["run_id"], key, [])
            return cls(folder, header, [], log, seal)
        header = read_header(folder / RUN_FILE)
        key = log_key(folder, seal)
        header.setdefault("log_key", None)  # of a run that began before there were logs
        for name, expected in (
            ("config_digest", config_digest(config)),
            ("task_digest", task_digest),
            ("run_id", run_id or header["run_id"]),
            ("audit_commitment", AuditSeed.of_folder(folder).commitment),
            ("log_key", key.public_hex),
        ):
            if header[name] != expected:
                raise RunError(
                    f"expected a run with {name} {expected} in {folder}, got {header[name]}",
                    hint="another configuration began here: choose another --output",
                )
        lines: list[Line] = []
        leaves: list[bytes] = []
        length = 0
        if (folder / RECORD_FILE).exists():
            lines, length = read_lines(folder / RECORD_FILE)
            leaves = log_lines((folder / RECORD_FILE).read_bytes()[:length])
        log = RunLog.open(folder, header["run_id"], key, leaves)
        if (folder / RECORD_FILE).exists():
            os.truncate(folder / RECORD_FILE, length)
        return cls(folder, header, lines, log, seal)

    @property
    def run_id(self) -> str:
        """The run's id, 16 hexadecimal digits."""
        run_id: str = self.header["run_id"]
        return run_id

    @property
    def checkpoints(self) -> Path:
        """The root of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def record(self) -> RunRecord:
        """What the record says so far."""
        return RunRecord(self.header, list(self._lines))

    def append(self, kind: str, *, sync: bool = True, **fields: Any) -> None:
        """Appends a line; it is on the disk when this returns, with all lines before it.

        Args:
            kind: The line's kind.
            sync: The log is signed up to here. False for a line that can be made again: a machine
                that stops may lose it, and a process that is killed does not. It is on the disk,
                and signed, with the next that is synced.
            fields: What else the line says.

        Raises:
            RunError: The disk cannot be written.
        """
        line = canonical_json({"kind": kind, **fields})
        path = self.folder / RECORD_FILE
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(line + b"\n") != len(line) + 1:
                    raise OSError(0, "the disk is full")
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot append to {path}: {error.strerror}") from error
        self._lines.append(json.loads(line))
        self._log.append(line)
        if sync:
            self._log.sign()

    def terms(self, compute: Callable[[], SiteTerms]) -> SiteTerms:
        """The run's privacy constants by site: computed when it begins, and kept.

        Calibration takes seconds a site, and another version of its libraries may round
        otherwise; a run that goes on uses what it began with.

        Raises:
            RunError: The file is damaged, or cannot be written.
        """
        path = self.folder / TERMS_FILE
        if not path.exists():
            terms = compute()
            write_json(path, {site: item and item.model_dump() for site, item in terms.items()})
            return terms
        return read_terms(self.folder)

    def write_summary(self, summary: Line) -> None:
        """Writes ``summary.json``, atomically."""
        write_json(self.folder / SUMMARY_FILE, summary)


def versions() -> dict[str, str]:
    """Versions of what decides a run's bits."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Run from a source tree that was never installed.
            found[name] = "not installed"
    return found


def write_json(path: Path, value: Line) -> None:
    """Writes a JSON file, wholly or not at all, and for people to read.

    Raises:
        RunError: The disk cannot be written.
    """
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        with temporary.open("wb") as file:
            text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
            file.write(text.encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _header(
    config: FederationConfig,
    task_digest: str,
    run_id: str,
    audit_commitment: str,
    log_public_key: str,
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "config": config.model_dump(mode="json"),
        "config_digest": config_digest(config),
        "task_digest": task_digest,
        "audit_commitment": audit_commitment,
        "log_key": log_public_key,
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _refuse_foreign(folder: Path) -> None:
    for name in (TERMS_FILE, RECORD_FILE, SUMMARY_FILE, CHECKPOINTS):
        if (folder / name).exists():
            raise RunError(
                f"expected {RUN_FILE} beside {name} in {folder}, got none",
                hint="this is not a run directory of ours: choose another --output",
            )
