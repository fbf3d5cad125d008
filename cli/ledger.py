"""`cloister client ledger`: what a site spent, verified from the first entry to the last."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from core.errors import LedgerError
from privacy.accounting import EpsilonReport
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry


def run_ledger(options: argparse.Namespace) -> int:
    """Verifies and prints; returns the exit code.

    Raises:
        LedgerError: The ledger is missing, or is not what was signed.
    """
    if not options.ledger.is_file():
        raise LedgerError(
            f"expected a ledger at {options.ledger}, got none",
            hint="a run keeps one under sites/NAME/ledger.sqlite",
        )
    with Ledger.open(options.ledger, site=options.site) as ledger:
        entries, report = ledger.entries(), ledger.spent(options.delta)
    if options.json:
        json.dump(_document(options.site, entries, report), sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
    else:
        _print_tables(options.site, entries, report)
    return 0


def _document(site: str, entries: Sequence[Entry], report: EpsilonReport) -> dict[str, Any]:
    return {
        "site": site,
        "private": report.private,
        "epsilon": report.epsilon if report.private else None,
        "delta": report.delta,
        "neighbouring": report.neighbouring,
        "second_opinions": {"rdp": report.rdp, "prv": report.prv, "alarm": report.alarm},
        "entries": [
            {
                "sequence": entry.sequence,
                "time": entry.time,
                "kind": entry.kind,
                "body": dict(entry.body),
                "digest": entry.digest,
            }
            for entry in entries
        ],
    }


def _print_tables(site: str, entries: Sequence[Entry], report: EpsilonReport) -> None:
    console = Console()
    table = Table(title=f"ledger of {site}", title_justify="left")
    for heading in ("entry", "time", "kind", "run", "round", "attempt", "mechanism"):
        table.add_column(heading, no_wrap=heading == "mechanism")
    for entry in entries:
        body = entry.body
        table.add_row(
            str(entry.sequence),
            entry.time[:19],
            entry.kind,
            str(body.get("run_id", "")),
            str(body.get("server_round", "")),
            str(body.get("attempt", "")),
            _mechanism(entry),
        )
    console.print(table)
    if not report.private:
        console.print("[bold]NOT PRIVATE:[/bold] this ledger holds a run without privacy")
        return
    console.print(
        f"epsilon {report.epsilon:.4f} at delta {report.delta:g}, over the site's whole life, "
        f"{report.neighbouring.replace('_', ' ')}"
    )
    if report.alarm:
        console.print(f"[bold]ALARM:[/bold] {report.alarm}")


def _mechanism(entry: Entry) -> str:
    body = entry.body
    if entry.kind == "settle":
        return f"{body['executed_steps']} steps ran of entry {body['reserve']}"
    event = body.get("event", {"kind": ""})
    if event["kind"] != "dp-sgd":
        return str(event["kind"])
    return (
        f"dp-sgd: noise {event['noise_multiplier']:g}, rate {event['sample_rate']:g}, "
        f"{event['steps']} steps"
    )
