"""`cloister coordinator`: the arguments of the consortium's commands."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from cli.arguments import add_overrides, add_verbose
from core.wire.channel import quiet_grpc, require_tls13

Tools = Any  # argparse gives the type of its subparsers no public name


def add_coordinator(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command and its subcommands."""
    coordinator = commands.add_parser(
        "coordinator",
        help="the consortium's service: enrol sites, run federations",
        description="Everything that the consortium does. init, invite, approve, revoke, grant, "
        "renew and export work on the folder; run, status, stop and counts ask the running "
        "service.",
    )
    tools = coordinator.add_subparsers(required=True, metavar="TOOL")
    _add_init(tools)
    _add_start(tools)
    _add_invite(tools)
    _add_approve(tools)
    _add_revoke(tools)
    _add_grant(tools)
    _add_renew(tools)
    _add_run(tools)
    _add_status(tools)
    _add_stop(tools)
    _add_counts(tools)
    _add_export(tools)


def _add_init(tools: Tools) -> None:
    tool = _tool(
        tools,
        "init",
        "make the coordinator's folder, with all its keys",
        "Make the coordinator's folder: configuration, vault key, a CA of its own, the admin's "
        "key, the first operator's key and certificate. Then move the folder offline/ to a medium "
        "that you keep offline.",
    )
    tool.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the federation's file (default: a copy of the embedded example's)",
    )
    add_overrides(tool, example="listen.public_host=fl.example.org")
    _set_run(tool, "cli.coordinator_setup", "run_init")


def _add_start(tools: Tools) -> None:
    tool = _tool(
        tools,
        "start",
        "run the service until it is told to stop",
        "Run the service until SIGTERM, SIGINT or `stop`: accept enrolments and sessions, and "
        "work through the queue of runs. A run that was cut short goes on by itself.",
    )
    add_overrides(tool, example="listen.metrics_port=9465")
    _set_run(tool, "cli.coordinator_start", "run_start")


def _add_invite(tools: Tools) -> None:
    tool = _tool(
        tools,
        "invite",
        "invite a site of the federation's file",
        "Write an invitation with a new token, which is good once and for 24 hours. Hand it over "
        "on a channel that both sides trust; earlier invitations of the site are good no more.",
    )
    tool.add_argument("site", metavar="SITE", help="the site's name")
    tool.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: stdout)"
    )
    _set_run(tool, "cli.coordinator_setup", "run_invite")


def _add_approve(tools: Tools) -> None:
    tool = _tool(
        tools,
        "approve",
        "admit a site whose fingerprint its people read out",
        "Admit a site that joined: sign the roster that lists its keys. The fingerprint is the "
        "one that the site's people read out, not one that is copied from `status`.",
    )
    tool.add_argument("site", metavar="SITE", help="the site's name")
    tool.add_argument("fingerprint", metavar="FINGERPRINT", help="64 hexadecimal digits")
    _add_admin_key(tool)
    _set_run(tool, "cli.coordinator_setup", "run_approve")


def _add_revoke(tools: Tools) -> None:
    tool = _tool(
        tools,
        "revoke",
        "shut out a site, an operator or an auditor",
        "Sign the roster in which the name is revoked, and end its invitations. The running "
        "service cuts its session within seconds.",
    )
    tool.add_argument("name", metavar="NAME", help="the site's name")
    tool.add_argument("--operator", action="store_true", help="NAME is an operator or an auditor")
    _add_admin_key(tool)
    _set_run(tool, "cli.coordinator_setup", "run_revoke")


def _add_grant(tools: Tools) -> None:
    tool = _tool(
        tools,
        "grant",
        "let somebody watch the service, or steer it",
        "Sign the roster that lists an operator (run, stop, status) or an auditor (status), and "
        "make a folder for `--identity`. With --csr the key stays where it was made.",
    )
    tool.add_argument("name", metavar="NAME", help="who")
    tool.add_argument("--role", choices=("operator", "auditor"), required=True, help="what for")
    origin = tool.add_mutually_exclusive_group()
    origin.add_argument(
        "--csr", type=Path, metavar="FILE", help="a PKCS #10 request for a key made elsewhere"
    )
    origin.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="a certificate that the organisation's own CA issued",
    )
    tool.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the folder to make (default: FOLDER/operators/NAME)",
    )
    _add_admin_key(tool)
    _set_run(tool, "cli.coordinator_setup", "run_grant")


