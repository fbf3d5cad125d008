"""What privacy costs and what training together brings: one table over several runs.

    python examples/compare.py runs/sms-spam-data/federation.toml runs/sms-spam \
        --metrics accuracy f1 roc_auc

Runs `cloister simulate` on a federation with privacy, without, and for each site alone, all with
the same rounds and steps, and prints a Markdown table. Started again, it goes on where it stopped;
but a round that was cut off has been paid for, so that a site whose cap leaves no room for it
refuses the last one. Remove that run's folder to simulate it anew.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NOT_PRIVATE = ('privacy={mode="none"}', "simulation.allow_non_private=true")


class Variant(NamedTuple):
    """One run."""

    title: str
    folder: str
    overrides: tuple[str, ...]


def main() -> int:
    """Reads the arguments, runs every variant, prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare runs of a federation in one table.")
    parser.add_argument("config", type=Path, help="the federation's file")
    parser.add_argument("output", type=Path, help="folder of the runs")
    parser.add_argument("--metrics", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="every")
    parser.add_argument(
        "--set-without-privacy",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="plain",
        help="for the runs without privacy, such as their own learning rate",
    )
    options = parser.parse_args()
    try:
        rows = list(compare(options))
    except (OSError, ValueError, KeyError) as error:
        print(f"compare: expected a federation's file, got: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # it has said why
        return error.returncode
    for row in (["", "epsilon", *options.metrics], ["---"] * (2 + len(options.metrics)), *rows):
        print("| " + " | ".join(row) + " |")
    return 0


def compare(options: argparse.Namespace) -> Iterator[list[str]]:
    """The rows of the table; the first is the model before any training."""
    sites = [site["name"] for site in tomllib.loads(options.config.read_text())["sites"]]
    for number, variant in enumerate(variants(sites, tuple(options.plain))):
        overrides = [*options.every, *variant.overrides]
        summary = simulate(options.config, options.output / variant.folder, overrides)
        if number == 0:
            yield ["untrained", "0", *_values(summary["initial_metrics"], options.metrics)]
        yield [variant.title, _epsilon(summary), *_values(summary["metrics"], options.metrics)]


def variants(sites: list[str], plain: tuple[str, ...]) -> Iterator[Variant]:
    """All together and each site alone, with privacy and without."""
    yield Variant("all sites, private", "together-private", ())
    yield Variant("all sites, not private", "together-plain", (*NOT_PRIVATE, *plain))
    alone = {site: (f'simulation.only=["{site}"]', "strategy.min_train_nodes=1") for site in sites}
    for site, only in alone.items():
        yield Variant(f"{site} alone, not private", f"{site}-plain", (*only, *NOT_PRIVATE, *plain))
    for site, only in alone.items():
        yield Variant(f"{site} alone, private", f"{site}-private", only)


def simulate(config: Path, output: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of one run.

    Raises:
        CalledProcessError: It failed.
    """
    command = [sys.executable, "-m", "cli.main", "simulate", "--json"]
    command += ["--config", str(config), "--output", str(output)]
    for override in overrides:
        command += ["--set", override]
    print(f"compare: {output}", file=sys.stderr)
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(finished.stdout)
    return summary


def _values(metrics: dict[str, Any], names: list[str]) -> list[str]:
    return [f"{metrics[name]:.4g}" if name in metrics else "" for name in names]


def _epsilon(summary: dict[str, Any]) -> str:
    """The largest of a site that took part."""
    if not summary["private"]:
        return "none"
    return f"{max(site['epsilon'] for site in summary['sites'].values() if site['rounds']):.2f}"


if __name__ == "__main__":
    sys.exit(main())
