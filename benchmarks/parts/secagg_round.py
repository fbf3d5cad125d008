"""Rounds of a deployment of ten sites, with secure aggregation or without.

    secagg_round.py coordinator|sites secure|clear --rounds N --folder DIR

The coordinator makes identities in DIR, prints one JSON line when the sites may start and one with
the seconds of each round, and ends when its stdin is closed; the sites run until SIGTERM. All of a
deployment is there: servers, grid and round loop; services, sessions, policy, ledgers on the disk
and one step of training on a model of about a million parameters. There is no privacy: noise would
take the same time on both sides.
"""

import argparse
import json
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

# First: see its docstring.
from transport_federation import FEDERATION, found_federation, peak_rss, site_name

import torch  # isort: skip
from transport_coordinator import open_servers, wait
from transport_sites import open_service

from client.app import build_client_app
from client.identity_folder import IdentityFolder
from client.site import Site, Workshop
from client.standing import PinnedOnDisk
from coordinator.app import build_server_app, start
from coordinator.events import SilentEvents
from coordinator.grids.remote import RemoteGrid
from coordinator.planning import make_plan, replies_of
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import parse_config
from core.config_sections import DataSection, PolicySection
from core.coordinator_config import LivenessSection
from core.data.dataset import TokenizedDataset
from core.data.sources import open_source
from core.messages import TrainingTerms
from core.run_record import RoundResult
from core.site_config import IdentitySection
from privacy.ledger import Ledger

SITES = 10
RECORDS = 8


def config_of(mode: str, rounds: int) -> FederationConfig:
    """The federation's file; ``secure`` and ``clear`` differ in one section."""
    document: dict[str, Any] = {
        "federation": {"name": FEDERATION, "num_rounds": rounds},
        "model": {"vocab_size": 300, "max_seq_len": 16, "n_layer": 5, "n_head": 4, "n_embd": 128},
        "task": {"kind": "causal-lm"},
        "train": {"steps_per_round": 1, "global_batch_size": 1, "learning_rate": 0.01},
        "privacy": {"mode": "none"},
        "strategy": {"name": "fedavg", "min_train_nodes": SITES, "round_timeout_seconds": 120.0},
        "sites": [{"name": site_name(number), "num_examples": 1} for number in range(SITES)],
    }
    if mode == "secure":
        document["secure_aggregation"] = {"max_update_norm": 1000.0}
    return parse_config(FederationConfig, document, origin="benchmark")


class Rounds(SilentEvents):
    """How long each round took; each must have all sites in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def round_finished(self, result: RoundResult) -> None:
        """Notes it."""
        if result.server_round and len(result.used) != SITES:
            lines = [*result.refusals, *result.rejected]
            raise SystemExit(f"expected {SITES} sites in a round, got {len(result.used)}: {lines}")
        if result.server_round > 1:  # before, the sites build their models
            self.seconds.append(result.seconds)


def run_coordinator(mode: str, rounds: int, folder: Path) -> None:
    """One run."""
    config = config_of(mode, rounds + 1)
    blueprint = make_blueprint(config)
    events = Rounds()
    grid = RemoteGrid(LivenessSection())
    members = found_federation(folder, SITES)
    plan = make_plan(
        config,
        blueprint,
        training_terms(config, blueprint),
        sorted(config.sites, key=lambda member: member.name),
        device=torch.device("cpu"),
        events=events,
        signed_roster=lambda: members.roster,
    )
    servers = open_servers(grid, members)
    members.pin(servers.port, servers.enrolment_port)
    print(json.dumps({"ready": True}), flush=True)
    wait("all sites", lambda: len(grid.sites()) == SITES)
    nodes = {number: member.name for number, member in plan.roster.items()}
    grid.begin_run(nodes, replies_of(plan))
    wait("all nodes", lambda: len(list(grid.get_node_ids())) == SITES)
    start(build_server_app(plan, folder / "run"), grid)
    grid.end_run()
    parameters = sum(array.size for array in plan.initial_arrays.values())
    print(json.dumps({"seconds": events.seconds, "parameters": parameters}), flush=True)
    sys.stdin.read()  # until the sites have ended
    servers.stop()


def run_sites(mode: str, rounds: int, folder: Path) -> None:
    """All sites, a service each."""
    torch.set_num_threads(1)
    config = config_of(mode, rounds + 1)
    blueprint = make_blueprint(config)
    workshop = Workshop(blueprint, torch.device("cpu"))
    records = folder / "records.jsonl"
    lines = [json.dumps({"text": f"record {n} of a site"}) for n in range(RECORDS)]
    records.write_text("\n".join(lines) + "\n")
    terms = training_terms(config, blueprint)
    services = []
    for number in range(SITES):
        place = folder / site_name(number)
        site = open_site(place, records, blueprint, terms)
        app = build_client_app(lambda _, site=site: site, workshop)
        services.append(open_service(place, app, workshop.manifest))
    signal.signal(signal.SIGTERM, lambda *_: [service.stop() for service in services])
    threads = [threading.Thread(target=service.run) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"peak_rss": peak_rss()}), flush=True)


def open_site(place: Path, records: Path, blueprint: Blueprint, terms: TrainingTerms) -> Site:
    """One site, as ``cloister client start`` opens it."""
    identity = IdentityFolder(IdentitySection(folder=place))
    source = open_source(DataSection(format="jsonl", path=records), labels=())
    return Site(
        name=place.name,
        policy=PolicySection(
            max_epsilon=1.0, allow_non_private=True, allowed_tasks=(terms.digest(),)
        ),
        data=TokenizedDataset(source, blueprint.task),
        open_ledger=partial(Ledger.open, place / "ledger.sqlite", site=place.name),
        num_examples=1,
        standing=PinnedOnDisk(identity, identity.require_membership()),
    )


def main() -> None:
    """Runs one end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("coordinator", "sites"))
    parser.add_argument("mode", choices=("secure", "clear"))
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    run = run_coordinator if options.end == "coordinator" else run_sites
    run(options.mode, options.rounds, options.folder)


if __name__ == "__main__":
    main()
