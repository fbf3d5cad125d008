"""The command `cloister`: arguments in, exit code out. Data to stdout, logs to stderr.

Exit codes: 0 ok, 1 failure, 2 usage, 3 refused by policy or budget, 4 an audit gate failed.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cli.arguments import add_overrides, add_verbose
from cli.audit import add_audit
from cli.client import add_client
from cli.coordinator import add_coordinator
from core.allocator import keep_freed_memory
from core.errors import CloisterError
from core.process import no_core_dumps

# Before the first import of Flower, Ray or a Hugging Face library: none may call home.
OFFLINE: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main(arguments: Sequence[str] | None = None, *, own_process: bool = True) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the program's name; ``None`` for the process's own.
        own_process: Set up the process's allocator, limits, logging and warnings.

    Returns:
        The exit code.
    """
    os.environ.update(OFFLINE)
    options = build_parser().parse_args(arguments)
    if own_process:
        keep_freed_memory()
        no_core_dumps()
        _configure_logging(options.verbose)
    try:
        return int(options.run(options))
    except CloisterError as error:
        sys.stderr.write(f"cloister: {error.code}: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("cloister: interrupted; run the same command again to go on\n")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="cloister",
        description="Train Transformers across organisations that may not pool their text.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_simulate(commands)
    add_coordinator(commands)
    add_client(commands)
    add_audit(commands)
    return parser


def _add_simulate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    simulate = commands.add_parser(
        "simulate",
        help="train across simulated sites on this machine",
        description="Train across simulated sites on this machine; without --config, the "
        "embedded example of three hospitals. Started again with the same output folder, an "
        "interrupted run goes on.",
    )
    simulate.add_argument("--config", type=Path, metavar="FILE", help="the federation's file")
    add_overrides(simulate)
    simulate.add_argument(
        "--output", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)"
    )
    simulate.add_argument("--json", action="store_true", help="print the summary as JSON")
    simulate.add_argument(
        "--print-task",
        action="store_true",
        help="print the task's terms and their hash, which sites approve, and stop",
    )
    add_verbose(simulate)

    def run(options: argparse.Namespace) -> int:
        from cli.simulate import run_simulate  # torch and Flower take seconds to import

        return run_simulate(options)

    simulate.set_defaults(run=run)


def _configure_logging(verbose: int) -> None:
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s %(message)s")
    logging.captureWarnings(capture=True)
    # torch says so of every Embedding under Opacus' hooks, where it is as it should be.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


if __name__ == "__main__":
    sys.exit(main())