def _add_renew(tools: Tools) -> None:
    tool = _tool(
        tools,
        "renew",
        "sign the roster for another 90 days",
        "Sign the present roster again, for 90 days from now; every other change of the roster "
        "does so too. With --root-key, also make the next issuing authority, for a year: "
        "restart the service afterwards.",
    )
    tool.add_argument("--root-key", type=Path, metavar="FILE", help="the root key, root.key")
    _add_admin_key(tool)
    _set_run(tool, "cli.coordinator_setup", "run_renew")


def _add_run(tools: Tools) -> None:
    tool = _tool(
        tools,
        "run",
        "order a run",
        "Put a run at the end of the service's queue; prints its id.",
    )
    tool.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the federation's file (default: the one that coordinator.toml names)",
    )
    add_overrides(tool)
    tool.add_argument(
        "--resume", metavar="RUN", help="go on with a run that was stopped or has failed"
    )
    tool.add_argument(
        "--follow", action="store_true", help="wait for its end, and exit 0 if it finished"
    )
    _add_asking(tool)
    _set_run(tool, "cli.coordinator_runs", "run_run")


def _add_status(tools: Tools) -> None:
    tool = _tool(tools, "status", "show sites and runs", "Show the service's sites and runs.")
    _add_asking(tool)
    _set_run(tool, "cli.coordinator_runs", "run_status")


def _add_stop(tools: Tools) -> None:
    tool = _tool(
        tools,
        "stop",
        "stop the service, or a run",
        "Stop the service; the run in progress goes on when it starts again. With --run, end a "
        "run for good and leave the service running.",
    )
    tool.add_argument(
        "--run",
        nargs="?",
        const="",
        metavar="RUN",
        dest="run_id",
        help="end this run; without an id, the one in progress",
    )
    _add_asking(tool)
    _set_run(tool, "cli.coordinator_runs", "run_stop")


def _add_counts(tools: Tools) -> None:
    tool = _tool(
        tools,
        "counts",
        "ask the sites for an audit's noised counts",
        "Ask the sites that are connected for counts by group and histograms of losses of a run's "
        "model, for its audit. Each site answers as its policy says, adds noise and debits its "
        "ledger; `export` writes what came with the run.",
    )
    tool.add_argument(
        "--run", required=True, metavar="RUN", dest="run_id", help="the id of a run that has ended"
    )
    tool.add_argument(
        "--again",
        action="store_true",
        help="ask although there are counts already: each site pays anew",
    )
    _add_asking(tool)
    _set_run(tool, "cli.coordinator_counts", "run_counts")


def _add_export(tools: Tools) -> None:
    tool = _tool(
        tools,
        "export",
        "write a run's model, record and curves in the clear",
        "Open a run's newest checkpoint and leave what `cloister simulate` leaves: the model, the "
        "record and the curves.",
    )
    tool.add_argument("run_id", metavar="RUN", help="the run's id")
    tool.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    _set_run(tool, "cli.coordinator_export", "run_export")


def _tool(
    tools: Tools,
    name: str,
    short: str,
    description: str,
) -> argparse.ArgumentParser:
    tool: argparse.ArgumentParser = tools.add_parser(name, help=short, description=description)
    tool.add_argument(
        "--folder",
        type=Path,
        default=Path("coordinator"),
        metavar="DIR",
        help="the coordinator's folder (default: coordinator)",
    )
    add_verbose(tool)
    return tool


def _add_admin_key(tool: argparse.ArgumentParser) -> None:
    tool.add_argument(
        "--admin-key",
        type=Path,
        metavar="FILE",
        help="the admin's key (default: FOLDER/offline/admin.key)",
    )


def _add_asking(tool: argparse.ArgumentParser) -> None:
    tool.add_argument(
        "--identity",
        type=Path,
        metavar="DIR",
        help="an operator's folder that `grant` made (default: FOLDER/operator)",
    )
    tool.add_argument("--json", action="store_true", help="print JSON")


def _set_run(tool: argparse.ArgumentParser, module: str, name: str) -> None:
    def run(options: argparse.Namespace) -> int:
        # Before what imports gRPC; and torch and Flower take seconds to import.
        require_tls13()
        quiet_grpc()
        code: int = getattr(import_module(module), name)(options)
        return code

    tool.set_defaults(run=run)
