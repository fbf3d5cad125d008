"""The ledger's three files: the database, the site's key and the witness of the last entry.

What is in them is judged in ``privacy.ledger_entries``. Here: that it lies on the disk before
anything goes on, and that one writer at a time, of all threads and processes, changes it.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from core.digests import canonical_json
from core.errors import LedgerError, LedgerRollbackError, LedgerTamperedError
from core.messages import LedgerHead
from privacy.ledger_entries import Entry, Row
from privacy.signing import SiteKey, write_synced

_TABLE: Final = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, "
    "body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)"
)
_INSERT: Final = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)"
# Another process may hold the lock while an accountant computes.
_BUSY_SECONDS: Final = 60.0
_PURPOSE: Final = "ledger-witness"
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class LedgerFiles:
    """Where the files lie: the key and the witness beside the database."""

    def __init__(self, path: Path) -> None:
        self.database = path
        self.key = path.with_name(path.name + ".key")
        self.witness = path.with_name(path.name + ".witness")

    def prepare(self, first_entry: Callable[[SiteKey], Entry], site: str) -> None:
        """Makes the files if there are none, and finishes making them if that was cut short.

        **Guarantees**: A new ledger starts only where neither a key nor a witness lies. A crash
        at any point leaves either nothing, or a ledger that the next call completes.

        Raises:
            LedgerRollbackError: The database is missing, but its key or its witness is there.
            LedgerError: The files cannot be written.
        """
        if all(os.path.lexists(path) for path in (self.database, self.key, self.witness)):
            return
        with io_errors(f"the ledger {self.database}"):
            self.database.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.database.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                if not os.path.lexists(self.database):
                    self._make(first_entry, site)
                # The database is named first: from then on this is a ledger.
                for path in (self.database, self.witness, self.key):
                    if not os.path.lexists(path) and os.path.lexists(_new(path)):
                        os.replace(_new(path), path)
                os.fsync(folder)
            finally:
                os.close(folder)

    def _make(self, first_entry: Callable[[SiteKey], Entry], site: str) -> None:
        for left in (self.key, self.witness):
            if os.path.lexists(left):
                raise LedgerRollbackError(
                    f"expected the ledger {self.database}, got only {left.name} of it",
                    hint="restore all files of the ledger; what was spent is not forgotten. A new "
                    "ledger takes a new path, and knows nothing of what this one spent",
                )
        key = SiteKey.generate()
        entry = first_entry(key)
        write_synced(_new(self.key), key.private_pem(), exclusive=False)
        write_synced(_new(self.witness), _witness(entry.head, site, key), exclusive=False)
        write_synced(_new(self.database), b"", exclusive=False)
        with closing(sqlite3.connect(_new(self.database), isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_TABLE)
            connection.execute(_INSERT, entry.row())


class LedgerStore:
    """An open ledger on disk. One object may be used by one thread at a time."""

    def __init__(self, files: LedgerFiles, site: str, key: SiteKey) -> None:
        self._files = files
        self._site = site
        self._key = key
        self._lock_file = -1
        uri = f"{files.database.as_uri()}?mode=rw"
        with io_errors(f"the ledger {files.database}"):
            self._identity = self._on_disk()
            self._connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
            )
            try:
                self._lock_file = os.open(files.key, os.O_RDONLY)
                # SQLite does not wait where two make a fresh database's WAL at once.
                with self.writing():
                    self._configure()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Closes the files."""
        self._connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the one writer's lock; the system frees it if the process dies."""
        with io_errors(f"the ledger {self._files.database}"):
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what the block inserts, durably; or nothing of it if the block raises."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def rows(self, start: int | None) -> list[Row]:
        """The rows from sequence ``start`` on; all of them for ``None``.

        Raises:
            LedgerRollbackError: The file was exchanged or deleted while it was open.
            LedgerTamperedError: The database is damaged.
        """
        with io_errors(f"the ledger {self._files.database}"):
            if self._on_disk() != self._identity:
                raise LedgerRollbackError(
                    f"expected the ledger {self._files.database} as it was opened, "
                    "got another file in its place"
                )
            if start is None:
                query = self._connection.execute("SELECT * FROM entries ORDER BY sequence")
            else:
                query = self._connection.execute(
                    "SELECT * FROM entries WHERE sequence >= ? ORDER BY sequence", (start,)
                )
            return query.fetchall()

    def insert(self, entry: Entry) -> None:
        """Inserts within a ``transaction``."""
        self._connection.execute(_INSERT, entry.row())

    def witness(self) -> LedgerHead:
        """The head that the witness file remembers.

        Raises:
            LedgerRollbackError: It is missing.
            LedgerTamperedError: It is not signed by the site's key for this site.
        """
        path = self._files.witness
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LedgerRollbackError(
                f"expected the ledger's witness {path}, got: {error.strerror}",
                hint="restore all files of the ledger from one moment",
            ) from error
        try:
            head = LedgerHead.model_validate(json.loads(data)["head"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise LedgerTamperedError(f"expected a witness in {path}, got junk") from error
        # Ed25519 is deterministic: a head has one witness file, and only the key makes it.
        if data != _witness(head, self._site, self._key):
            raise LedgerTamperedError(
                f"expected the witness {path} signed with the key of site {self._site!r}, "
                "got another content"
            )
        return head

    def write_witness(self, head: LedgerHead) -> None:
        """Replaces the witness atomically, and returns once it lies on the disk."""
        path = self._files.witness
        write_synced(_new(path), _witness(head, self._site, self._key), exclusive=False)
        os.replace(_new(path), path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _configure(self) -> None:
        self._connection.text_factory = bytes
        self._connection.execute("PRAGMA trusted_schema = OFF")
        mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != (b"wal",):
            raise LedgerError(f"expected SQLite's WAL for {self._files.database}, got {mode!r}")
        self._connection.execute("PRAGMA synchronous = FULL")
        # A trigger or a view could show other rows than those that are stored.
        schema = self._connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        if schema != [(b"table", b"entries", _TABLE.encode("ascii"))]:
            raise LedgerTamperedError(
                f"expected the one table of a ledger in {self._files.database}, got another schema"
            )

    def _on_disk(self) -> tuple[int, int]:
        status = os.stat(self._files.database)
        return status.st_dev, status.st_ino


@contextmanager
def io_errors(what: str) -> Iterator[None]:
    """Makes what the disk and SQLite say one of the ledger's errors."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            raise LedgerTamperedError(f"expected {what} to be whole, got: {error}") from error
        raise LedgerError(
            f"expected to read and write {what}, got: {error}",
            hint="nothing was released; check the disk's space and the file's owner",
        ) from error
    except OSError as error:
        raise LedgerError(
            f"expected to read and write {what}, got: {error.strerror or error}",
            hint="nothing was released; check the disk's space and the file's owner",
        ) from error


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _signed(head: LedgerHead, site: str) -> bytes:
    return canonical_json({"head": head.model_dump(), "site": site})


def _witness(head: LedgerHead, site: str, key: SiteKey) -> bytes:
    signature = key.sign(_PURPOSE, _signed(head, site))
    return canonical_json({"head": head.model_dump(), "site": site, "signature": signature})
