"""The seed of a run's audit: drawn and committed to before the first round, shown after the last.

Which records are held out and which canaries are there follows from it, so that nobody can choose
them after having seen the model.
"""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Final

import numpy as np

from core.errors import AuditError

SEED_FILE: Final = "audit.seed"
_SEED: Final = re.compile(r"[0-9a-f]{64}")


class AuditSeed:
    """32 secret bytes.

    **Guarantees**: Not in its ``repr``. Different purposes give streams that are independent as
    far as HMAC-SHA256 is a pseudo-random function.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise AuditError(f"expected a seed of 32 bytes, got {len(seed)}")
        self._seed = seed

    @classmethod
    def of_folder(cls, folder: Path) -> "AuditSeed":
        """The seed in a run's folder; drawn where there is none yet.

        Raises:
            AuditError: The file holds something else, or cannot be read or written.
        """
        path = folder / SEED_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _write(path, secrets.token_hex(32))
        except OSError as error:
            raise AuditError(f"cannot keep the audit's seed in {path}: {error.strerror}") from error
        return cls.existing(folder)

    @classmethod
    def existing(cls, folder: Path) -> "AuditSeed":
        """The seed in the folder of a run that has begun; never drawn anew.

        Raises:
            AuditError: The file is missing, cannot be read, or holds something else.
        """
        path = folder / SEED_FILE
        try:
            text = path.read_bytes().decode("ascii", errors="replace")
        except OSError as error:
            raise AuditError(
                f"expected the audit's seed in {path}, got: {error.strerror}",
                hint="a run directory is copied whole, with its audit.seed",
            ) from error
        if not _SEED.fullmatch(text):
            raise AuditError(
                f"expected the audit's seed in {path}, got something else",
                hint="without it nobody can show which records were held out: restore the file",
            )
        return cls(bytes.fromhex(text))

    @property
    def commitment(self) -> str:
        """What is published before the first round: SHA-256 of the seed."""
        return hashlib.sha256(b"cloister/audit-seed/1\0" + self._seed).hexdigest()

    def reveal(self) -> str:
        """The seed as hexadecimal digits, for the report."""
        return self._seed.hex()

    def key(self, purpose: str) -> bytes:
        """32 bytes for one purpose."""
        return hmac.digest(self._seed, purpose.encode(), "sha256")

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator for one purpose of an audit; never for noise that privacy rests on."""
        return np.random.default_rng(np.frombuffer(self.key(purpose), dtype=np.uint32))

    def __repr__(self) -> str:
        return f"AuditSeed(commitment={self.commitment[:16]}..., seed=***)"


def _write(path: Path, text: str) -> None:
    """Whole or not at all, mode 0600; of two that come at once, the first stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
