"""`cloister audit`: the arguments of the audit's commands."""

import argparse
import math
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from cli.arguments import add_verbose

Commands = Any  # argparse gives the type of its subparsers no public name
_MAX_STATEMENT: Final = 4000  # what the report has room for


def add_audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command and its tools."""
    audit = commands.add_parser(
        "audit",
        help="test a finished run for leakage and bias, and report",
        description="Test what a finished run gives away and whom it serves worse, and write a "
        "signed report.",
    )
    tools = audit.add_subparsers(required=True, metavar="TOOL")
    _add_run(tools)
    _add_verify(tools)
    _add_compare(tools)
    _add_key(tools)


def _add_run(tools: Commands) -> None:
    run = tools.add_parser(
        "run",
        help="audit a run's directory and write a signed report",
        description="Audit the directory that simulate or coordinator export left. Exit code 4 "
        "where a gate of the federation's file fails; the report is written all the same.",
    )
    run.add_argument("run_folder", type=Path, metavar="RUN", help="the run's directory")
    run.add_argument(
        "--suite",
        choices=("conformance", "quick", "full"),
        default="quick",
        help="which tests; full trains models of its own (default: quick)",
    )
    run.add_argument(
        "--output", type=Path, metavar="DIR", help="a new folder (default: RUN/audit-SUITE)"
    )
    run.add_argument(
        "--auditor",
        type=Path,
        metavar="DIR",
        help="the auditor's folder, made by `audit key` (default: RUN/auditor, made if missing, "
        "which names nobody)",
    )
    run.add_argument(
        "--purpose",
        type=_statement,
        default="",
        metavar="TEXT",
        help="what the model is for, for the report",
    )
    run.add_argument(
        "--legal-basis",
        type=_statement,
        default="",
        metavar="TEXT",
        help="on what basis the records were used, for the report",
    )
    run.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="SECONDS",
        help="for all tests together; what it cuts is reported as INCONCLUSIVE (default: 300, "
        "900 or 3600, by suite)",
    )
    run.add_argument(
        "--pack",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="an optional pack of texts for --suite full: crows-pairs, winogender, winobias, "
        "toxicity-templates; may be repeated",
    )
    run.add_argument(
        "--previous",
        type=Path,
        metavar="DIR",
        help="an earlier audit, of this run or another, to say what changed",
    )
    run.add_argument("--json", action="store_true", help="print the report as JSON")
    _set_run(run, "cli.audit_run", "run_audit")


def _add_verify(tools: Commands) -> None:
    verify = tools.add_parser(
        "verify",
        help="check an audit's signatures, digests and log, offline",
        description="Check that an audit's folder is, byte for byte, what its auditor signed, and "
        "that the log in it is the one that the coordinator and the sites signed.",
    )
    verify.add_argument("audit_folder", type=Path, metavar="AUDIT", help="the audit's folder")
    verify.add_argument(
        "--trust",
        action="append",
        required=True,
        metavar="FILE|KEY",
        help="an auditor whom you trust: the auditor.json that you were given, or the public key; "
        "may be repeated",
    )
    verify.add_argument("--json", action="store_true", help="print JSON")
    _set_run(verify, "cli.audit_verify", "run_verify")


def _add_compare(tools: Commands) -> None:
    compare = tools.add_parser(
        "compare",
        help="show what changed between two audits",
        description="Show verdicts, figures and gates that differ between two audits.",
    )
    compare.add_argument("before", type=Path, metavar="AUDIT", help="the earlier audit's folder")
    compare.add_argument("after", type=Path, metavar="AUDIT", help="the later audit's folder")
    compare.add_argument("--json", action="store_true", help="print JSON")
    _set_run(compare, "cli.audit_verify", "run_compare")


def _add_key(tools: Commands) -> None:
    key = tools.add_parser(
        "key",
        help="make an auditor's key",
        description="Make the key that an auditor signs reports with, and the auditor.json that "
        "says whose it is and how long it is valid; others give it to `audit verify --trust`.",
    )
    key.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    key.add_argument("--name", required=True, help="the auditor's name")
    key.add_argument("--role", required=True, help="such as data-protection officer")
    key.add_argument("--days", type=int, default=730, help="how long it is valid (default: 730)")
    _set_run(key, "cli.audit_verify", "run_key")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:  # nothing compares with NaN
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!a}")
    return seconds


def _statement(text: str) -> str:
    # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
    if len(text) > _MAX_STATEMENT or any("\ud800" <= char <= "\udfff" for char in text):
        raise argparse.ArgumentTypeError(f"expected UTF-8 of at most {_MAX_STATEMENT} characters")
    return text


def _set_run(tool: argparse.ArgumentParser, module: str, function: str) -> None:
    add_verbose(tool)

    def run(options: argparse.Namespace) -> int:
        # torch takes seconds to import
        return int(getattr(import_module(module), function)(options))

    tool.set_defaults(run=run)
