"""`cloister audit run`: a finished run in, a signed report out."""

import argparse
import sys
from collections.abc import Mapping
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
from audit.report.writing import JSON_FILE, read_report, report_files, write_report
from audit.subject import Subject, open_subject
from audit.suite import run_suite
from cli.audit_progress import AuditProgress
from cli.audit_simulated import ask_simulated_sites
from cli.auditor_folder import open_auditor
from core.errors import AuditError, ConfigError
from privacy.identities.clock import utc_now, write_timestamp

GATE_FAILED: Final = 4
RELEASE_FILE: Final = "release.json"
PACKS: Final = ("crows-pairs", "winogender", "winobias", "toxicity-templates")


def run_audit(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code.

    Raises:
        CloisterError: Whatever keeps the report from being written.
    """
    folder: Path = options.run_folder
    output: Path = options.output or folder / f"audit-{options.suite}"
    packs = _packs(options.pack)
    previous = None if options.previous is None else read_report(options.previous)
    auditor, key = open_auditor(options.auditor, folder)
    subject = _prepared(folder, packs, counts=options.suite != "conformance")
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
    _mark(folder, report, files[RECEIPT_FILE])
    if options.json:
        sys.stdout.write((output / JSON_FILE).read_text())
    else:
        _print(report, output)
    return 0 if report.released else GATE_FAILED


def _prepared(folder: Path, packs: Mapping[str, Path], *, counts: bool) -> Subject:
    """The subject, after its sites were asked for counts and have signed the run's log."""
    subject = open_subject(folder, packs=packs)
    if ask_simulated_sites(subject, counts=counts):
        subject = open_subject(folder, packs=packs)  # what they were debited belongs to the report
    return replace(subject, federated=counts_for(subject))


def _packs(given: list[str]) -> dict[str, Path]:
    packs = {}
    for item in given:
        name, _, path = item.partition("=")
        if name not in PACKS or not path:
            raise ConfigError(
                f"expected --pack NAME=PATH with a name of {', '.join(PACKS)}, got {item!r}"
            )
        packs[name] = Path(path)
    return packs


def _mark(folder: Path, report: Report, receipt: bytes) -> None:
    """Leaves the receipt in the run's folder where the model is released, and else none.

    Raises:
        AuditError: The disk refuses.
    """
    path = folder / RELEASE_FILE
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        if not report.released:
            path.unlink(missing_ok=True)
            return
        temporary.write_bytes(receipt)
        temporary.replace(path)
    except OSError as error:
        raise AuditError(f"cannot write {path}: {error.strerror}") from error


def _print(report: Report, output: Path) -> None:
    console = Console()
    table = Table(title=report.conclusion.title, title_justify="left")
    for heading in ("test", "verdict", "what was found"):
        table.add_column(heading)
    for test in report.tests:
        table.add_row(test.result.test, str(test.result.verdict), test.result.headline)
    console.print(table)
    for gate in report.gates:
        console.print(f"gate {gate.name}: {_gate(gate)}", highlight=False, markup=False)
    state = "released" if report.released else "NOT RELEASED"
    console.print(f"the model is {state}; report, receipt and log: {output}", markup=False)


def _gate(gate: Gate) -> str:
    return f"{'passed' if gate.passed else 'FAILED'}: {gate.reason}"
