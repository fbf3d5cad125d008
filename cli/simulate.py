"""`cloister simulate`: the coordinator and all sites in one process."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.arguments import EMBEDDED
from cli.progress import ProgressBar
from cli.simulated_sites import (
    SimulatedFederation,
    chosen_members,
    open_sites,
    simulation_of,
)
from client.app import build_client_app
from client.site import Site, Workshop
from coordinator.app import build_server_app, start
from coordinator.curves import write_curves
from coordinator.grids.in_process import InProcessGrid
from coordinator.planning import leave_model, make_plan, training_device
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import FederationConfig, SimulationSection
from core.config_files import load_config
from core.config_sections import MemberSection
from core.messages import TrainingTerms
from core.wire.documents import SignedRoster


def run_simulate(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code.

    Raises:
        CloisterError: Whatever keeps the run from its end.
    """
    config = load_config(FederationConfig, options.config or EMBEDDED, options.overrides)
    simulation = simulation_of(config, options.config)
    blueprint = make_blueprint(config)
    terms = training_terms(config, blueprint)
    if options.print_task:
        json.dump({"task": terms.digest(), "terms": terms.model_dump(mode="json")}, sys.stdout)
        sys.stdout.write("\n")
        return 0
    folder = options.output or Path("runs") / config.federation.name
    members = chosen_members(config, simulation)
    federation = SimulatedFederation.of(config.federation.name, members)
    sites = open_sites(config, simulation, members, blueprint, terms, folder, federation)
    roster = federation.roster
    summary = _train(config, simulation, members, sites, blueprint, terms, folder, roster)
    write_curves(folder)
    _print_summary(summary, folder, as_json=options.json)
    return 0


def _train(
    config: FederationConfig,
    simulation: SimulationSection,
    members: list[MemberSection],
    sites: Mapping[str, Site],
    blueprint: Blueprint,
    terms: TrainingTerms,
    folder: Path,
    roster: SignedRoster,
) -> Mapping[str, Any]:
    """Runs or resumes the rounds, and leaves the model in the run's folder."""
    device = training_device()
    app = build_client_app(
        lambda context: sites[str(context.node_config["site"])], Workshop(blueprint, device)
    )
    nodes = {number: {"site": member.name} for number, member in enumerate(members, start=1)}
    with ProgressBar() as progress:
        plan = make_plan(
            config,
            blueprint,
            terms,
            members,
            device=device,
            events=progress,
            signed_roster=lambda: roster,
        )
        with InProcessGrid(
            app,
            nodes,
            workers=simulation.workers,
            threads_per_worker=simulation.threads_per_worker,
        ) as grid:
            start(build_server_app(plan, folder), grid)
    run_id = progress.summary["run_id"]
    leave_model(folder, config, blueprint, progress.final_arrays, run_id=run_id)
    return progress.summary


def _print_summary(summary: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        json.dump(summary, sys.stdout, indent=2, sort_keys=True)
        sys.stdout.write("\n")
        return
    console = Console()
    table = Table(title="sites", title_justify="left")
    for heading in ("site", "public size", "rounds", "refused", "epsilon", "delta"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for name, row in summary["sites"].items():
        epsilon = "" if row["private"] is None else "unbounded"
        if row["epsilon"] is not None:
            epsilon = f"{row['epsilon']:.3f}"
        delta = "" if row["delta"] is None else f"{row['delta']:g}"
        refused = str(row["refusals"] + row["rejected"])
        table.add_row(name, str(row["num_examples"]), str(row["rounds"]), refused, epsilon, delta)
    console.print(table)
    for name, value in (summary["metrics"] or {}).items():
        before = (summary["initial_metrics"] or {}).get(name)
        if isinstance(value, float) and isinstance(before, float):
            console.print(f"{name}: {before:.4f} before training, {value:.4f} after")
    if not summary["private"]:
        console.print("[bold]NOT PRIVATE:[/bold] this run gives no privacy guarantee")
    console.print(f"model, record, ledgers and curves: {folder}")
