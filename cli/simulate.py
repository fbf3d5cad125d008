"""`cloister simulate`: the coordinator and all sites in one process."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cli.progress import ProgressBar
from client.app import build_client_app
from client.site import Site, TestRandomness, Workshop, check_size, fresh_randomness
from coordinator.app import build_server_app, start
from coordinator.curves import write_curves
from coordinator.evaluation import HoldoutEvaluator
from coordinator.grids.in_process import InProcessGrid
from coordinator.rounds import RunPlan
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import (
    DataSection,
    EvaluationSection,
    FederationConfig,
    MemberSection,
    PolicySection,
    SimulationSection,
    SiteConfig,
)
from core.config_files import load_config
from core.data.dataset import TokenizedDataset
from core.data.partition import partition
from core.data.records import RecordSource
from core.data.sources import open_source
from core.errors import ConfigError
from core.messages import TrainingTerms
from core.model_folder import save_model
from core.parameters import load_arrays, to_arrays
from privacy.ledger import Ledger

EMBEDDED = Path(__file__).parent / "embedded" / "clinic" / "federation.toml"


def run_simulate(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code.

    Raises:
        CloisterError: Whatever keeps the run from its end.
    """
    config = load_config(FederationConfig, options.config or EMBEDDED, options.overrides)
    simulation = config.simulation
    if simulation is None:
        raise ConfigError(
            f"expected a section [simulation] in {options.config}, got none",
            hint="name a site file for each site, or a data file to cut",
        )
    blueprint = make_blueprint(config)
    terms = training_terms(config, blueprint)
    if options.print_task:
        json.dump({"task": terms.digest(), "terms": terms.model_dump(mode="json")}, sys.stdout)
        sys.stdout.write("\n")
        return 0
    folder = options.output or Path("runs") / config.federation.name
    members = _members(config, simulation)
    sites = _open_sites(config, simulation, members, blueprint, terms, folder)
    summary = _train(config, simulation, members, sites, blueprint, terms, folder)
    write_curves(folder)
    _print_summary(summary, folder, as_json=options.json)
    return 0


def _members(config: FederationConfig, simulation: SimulationSection) -> list[MemberSection]:
    """The members to simulate, by name."""
    names = {site.name for site in config.sites}
    if unknown := sorted(set(simulation.only) - names):
        raise ConfigError(
            f"expected simulation.only to name sites of the federation, got {', '.join(unknown)}",
            hint=f"the sites are {', '.join(sorted(names)[:8])}",
        )
    chosen = set(simulation.only) or names
    return sorted((s for s in config.sites if s.name in chosen), key=lambda s: s.name)


def _open_sites(
    config: FederationConfig,
    simulation: SimulationSection,
    members: list[MemberSection],
    blueprint: Blueprint,
    terms: TrainingTerms,
    folder: Path,
) -> dict[str, Site]:
    """Opens every site's data, so that whatever is wrong with it shows before training."""
    if simulation.partition is not None:
        _check_public(config.evaluation, [simulation.partition.data])
        parts = _cut(config, simulation)
        policies = dict.fromkeys(parts, simulation.partition.policy)
        ledgers = {name: Path("ledger.sqlite") for name in parts}
    else:
        files = [load_config(SiteConfig, path) for path in simulation.site_files]
        by_name = {file.site.name: file for file in files}
        if missing := sorted({m.name for m in members} - set(by_name)):
            raise ConfigError(
                f"expected a site file for each site, got none for {', '.join(missing)}",
                hint="add it to simulation.site_files, or name others in simulation.only",
            )
        labels = config.task.labels
        chosen = [by_name[member.name] for member in members]
        _check_public(config.evaluation, [file.data for file in chosen])
        parts = {file.site.name: open_source(file.data, labels=labels) for file in chosen}
        policies = {file.site.name: file.policy for file in chosen}
        ledgers = {file.site.name: file.ledger.path for file in chosen}
    sites = {
        member.name: _site(
            member,
            TokenizedDataset(parts[member.name], blueprint.task),
            _approve(policies[member.name], simulation, terms),
            folder / "sites" / member.name / ledgers[member.name],
            simulation,
        )
        for member in members
    }
    if terms.privacy.mode != "none":
        for site in sites.values():
            check_size(site)
    return sites


