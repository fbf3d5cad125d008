"""`cloister client ledger`: what a site spent, verified from the first entry to the last."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.installation import ledger_path
from core.config_files import load_config
from core.errors import ConfigError, LedgerError
from core.site_config import SiteConfig
from privacy.accounting import EpsilonReport
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry


def run_ledger(options: argparse.Namespace) -> int:
    """Verifies and prints; returns the exit code.

    Raises:
        LedgerError: The ledger is missing, or is not what was signed.
        ConfigError: Neither a ledger and its site nor a site's file is given.
    """
    path, site = _which(options)
    if not path.is_file():
        raise LedgerError(
            f"expected a ledger at {path}, got none",
            hint="a simulation keeps one under sites/NAME/ledger.sqlite, a client where its "
            "file says; the first round makes it",
        )
    with Ledger.open(path, site=site) as ledger:
        entries, report = ledger.entries(), ledger.spent(options.delta)
    if options.json:
        json.dump(_document(site, entries, report), sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
    else:
        _print_tables(site, entries, report)
    return 0


def _which(options: argparse.Namespace) -> tuple[Path, str]:
    """The ledger and its site, named directly or by the site's file."""
    if options.config is None and options.ledger is not None and options.site is not None:
        return options.ledger, options.site
    if options.config is None or options.ledger is not None or options.site is not None:
        raise ConfigError(
            "expected LEDGER and --site, or --config, got something else",
            hint="cloister client ledger --config site.toml",
        )
    config = load_config(SiteConfig, options.config)
    return ledger_path(options.config, config), config.site.name


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
    if entry.kind == "cosign":
        return f"saw {body['size']} lines of the run's log"
    event = body.get("event", {"kind": ""})
    if event["kind"] not in ("dp-sgd", "distributed-dp-sgd"):
        return str(event["kind"])
    steps = (
        f"{event['steps']} steps"
        if event["kind"] == "dp-sgd"
        else f"1 step, bears {event['colluding_sites']} colluding"
    )
    return (
        f"{event['kind']}: noise {event['noise_multiplier']:g}, rate {event['sample_rate']:g}, "
        f"{steps}"
    )
