"""The report's folder is there with all its files, or it is not there."""

import os
from pathlib import Path

import pytest

from audit.report.document import Report, report_bytes
from audit.report.writing import read_report, report_files, write_report
from core.errors import AttestationError, AuditError
from privacy.signing import SiteKey
from tests.support.reports import rich_report


@pytest.fixture(scope="module")
def report() -> Report:
    """Without figures, which take most of the time."""
    report = rich_report(SiteKey.generate())
    privacy = report.privacy.model_copy(update={"figure": None})
    return report.model_copy(update={"tests": (), "risks": (), "privacy": privacy})


def test_all_files_are_written_and_the_report_is_read_again(tmp_path: Path, report: Report) -> None:
    folder = tmp_path / "audits" / "first"
    write_report(folder, report, {"attestation.json": b"{}"})
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {**report_files(report), "attestation.json": b"{}"}
    assert read_report(folder) == report == read_report(folder / "report.json")
    assert [path.name for path in folder.parent.iterdir()] == ["first"]


def test_what_is_there_is_never_touched(tmp_path: Path, report: Report) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    with pytest.raises(AuditError, match="got one that is there"):
        write_report(folder, report)
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AuditError, match="got one that is there"):
        write_report(tmp_path / "dangling", report)


@pytest.mark.parametrize(
    "name", ["../escape", "a/b", "", ".hidden", "report.json", "x\n", "a" * 101]
)
def test_a_name_that_is_not_plain_or_taken_is_refused(
    tmp_path: Path, report: Report, name: str
) -> None:
    with pytest.raises(AuditError, match="plain and free name"):
        write_report(tmp_path / "new", report, {name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_disk_that_fails_at_any_step_leaves_nothing(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "new"
    if fails_at <= 5:  # four files and the folder itself
        with pytest.raises(AuditError, match="No space left"):
            write_report(folder, report)
        assert list(tmp_path.iterdir()) == []
    elif fails_at == 6:  # whole, but its name may not lie on the disk yet
        with pytest.raises(AuditError, match="No space left"):
            write_report(folder, report)
    else:
        write_report(folder, report)
        assert calls == 6


def test_a_folder_without_a_report_is_refused_by_name(tmp_path: Path, report: Report) -> None:
    with pytest.raises(AttestationError, match="expected a report at"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(report_bytes(report)[:-9])
    with pytest.raises(AttestationError, match="expected an audit report"):
        read_report(tmp_path)
