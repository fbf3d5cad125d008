"""The same two apps for `flwr run`; `[tool.flwr.app]` in pyproject.toml names them.

The engine imports this module in each of its processes. Configuration, model and data are opened
when a run asks for them, and kept for its next message.
"""

import os

from cli.main import OFFLINE

# Before a library that reads them is imported.
os.environ.update(OFFLINE)

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cli.arguments import EMBEDDED
from cli.simulated_sites import chosen_members, open_sites, simulation_of
from client.flower_engine import Settings, build_engine_client_app
from client.site import Site, Workshop
from coordinator.curves import write_curves
from coordinator.events import SilentEvents
from coordinator.flower_engine import build_engine_server_app
from coordinator.planning import leave_model, make_plan, training_device
from coordinator.rounds import RunPlan
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import FederationConfig, SimulationSection
from core.config_files import load_config
from core.config_sections import MemberSection
from core.errors import ConfigError
from core.messages import TrainingTerms


@dataclass(frozen=True)
class _Federation:
    """A federation's file, opened."""

    config: FederationConfig
    simulation: SimulationSection
    blueprint: Blueprint
    terms: TrainingTerms
    members: tuple[MemberSection, ...]
    device: torch.device


def _plan(run_config: Settings) -> tuple[RunPlan, Path]:
    federation, folder = _open(_path(run_config, "federation", EMBEDDED)), _folder(run_config)
    plan = make_plan(
        federation.config,
        federation.blueprint,
        federation.terms,
        federation.members,
        device=federation.device,
        events=_Results(federation, folder),
    )
    return plan, folder


def _node(run_config: Settings, node_config: Settings) -> tuple[Site, Workshop] | None:
    path = _path(run_config, "federation", EMBEDDED)
    federation, number = _open(path), node_config.get("partition-id")
    if not isinstance(number, int):
        raise ConfigError(
            f"expected the node's partition-id as a number, got {number!r}",
            hint="these apps run on Flower's simulation runtime",
        )
    if number >= len(federation.members):
        return None
    torch.set_num_threads(federation.simulation.threads_per_worker)
    name = federation.members[number].name
    return _site(path, _folder(run_config), name), _workshop(path)


class _Results(SilentEvents):
    """Leaves what `cloister simulate` leaves."""

    def __init__(self, federation: _Federation, folder: Path) -> None:
        self._federation, self._folder = federation, folder

    def run_finished(self, summary: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Writes model and curves."""
        federation, run_id = self._federation, summary["run_id"]
        leave_model(self._folder, federation.config, federation.blueprint, arrays, run_id=run_id)
        write_curves(self._folder)


@cache
def _open(path: Path) -> _Federation:
    config = load_config(FederationConfig, path)
    simulation = simulation_of(config, path)
    blueprint = make_blueprint(config)
    return _Federation(
        config,
        simulation,
        blueprint,
        training_terms(config, blueprint),
        tuple(chosen_members(config, simulation)),
        training_device(),
    )


@cache
def _workshop(path: Path) -> Workshop:
    federation = _open(path)
    return Workshop(federation.blueprint, federation.device)


@cache
def _site(path: Path, folder: Path, name: str) -> Site:
    opened = _open(path)
    member = [member for member in opened.members if member.name == name]
    sites = open_sites(
        opened.config, opened.simulation, member, opened.blueprint, opened.terms, folder
    )
    return sites[name]


def _folder(run_config: Settings) -> Path:
    return _path(run_config, "output", None)


def _path(run_config: Settings, key: str, default: Path | None) -> Path:
    """An absolute path: the engine's processes do not run where `flwr run` was called."""
    value = run_config.get(key) or default
    if value is None or not Path(str(value)).is_absolute():
        raise ConfigError(
            f"expected an absolute path as {key!r} of the run's configuration, got {value!r}",
            hint=f"flwr run . --run-config '{key}=\"/absolute/path\"'",
        )
    return Path(str(value))


server_app = build_engine_server_app(_plan)
client_app = build_engine_client_app(_node)
