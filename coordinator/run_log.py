"""The signed log of a run: its leaves are the record's lines, byte for byte.

log.key         the run's log key, mode 0600; sealed where the run's checkpoints are
log.checkpoint  the newest signed length and root
log.signed      what the sites signed of it

A checkpoint covers only lines that lie on the disk already, so that after a crash the record is
never shorter. What all this finds, and what it does not: see ``privacy.transparency_log``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from core.errors import LogTamperedError, MessageError, RunError
from core.log_messages import (
    CHECKPOINT_FILE,
    LOG_KEY_FILE,
    SIGNED_LOG_FILE,
    Checkpoint,
    SignedLog,
)
from core.messages import decode, encode
from core.run_record import RECORD_FILE, RUN_FILE, read_header
from core.sealed_arrays import Seal
from privacy.log_witnesses import LogHolder
from privacy.merkle_tree import GrowingTree, leaf_hash
from privacy.signing import SiteKey, read_private_file, write_private_file
from privacy.transparency_log import log_lines, sign_checkpoint, verify_lines, verify_log

_MAX_SIGNED_BYTES: Final = 16 * 1024 * 1024


class RunLog:
    """A run's log, as the coordinator writes it."""

    def __init__(self, folder: Path, run_id: str, key: SiteKey, lines: Sequence[bytes]) -> None:
        self._path = folder / CHECKPOINT_FILE
        self._run_id = run_id
        self._key = key
        self._tree = GrowingTree(leaf_hash(line) for line in lines)

    @classmethod
    def open(cls, folder: Path, run_id: str, key: SiteKey, lines: Sequence[bytes]) -> "RunLog":
        """The log of a run that begins or goes on.

        Guarantees:
            Returns only where ``lines`` continue those of the newest checkpoint that lies here. A
            checkpoint that was lost is made again with the next line.

        Raises:
            LogTamperedError: The record is shorter than was signed, or another, or the checkpoint
                is not this run's.
            RunError: The checkpoint cannot be read.
        """
        path = folder / CHECKPOINT_FILE
        if path.exists():
            verify_lines(lines, _read(path), key.public_hex, run_id)
        return cls(folder, run_id, key, lines)

    def append(self, line: bytes) -> None:
        """Takes up a line that was appended to the record."""
        self._tree.append(leaf_hash(line))

    def sign(self) -> None:
        """Signs all lines so far, which must lie on the disk, and replaces the checkpoint.

        Raises:
            RunError: It cannot be written.
        """
        checkpoint = sign_checkpoint(self._key, self._run_id, self._tree.size, self._tree.root)
        _replace(self._path, encode(checkpoint))


def log_key(folder: Path, seal: Seal | None, *, new: bool = False) -> SiteKey:
    """The run's log key.

    Args:
        folder: The run's folder.
        seal: Encrypts the key file; ``None`` leaves it in the clear.
        new: Make a key where there is none.

    Raises:
        SiteKeyError: The file is missing, readable by others, or holds no key.
        VaultError: It was sealed with another key, or not at all.
    """
    path = folder / LOG_KEY_FILE
    if new and not os.path.lexists(path):
        pem = SiteKey.generate().private_pem()
        write_private_file(path, pem if seal is None else seal.seal(LOG_KEY_FILE, pem))
    data = read_private_file(path)
    return SiteKey.from_pem(data if seal is None else seal.open(LOG_KEY_FILE, data), path)


def log_holder(folder: Path, seal: Seal | None) -> LogHolder:
    """What asks sites to sign the log of a run that has ended.

    Raises:
        LogTamperedError: The record is not, byte for byte, what was signed.
        SiteKeyError: The log key cannot be used.
        VaultError: It was sealed with another key.
        RunError: A file is missing, or cannot be read.
    """
    run_id = read_header(folder / RUN_FILE)["run_id"]
    key = log_key(folder, seal)
    record = _bytes(folder / RECORD_FILE)
    lines = log_lines(record)
    checkpoint = _read(folder / CHECKPOINT_FILE)
    verify_log(SignedLog(log_key=key.public_hex, checkpoint=checkpoint), lines, run_id)
    return LogHolder(run_id, key, record)


def keep_signatures(folder: Path, holder: LogHolder, replies: Mapping[str, str]) -> SignedLog:
    """Checks what sites replied to ``holder.order``, and writes ``log.signed``.

    Guarantees:
        Every cosignature in it is of this log. Those of sites that did not reply stay as they were.

    Args:
        folder: The run's folder.
        holder: Of the same run.
        replies: ``WitnessReply`` by site; an empty text is no reply.

    Raises:
        LogTamperedError: A site signed another log; nothing is written.
        MessageError: A reply does not parse.
        RunError: The file cannot be read or written.
    """
    path = folder / SIGNED_LOG_FILE
    kept = {}
    if path.exists():
        earlier = decode(SignedLog, _bytes(path), max_bytes=_MAX_SIGNED_BYTES)
        kept = {item.body.site: item for item in earlier.cosignatures}
    kept |= {site: holder.accept(site, text) for site, text in replies.items() if text}
    log = holder.signed(kept)
    _replace(path, encode(log))
    return log


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all; not synced, because what is lost is made again."""
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> Checkpoint:
    try:
        return decode(Checkpoint, _bytes(path))
    except MessageError as error:
        raise LogTamperedError(
            f"expected a signed checkpoint in {path}: {error.message}",
            hint="restore it with the record from one moment",
        ) from error
