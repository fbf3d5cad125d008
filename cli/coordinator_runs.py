"""`cloister coordinator run|status|stop`: what asks the running service."""

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.service.access import Access
from coordinator.service.asking import ask_service
from coordinator.service.folder import CoordinatorFolder, split_address
from core.config import FederationConfig
from core.config_files import load_config
from core.errors import ConfigError, ServiceError, SessionError
from core.wire.documents import ControlRequest, RunStatus, StatusReport

_FOLLOW_SECONDS: Final = 0.5
_ENDED: Final = ("finished", "stopped", "failed")
_INTERRUPTED: Final = 130


def run_run(options: argparse.Namespace) -> int:
    """Orders a run, and follows it where asked."""
    access = open_access(options)
    run_id = ask_service(access, _order(options)).run_id
    if not options.follow:
        _print_id(run_id, as_json=options.json)
        return 0
    try:
        status = _follow(access, run_id)
    except KeyboardInterrupt:
        sys.stderr.write(f"cloister: run {run_id} goes on; `status` shows it\n")
        return _INTERRUPTED
    if options.json:
        print_json(status.model_dump(mode="json"))
    else:
        sys.stdout.write(f"run {run_id} {_outcome(status)}\n")
    return 0 if status.state == "finished" else 1


def run_status(options: argparse.Namespace) -> int:
    """Shows sites and runs."""
    report = ask_status(open_access(options))
    if options.json:
        print_json(report.model_dump(mode="json"))
    else:
        _print_tables(report)
    return 0


def run_stop(options: argparse.Namespace) -> int:
    """Stops the service, or a run."""
    access = open_access(options)
    if options.run_id is None:
        ask_service(access, ControlRequest(command="stop"))
        _print_done("service", "stops", as_json=options.json)
    else:
        reply = ask_service(access, ControlRequest(command="stop-run", run=options.run_id))
        _print_done(reply.run_id, "stops", as_json=options.json)
    return 0


def _order(options: argparse.Namespace) -> ControlRequest:
    if options.resume is not None:
        if options.config is not None or options.overrides:
            raise ConfigError("expected --resume without --config and --set: a run keeps its own")
        return ControlRequest(command="run", run=options.resume)
    if options.config is not None:
        config = load_config(FederationConfig, options.config, options.overrides)
    else:
        folder = CoordinatorFolder(options.folder)
        config = folder.federation(folder.config(), options.overrides)
    return ControlRequest(command="run", config=config)


def open_access(options: argparse.Namespace) -> Access:
    """An operator's folder; on the coordinator's own machine, the service's present address."""
    if options.identity is not None:
        return Access.load(options.identity)
    folder = CoordinatorFolder(options.folder)
    config = folder.config()
    access = Access.load(folder.operator)
    host, port = split_address(config.listen.address)
    ports = folder.ports()
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 (compared, not listened on)
        host = "127.0.0.1"
    address = f"{host}:{port or (ports.sessions if ports else 0)}"
    return replace(access, where=replace(access.where, address=address))


def ask_status(access: Access) -> StatusReport:
    """What the service says of itself.

    Raises:
        CloisterError: It does not answer, or says no.
    """
    report = ask_service(access, ControlRequest(command="status")).report
    if report is None:
        raise ServiceError("expected a status in the service's answer, got none")
    return report


def _follow(access: Access, run_id: str) -> RunStatus:
    """Waits for the run's end; a service that is started again meanwhile is waited for."""
    console, shown = Console(stderr=True), ""
    while True:
        try:
            found = [run for run in ask_status(access).runs if run.run_id == run_id]
        except SessionError as error:
            line = f"waiting: {error.message}"
        else:
            if not found:
                raise ServiceError(f"expected run {run_id} in the service's status, got none")
            if found[0].state in _ENDED:
                return found[0]
            line = f"{found[0].state}: round {found[0].server_round} of {found[0].num_rounds}"
        if line != shown:
            console.print(line, highlight=False, markup=False)
            shown = line
        time.sleep(_FOLLOW_SECONDS)


def _outcome(status: RunStatus) -> str:
    rounds = f"{status.state} after {status.server_round} of {status.num_rounds} rounds"
    return f"{rounds}: {status.reason}" if status.reason else rounds


def _print_id(run_id: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"run_id": run_id})
    else:
        sys.stdout.write(run_id + "\n")


def _print_done(what: str, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"what": what, "state": done})
    else:
        sys.stdout.write(f"{what} {done}\n")


def print_json(document: object) -> None:
    """For programs."""
    json.dump(document, sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")


def _print_tables(report: StatusReport) -> None:
    console = Console()
    sites = Table(
        title=f"{report.federation}, roster epoch {report.roster_epoch}", title_justify="left"
    )
    for heading in ("site", "roster", "session", "silent", "epsilon"):
        sites.add_column(heading)
    for site in report.sites:
        sites.add_row(
            site.name,
            site.status,
            "open" if site.connected else "",
            "" if site.silent_seconds is None else f"{site.silent_seconds:.0f} s",
            "" if site.epsilon is None else f"{site.epsilon:.3f}",
        )
    console.print(sites)
    for site in report.sites:
        if site.fingerprint:  # not in the table, which would cut it
            sys.stdout.write(f"{site.name} waits with the fingerprint {site.fingerprint}\n")
    runs = Table(title="runs", title_justify="left")
    for heading in ("run", "state", "rounds", "reason", "refusals of the newest round"):
        runs.add_column(heading)
    for run in report.runs:
        runs.add_row(
            run.run_id,
            run.state,
            f"{run.server_round}/{run.num_rounds}",
            # Text: a site says why it refuses, and brackets in that are no markup.
            Text(run.reason),
            Text("\n".join(run.refusals)),
        )
    console.print(runs)
