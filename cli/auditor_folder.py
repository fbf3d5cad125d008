"""An auditor's folder: the key that signs reports, and the document that says whose it is."""

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Final

from audit.attestation.auditor import Auditor, check_signer
from core.errors import MessageError, SignerError, SiteKeyError
from core.messages import decode, encode
from privacy.identities.clock import utc_now, write_timestamp
from privacy.signing import SiteKey, write_private_file

KEY_FILE: Final = "auditor.key"
AUDITOR_FILE: Final = "auditor.json"
_IN_RUN: Final = "auditor"
_UNNAMED: Final = ("whoever ran the audit", "not stated")
_DAYS: Final = 730


def make_auditor(folder: Path, name: str, role: str, days: int) -> Auditor:
    """Makes a key and the document; never overwrites one.

    Raises:
        SiteKeyError: There is a key, or it cannot be written.
        SignerError: The name, the role or the days are none.
    """
    key = SiteKey.generate()
    now = utc_now()
    try:
        auditor = Auditor(
            name=name,
            role=role,
            public_key=key.public_hex,
            not_before=write_timestamp(now),
            not_after=write_timestamp(now + timedelta(days=days)),
        )
    except (ValueError, OverflowError) as error:
        raise SignerError(
            "expected a name and a role of one line each and a number of days from 1, got others"
        ) from error
    _write(folder, key, auditor)
    return auditor


def _write(folder: Path, key: SiteKey, auditor: Auditor) -> None:
    """Both files or none."""
    document = folder / AUDITOR_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SiteKeyError(f"cannot make {folder}: {error.strerror}") from error
    write_private_file(folder / KEY_FILE, key.private_pem())
    try:
        document.write_bytes(encode(auditor))
    except OSError as error:
        (folder / KEY_FILE).unlink()
        with contextlib.suppress(OSError):
            document.unlink()
        raise SiteKeyError(f"cannot write {document}: {error.strerror}") from error


def open_auditor(folder: Path | None, run: Path) -> tuple[Auditor, SiteKey]:
    """The auditor of a folder, or the run's own unnamed one, made where there is none.

    Args:
        folder: The auditor's; ``None`` for the run's own.
        run: The run's folder, which is known to be one.

    Raises:
        SignerError: The folder has no document of an auditor, one of another key, or one of a key
            that is not valid today.
        SiteKeyError: The key cannot be used.
    """
    chosen = run / _IN_RUN if folder is None else folder
    if folder is None and run.is_dir() and not chosen.exists():
        make_auditor(chosen, *_UNNAMED, _DAYS)
    auditor = read_auditor(chosen / AUDITOR_FILE)
    key = SiteKey.load(chosen / KEY_FILE)
    if key.public_hex != auditor.public_key:
        raise SignerError(
            f"expected the key of {auditor.name!a} in {chosen / KEY_FILE}, got another"
        )
    check_signer(auditor, (key.public_hex,), utc_now())
    return auditor, key


def read_auditor(path: Path) -> Auditor:
    """Reads an auditor's document.

    Raises:
        SignerError: There is none.
    """
    try:
        return decode(Auditor, path.read_bytes())
    except OSError as error:
        raise SignerError(
            f"expected an auditor's document at {path}, got: {error.strerror}",
            hint="cloister audit key makes one",
        ) from error
    except MessageError as error:
        raise SignerError(f"expected an auditor's document at {path}: {error.message}") from error
