"""`cloister client`: the arguments of a site's commands."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from cli.arguments import add_overrides, add_verbose
from core.wire.channel import quiet_grpc, require_tls13

Commands = Any  # argparse gives the type of its subparsers no public name


def add_client(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command and its tools."""
    client = commands.add_parser("client", help="a site's own tools")
    tools = client.add_subparsers(required=True, metavar="TOOL")
    _add_join(tools)
    _add_start(tools)
    _add_check(tools)
    _add_task(tools)
    _add_ledger(tools)


def _add_join(tools: Commands) -> None:
    join = tools.add_parser(
        "join",
        help="enrol this site with the invitation that the federation's admin sent",
        description="Make this site's keys, ask to be enrolled, and show the fingerprint that the "
        "admin compares by telephone. Then wait for the approval and collect the certificate; "
        "interrupted, the same command or `start` collects it later.",
    )
    join.add_argument("invitation", type=Path, metavar="INVITATION", help="the invitation's file")
    _add_config(join)
    join.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="wait so long for the approval (default: until it comes)",
    )
    _set_run(join, "cli.client_join", "run_join")


def _add_start(tools: Commands) -> None:
    start = tools.add_parser(
        "start",
        help="take part in the federation's runs, until stopped",
        description="Keep a session with the coordinator open, train what this site's policy "
        "allows, and debit it from the ledger first. SIGTERM or Ctrl-C stops it: a round in "
        "progress has service.stop_seconds to end, then it is dropped by name.",
    )
    _add_config(start)
    _set_run(start, "cli.client_start", "run_start")


def _add_check(tools: Commands) -> None:
    check = tools.add_parser(
        "check",
        help="look whether this site is ready to take part",
        description="Look at everything that a round needs: configuration, keys, certificate, "
        "roster, data, declared size, ledger, approved task, disk, clock and the way to the "
        "coordinator. Each line says what is wrong and what to do; exit code 1 if anything is.",
    )
    _add_config(check)
    check.add_argument("--json", action="store_true", help="print JSON")
    _set_run(check, "cli.client_check", "run_check")


def _add_task(tools: Commands) -> None:
    task = tools.add_parser(
        "task",
        help="show the task that is installed here, for the site's people to approve",
        description="Show the terms of the federation's file that is installed here and their "
        "hash: with it under policy.allowed_tasks, this site trains on exactly these terms.",
    )
    _add_config(task)
    task.add_argument("--json", action="store_true", help="print JSON")
    _set_run(task, "cli.client_task", "run_task")


def _add_ledger(tools: Commands) -> None:
    ledger = tools.add_parser(
        "ledger",
        help="verify a site's ledger and show what was spent",
        description="Verify a site's ledger from its first entry to its last, and show what "
        "each round was debited and the epsilon over the site's whole life.",
    )
    ledger.add_argument(
        "ledger", type=Path, nargs="?", metavar="LEDGER", help="the ledger.sqlite file"
    )
    ledger.add_argument("--site", help="the site that the ledger belongs to")
    ledger.add_argument(
        "--config", type=Path, metavar="FILE", help="the site's file, in place of both"
    )
    ledger.add_argument("--delta", type=float, default=1e-5, help="delta (default: 1e-5)")
    ledger.add_argument("--json", action="store_true", help="print JSON")
    _set_run(ledger, "cli.ledger", "run_ledger")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the site's file"
    )
    add_overrides(parser)


def _set_run(parser: argparse.ArgumentParser, module: str, name: str) -> None:
    add_verbose(parser)

    def run(options: argparse.Namespace) -> int:
        # Before what imports gRPC; and torch and Flower take seconds to import.
        require_tls13()
        quiet_grpc()
        code: int = getattr(import_module(module), name)(options)
        return code

    parser.set_defaults(run=run)
