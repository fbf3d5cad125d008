"""`cloister audit verify|compare|key`: what needs no run."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from audit.attestation.verify import verify_audit
from audit.report.compare import compare
from audit.report.document import Comparison
from audit.report.words import number
from audit.report.writing import read_report
from audit.verdicts import Verdict
from cli.auditor_folder import AUDITOR_FILE, KEY_FILE, make_auditor, read_auditor
from privacy.identities.clock import utc_now

_KEY: Final = re.compile(r"[0-9a-f]{64}")


def run_verify(options: argparse.Namespace) -> int:
    """Verifies an audit's folder; returns the exit code.

    Raises:
        AttestationError: Something is not what was signed; see its kinds.
    """
    trusted = [_trusted(item) for item in options.trust]
    verified = verify_audit(options.audit_folder, trusted=trusted, at=utc_now())
    report = verified.report
    document = {
        "run_id": report.identity.run_id,
        "model_digest": report.identity.model_digest,
        "auditor": report.auditor.model_dump(mode="json"),
        "issued": report.issued,
        "verdict": str(report.conclusion.verdict),
        "released": report.released,
        "log_size": verified.log_size,
        "cosigned": dict(verified.cosigned),
    }
    if options.json:
        json.dump(document, sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
        return 0
    auditor = report.auditor
    console = Console()
    for line in (
        f"verified: every file is what {auditor.name} ({auditor.role}) signed at {report.issued}",
        f"run {report.identity.run_id}, model {report.identity.model_digest}",
        f"log of {verified.log_size} lines, signed by its coordinator and by "
        f"{', '.join(sorted(verified.cosigned)) or 'no site'}",
        f"verdict {report.conclusion.verdict}; "
        f"the model is {'released' if report.released else 'NOT RELEASED'}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Shows what changed; returns the exit code. Signatures are ``verify``'s to check.

    Raises:
        AttestationError: One of the two is no report.
    """
    found = compare(read_report(options.before), read_report(options.after))
    if options.json:
        json.dump(found.model_dump(mode="json"), sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
        return 0
    _print(found)
    return 0


def run_key(options: argparse.Namespace) -> int:
    """Makes an auditor's key; returns the exit code.

    Raises:
        CloisterError: There is one, or it cannot be written.
    """
    auditor = make_auditor(options.output, options.name, options.role, options.days)
    sys.stdout.write(
        f"{options.output / KEY_FILE}: keep it to yourself\n"
        f"{options.output / AUDITOR_FILE}: give it to those who verify your reports\n"
        f"public key {auditor.public_key}, valid until {auditor.not_after}\n"
    )
    return 0


def _trusted(item: str) -> str:
    """The public key that is meant: itself, or that of an auditor's document."""
    return item if _KEY.fullmatch(item) else read_auditor(Path(item)).public_key


def _print(found: Comparison) -> None:
    console = Console()
    table = Table(title="what changed", title_justify="left")
    for heading in ("what", "before", "after"):
        table.add_column(heading)
    for verdict in found.verdicts:
        table.add_row(f"{verdict.test}: verdict", _said(verdict.before), _said(verdict.after))
    for measure in found.measures:
        name = f"{measure.test}: {measure.measure}"
        table.add_row(name, _figure(measure.before), _figure(measure.after))
    for other in found.others:
        table.add_row(other.what, other.before, other.after)
    console.print(table)


def _figure(value: float | None) -> str:
    return "none" if value is None else number(value)


def _said(verdict: Verdict | None) -> str:
    return "not run" if verdict is None else str(verdict)
