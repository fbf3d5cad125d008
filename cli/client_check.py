"""`cloister client check`: is this site ready?"""

import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.check import Finding, check_site


def run_check(options: argparse.Namespace) -> int:
    """Prints what was found; returns 1 where anything is wrong."""
    findings = check_site(options.config, options.overrides)
    ready = all(finding.ok for finding in findings)
    if options.json:
        document = {"ready": ready, "checks": [asdict(finding) for finding in findings]}
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_table(findings)
    return 0 if ready else 1


def _print_table(findings: list[Finding]) -> None:
    table = Table(title="is this site ready?", title_justify="left")
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "OK" if finding.ok else "[bold red]FAIL[/bold red]"
        # Text: brackets in a message are no markup.
        table.add_row(mark, finding.name, Text(finding.found), Text(finding.fix))
    Console().print(table)
