"""The coordinator's database: one SQLite file that the service and the admin's commands share.

What is in its tables is the business of ``admissions`` and ``run_queue``. Here: that what was
committed lies on the disk, and that of several writers one comes after the other.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from core.errors import ServiceError

SCHEMA_VERSION: Final = 1
_TABLES: Final = (
    "CREATE TABLE invitations (number INTEGER PRIMARY KEY, site TEXT NOT NULL, "
    "expires TEXT NOT NULL, used INTEGER NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE requests (number INTEGER PRIMARY KEY, site TEXT NOT NULL, "
    "state TEXT NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE rosters (epoch INTEGER PRIMARY KEY, document BLOB NOT NULL)",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, "
    "name TEXT NOT NULL, config TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, "
    "server_round INTEGER NOT NULL, num_rounds INTEGER NOT NULL, weights_digest TEXT NOT NULL, "
    "refusals TEXT NOT NULL)",
)
# Another process may hold the lock while it signs a roster.
_BUSY_SECONDS: Final = 20.0

Row = Mapping[str, Any]


class Store:
    """The open database. Safe to share between threads; use it as a context."""

    def __init__(self, path: Path) -> None:
        """Opens the database that ``Store.create`` made.

        Raises:
            ServiceError: It is missing, damaged or of another version.
        """
        self._path = path
        self._lock = threading.RLock()
        with self._errors():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_SECONDS,
                check_same_thread=False,
            )
            try:
                self._configure()
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def create(cls, path: Path) -> None:
        """Makes an empty database that only its owner may read.

        Raises:
            ServiceError: There is one, or the disk cannot be written.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA journal_mode = WAL")
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise ServiceError(f"cannot make the state {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what the block does, durably; or nothing of it if the block raises.

        Guarantees:
            Blocks of all threads and processes run one after another, so what a block read stays
            true until it ends.
        """
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows that a query finds."""
        with self._lock, self._errors():
            cursor = self._connection.execute(query, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def write(self, statement: str, values: Sequence[Any]) -> int:
        """Changes rows within a ``transaction``; returns how many."""
        with self._lock, self._errors():
            return self._connection.execute(statement, values).rowcount

    def _configure(self) -> None:
        self._connection.execute("PRAGMA trusted_schema = OFF")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise ServiceError(
                f"expected schema version {SCHEMA_VERSION} in {self._path}, got {version}",
                hint="another version of Cloister wrote it",
            )
        (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ServiceError(f"expected SQLite's WAL for {self._path}, got {mode!r}")
        self._connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ServiceError(
                f"cannot read or write the state {self._path}: {error}",
                hint="is there room on the disk, and may this user write there?",
            ) from error
