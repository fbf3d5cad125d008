"""`cloister audit run`: a finished run in, a signed report out."""

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from audit.attestation.bundle import RECEIPT_FILE, attestation_files
from audit.attestation.evidence import gather_evidence
from audit.federated_counts import counts_for
from audit.gates import Gate
from audit.report.build import build_report
from audit.report.document import Report, sign_report
from audit.report.writing import (
    JSON_FILE,
    check_new_folder,
    read_report,
    report_files,
    write_report,
)
from audit.subject import Subject, open_subject
from audit.suite import run_suite
from cli.audit_progress import AuditProgress
from cli.audit_simulated import ask_simulated_sites
from cli.auditor_folder import open_auditor
from core.errors import AuditError, ConfigError, PackError
from core.run_record import RUN_FILE
from privacy.identities.clock import utc_now, write_timestamp

GATE_FAILED: Final = 4
RELEASE_FILE: Final = "release.json"
PACKS: Final = ("crows-pairs", "winogender", "winobias", "toxicity-templates")


def run_audit(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code.

    **Guarantees**: From the moment that an audit begins, ``release.json`` is there only where it
    ended with all gates passed: one that fails, or is killed, leaves no older release.

    Raises:
        CloisterError: Whatever keeps the report from being written.
    """
    folder: Path = options.run_folder
    output: Path = options.output or folder / f"audit-{options.suite}"
    packs = _packs(options.pack, options.suite)
    previous = None if options.previous is None else read_report(options.previous)
    check_new_folder(output)
    _withdraw(folder)
    subject = open_subject(folder, packs=packs)
    auditor, key = open_auditor(options.auditor, folder)
    subject = _asked(subject, counts=options.suite != "conformance")
    if subject.config.simulation is not None:
        # Small models: threads would wait for each other.
        torch.set_num_threads(subject.config.simulation.threads_per_worker)
    with AuditProgress() as progress:
        outcome = run_suite(
            subject, options.suite, time_limit_seconds=options.time_limit, listener=progress
        )
    unsigned = build_report(
        subject,
        outcome,
        auditor,
        issued=write_timestamp(utc_now()),
        purpose=options.purpose,
        legal_basis=options.legal_basis,
        previous=previous,
    )
    report = sign_report(unsigned, key)
    files = attestation_files(report, report_files(report), gather_evidence(subject), key)
    write_report(output, report, files)
    if report.released:
        _release(folder, files[RECEIPT_FILE])
    if options.json:
        sys.stdout.write((output / JSON_FILE).read_text())
    else:
        _print(report, output)
    return 0 if report.released else GATE_FAILED


def _asked(subject: Subject, *, counts: bool) -> Subject:
    """The subject, after its sites were asked for counts and have signed the run's log."""
    if ask_simulated_sites(subject, counts=counts):
        # What they were debited belongs to the report.
        subject = open_subject(subject.folder, packs=subject.packs)
    return replace(subject, federated=counts_for(subject))


def _packs(given: list[str], suite: str) -> dict[str, Path]:
    if given and suite != "full":
        raise ConfigError(
            f"expected --pack with --suite full, got it with {suite}",
            hint="only the full suite has tests that read packs",
        )
    packs: dict[str, Path] = {}
    for item in given:
        name, _, path = item.partition("=")
        if name not in PACKS or not path:
            raise ConfigError(
                f"expected --pack NAME=PATH with a name of {', '.join(PACKS)}, got {item!a}"
            )
        if name in packs:
            raise ConfigError(f"expected --pack {name}=... once, got it again")
        if not Path(path).exists():
            raise PackError(f"expected the pack {name} at {path}, got nothing there")
        packs[name] = Path(path)
    return packs


def _withdraw(folder: Path) -> None:
    """Takes away the release of an earlier audit.

    Raises:
        AuditError: The disk refuses.
    """
    path = folder / RELEASE_FILE
    try:
        if (folder / RUN_FILE).exists():  # else this is no run's folder, and not ours
            path.unlink(missing_ok=True)
    except OSError as error:
        raise AuditError(f"cannot remove {path}: {error.strerror}") from error


def _release(folder: Path, receipt: bytes) -> None:
    """Leaves the receipt in the run's folder.

    Raises:
        AuditError: The disk refuses.
    """
    path = folder / RELEASE_FILE
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        temporary.write_bytes(receipt)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise AuditError(f"cannot write {path}: {error.strerror}") from error


def _print(report: Report, output: Path) -> None:
    console = Console()
    table = Table(title=report.conclusion.title, title_justify="left")
    for heading in ("test", "verdict", "what was found"):
        table.add_column(heading)
    for test in report.tests:
        table.add_row(test.result.test, str(test.result.verdict), test.result.headline)
    console.print(table)
    lines = []
    if report.not_run:
        lines.append(f"{len(report.not_run)} tests did not run; the report says why")
    for gate in report.gates:
        lines.append(f"gate {gate.name}: {_gate(gate)}")
    state = "released" if report.released else "NOT RELEASED"
    lines.append(f"the model is {state}; report, receipt and log: {output}")
    for line in lines:
        # A path that is broken into lines cannot be copied.
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _gate(gate: Gate) -> str:
    return f"{'passed' if gate.passed else 'FAILED'}: {gate.reason}"
