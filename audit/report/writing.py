"""The report's files in a new folder: all of them, or none."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from audit.report.document import MAX_REPORT_BYTES, Report, parse_report, report_bytes
from audit.report.html import render_html
from audit.report.junit import render_junit
from audit.report.markdown import render_markdown
from core.errors import AttestationError, AuditError

JSON_FILE: Final = "report.json"
HTML_FILE: Final = "report.html"
MARKDOWN_FILE: Final = "report.md"
JUNIT_FILE: Final = "junit.xml"
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def report_files(report: Report) -> dict[str, bytes]:
    """Every form of the report, by the name of its file."""
    return {
        JSON_FILE: report_bytes(report),
        HTML_FILE: render_html(report).encode("utf-8"),
        MARKDOWN_FILE: render_markdown(report).encode("utf-8"),
        JUNIT_FILE: render_junit(report),
    }


def write_report(
    folder: Path, report: Report, extra_files: Mapping[str, bytes] | None = None
) -> None:
    """Writes the report and what goes with it.

    **Guarantees**: When this returns, all files lie on the disk; when it raises, the folder is not
    there. What was there before is never touched.

    Args:
        folder: A new folder.
        report: The report.
        extra_files: More files, by plain names.

    Raises:
        AuditError: The folder exists, a name is not plain or taken, or the disk refuses.
    """
    files = report_files(report)
    for name, content in (extra_files or {}).items():
        if name in files or not _PLAIN_NAME.fullmatch(name):
            raise AuditError(f"expected a plain and free name for a file, got {name!a}")
        files[name] = content
    check_new_folder(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _sync(temporary)
        # Onto a folder that another made since then: refused unless that one is empty.
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if folder.exists() and temporary.exists():
            raise _taken(folder) from error
        raise _unwritable(folder, str(error.strerror)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Checks before hours of work what can be checked of the place for a report; writes nothing.

    Raises:
        AuditError: Something is there, or nothing can be written there.
    """
    try:
        if folder.exists() or folder.is_symlink():
            raise _taken(folder)
        above = next(path for path in folder.absolute().parents if path.exists())
    except OSError as error:
        raise _unwritable(folder, str(error.strerror)) from error
    if not above.is_dir():
        raise _unwritable(folder, f"{above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(folder, f"nobody may write to {above}")


def read_report(folder: Path) -> Report:
    """Reads the report of a folder, or of its JSON file; its signature is not checked here.

    Raises:
        AttestationError: It is not there, or not a report.
    """
    path = folder / JSON_FILE if folder.is_dir() else folder
    try:
        with path.open("rb") as file:
            data = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise AttestationError(f"expected a report at {path}, got: {error.strerror}") from error
    return parse_report(data)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, reason: str) -> AuditError:
    return AuditError(
        f"expected to write the report to {folder}, got: {reason}",
        hint="check the folder, its owner and the disk's space",
    )


def _taken(folder: Path) -> AuditError:
    return AuditError(
        f"expected a new folder at {folder}, got one that is there",
        hint="a report is never written over: name another folder",
    )