def _check_public(evaluation: EvaluationSection, private: Sequence[DataSection]) -> None:
    """Metrics of the holdout leave without noise."""
    public = evaluation.holdout
    if public and any((d.path, d.hospital) == (public.path, public.hospital) for d in private):
        raise ConfigError(
            "expected a public holdout, got the records that a site trains on",
            hint="evaluation.holdout needs records of its own; its metrics are not private",
        )


def _cut(config: FederationConfig, simulation: SimulationSection) -> dict[str, RecordSource]:
    """One data file, cut into all the federation's sites."""
    cut = simulation.partition
    if cut is None:
        raise ConfigError("expected [simulation.partition], got none")
    source = open_source(cut.data, labels=config.task.labels)
    names = sorted(site.name for site in config.sites)
    parts = partition(
        source,
        len(names),
        scheme=cut.scheme,
        alpha=cut.alpha,
        column=cut.column,
        seed=config.federation.seed,
    )
    return dict(zip(names, parts, strict=True))


def _approve(
    policy: PolicySection, simulation: SimulationSection, terms: TrainingTerms
) -> PolicySection:
    """What whoever simulates a site approves in its name; a list of tasks in its file stands."""
    approved = {
        "allowed_tasks": policy.allowed_tasks or (terms.digest(),),
        "allow_non_private": policy.allow_non_private or simulation.allow_non_private,
        "allow_test_noise": policy.allow_test_noise or simulation.test_noise_key is not None,
    }
    return policy.model_copy(update=approved)


def _site(
    member: MemberSection,
    data: TokenizedDataset,
    policy: PolicySection,
    ledger: Path,
    simulation: SimulationSection,
) -> Site:
    key = simulation.test_noise_key
    return Site(
        name=member.name,
        policy=policy,
        data=data,
        open_ledger=partial(Ledger.open, ledger, site=member.name),
        randomness=fresh_randomness if key is None else TestRandomness(bytes.fromhex(key)),
        num_examples=member.num_examples,
    )


def _train(
    config: FederationConfig,
    simulation: SimulationSection,
    members: list[MemberSection],
    sites: Mapping[str, Site],
    blueprint: Blueprint,
    terms: TrainingTerms,
    folder: Path,
) -> Mapping[str, Any]:
    """Runs or resumes the rounds, and leaves the model in the run's folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    app = build_client_app(
        lambda context: sites[str(context.node_config["site"])], Workshop(blueprint, device)
    )
    nodes = {number: {"site": member.name} for number, member in enumerate(members, start=1)}
    with ProgressBar() as progress:
        plan = RunPlan(
            config=config,
            terms=terms,
            initial_arrays=to_arrays(blueprint.build()),
            roster=dict(enumerate(members, start=1)),
            evaluator=_evaluator(config, blueprint, device),
            events=progress,
        )
        with InProcessGrid(
            app,
            nodes,
            workers=simulation.workers,
            threads_per_worker=simulation.threads_per_worker,
        ) as grid:
            start(build_server_app(plan, folder), grid)
    model = blueprint.build()
    load_arrays(model, dict(progress.final_arrays))
    save_model(folder / "model", model, config, blueprint, run_id=progress.summary["run_id"])
    return progress.summary


def _evaluator(
    config: FederationConfig, blueprint: Blueprint, device: torch.device
) -> HoldoutEvaluator | None:
    section = config.evaluation
    if section.holdout is None:
        return None
    source = open_source(section.holdout, labels=config.task.labels)
    return HoldoutEvaluator(
        model=blueprint.build().to(device),
        task=blueprint.task,
        holdout=TokenizedDataset(source, blueprint.task),
        max_examples=section.max_examples,
        batch_size=section.batch_size,
    )


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
