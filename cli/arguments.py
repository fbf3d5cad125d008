"""Arguments that several commands share."""

import argparse
from pathlib import Path
from typing import Final

EMBEDDED: Final = Path(__file__).parent / "embedded" / "clinic" / "federation.toml"
"""The embedded example, for commands that are given no configuration."""


def add_overrides(
    parser: argparse.ArgumentParser, *, example: str = "federation.num_rounds=4"
) -> None:
    """``--set KEY=VALUE``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help=f"override a key of the file, such as {example}; may be repeated",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """``-v``."""
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more to stderr")
