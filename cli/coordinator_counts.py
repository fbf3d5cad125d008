"""`cloister coordinator counts`: asks the sites for the counts of an audit."""

import argparse
import sys
import time
from typing import Final

from rich.console import Console

from cli.coordinator_runs import ask_status, open_access, print_json
from coordinator.service.access import Access
from coordinator.service.asking import ask_service
from core.audit_messages import AUDIT_FILE
from core.errors import ServiceError
from core.wire.documents import ControlRequest, CountsStatus

_FOLLOW_SECONDS: Final = 0.5
_INTERRUPTED: Final = 130


def run_counts(options: argparse.Namespace) -> int:
    """Has the service ask, waits for the end, and says who answered."""
    access = open_access(options)
    ask_service(access, ControlRequest(command="audit", run=options.run_id, again=options.again))
    try:
        status = _follow(access, options.run_id)
    except KeyboardInterrupt:
        sys.stderr.write("cloister: the service goes on to ask; `status --json` shows it\n")
        return _INTERRUPTED
    if options.json:
        print_json(status.model_dump(mode="json"))
    else:
        _print(status)
    return 0 if status.state == "finished" else 1


def _follow(access: Access, run_id: str) -> CountsStatus:
    console, shown = Console(stderr=True), ""
    while True:
        status = ask_status(access).counts
        if status is None or status.run_id != run_id:
            raise ServiceError(
                f"expected the audit of run {run_id} in the service's status, got another or none",
                hint="the service was started anew, or somebody asked for another: ask again",
            )
        if status.state in ("finished", "failed"):
            return status
        if status.state != shown:
            console.print(f"{status.state}: counts of run {run_id}", highlight=False, markup=False)
            shown = status.state
        time.sleep(_FOLLOW_SECONDS)


def _print(status: CountsStatus) -> None:
    if status.state == "finished":
        sites = ", ".join(status.replied)
        sys.stdout.write(f"counts of {sites}: {AUDIT_FILE} in the run's folder\n")
    else:
        sys.stdout.write(f"no counts of run {status.run_id}: {status.reason}\n")
    for line in status.absent:
        sys.stdout.write(f"without {line}\n")
