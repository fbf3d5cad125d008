"""The signed log of a run, as its folder has it.

record.jsonl    the log's lines
log.checkpoint  how far the coordinator signed them
log.signed      what the sites signed
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from core.errors import AttestationError, MessageError
from core.log_messages import (
    CHECKPOINT_FILE,
    LOG_KEY_FILE,
    SIGNED_LOG_FILE,
    Checkpoint,
    SignedLog,
)
from core.messages import decode, encode
from core.run_record import RECORD_FILE, RUN_FILE, read_header
from privacy.ledger import Ledger
from privacy.log_witnesses import LogHolder, co_sign, witness
from privacy.signing import SiteKey, read_private_file
from privacy.transparency_log import log_lines, verify_log

MAX_SIGNED_LOG_BYTES: Final = 16 * 1024 * 1024


def read_log(folder: Path) -> tuple[bytes, SignedLog]:
    """A run's record and who signed it.

    **Guarantees**: Returns only where the record is, byte for byte, what the run's log key signed,
    and every cosignature is of it.

    Raises:
        LogTamperedError: It is not.
        AttestationError: The run has no signed log, or a file cannot be read.
        RunError: It is not a run's folder.
    """
    header = read_header(folder / RUN_FILE)
    key = header.get("log_key")
    if not isinstance(key, str):
        raise AttestationError(
            f"expected a run with a signed log in {folder}, got one without",
            hint="an older version made this run, and it cannot be attested: run it again",
        )
    record = _read(folder / RECORD_FILE)
    log = SignedLog(log_key=key, checkpoint=_checkpoint(folder))
    path = folder / SIGNED_LOG_FILE
    if path.exists():
        log = log.model_copy(update={"cosignatures": parse_signed_log(_read(path)).cosignatures})
    verify_log(log, log_lines(record), header["run_id"])
    return record, log


def cosign_all(folder: Path, ledgers: Mapping[str, Ledger]) -> SignedLog:
    """Has the sites whose ledgers are open here sign a run's log, as in a simulation.

    **Guarantees**: When this returns, what they signed is over the whole log and lies in the
    folder's ``log.signed``.

    Args:
        folder: The run's folder, with its log key in the clear; the run has ended.
        ledgers: By site.

    Raises:
        LogTamperedError: The record is not what the coordinator signed, and no site was asked; or
            a site's ledger is not what the log says of it.
        AttestationError: The log key is not the run's, or a file cannot be read or written.
        SiteKeyError: There is no log key that can be read.
    """
    record, log = read_log(folder)
    run_id = log.checkpoint.run_id
    path = folder / LOG_KEY_FILE
    key = SiteKey.from_pem(read_private_file(path), path)
    if key.public_hex != log.log_key:
        raise AttestationError(f"expected the log key of run {run_id} in {path}")
    holder = LogHolder(run_id, key, record)
    log = co_sign(holder, {site: partial(witness, ledger) for site, ledger in ledgers.items()})
    keep_signed_log(folder, log)
    return log


def keep_signed_log(folder: Path, log: SignedLog) -> None:
    """Writes ``log.signed``, wholly or not at all.

    Raises:
        AttestationError: It cannot be written.
    """
    path = folder / SIGNED_LOG_FILE
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        temporary.write_bytes(encode(log))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise AttestationError(f"cannot write {path}: {error.strerror}") from error


def parse_signed_log(data: bytes) -> SignedLog:
    """Reads ``log.signed``, in the one form in which it is written.

    Raises:
        AttestationError: It is not that.
    """
    try:
        log = decode(SignedLog, data, max_bytes=MAX_SIGNED_LOG_BYTES)
    except MessageError as error:
        raise AttestationError(f"expected a signed log: {error.message}") from error
    if encode(log) != data:
        raise AttestationError("expected a signed log as it was written, got another form of it")
    return log


def _checkpoint(folder: Path) -> Checkpoint:
    try:
        return decode(Checkpoint, _read(folder / CHECKPOINT_FILE))
    except MessageError as error:
        raise AttestationError(
            f"expected a checkpoint of the log in {folder}: {error.message}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AttestationError(f"cannot read {path}: {error.strerror}") from error
