"""The apps of `flwr run`, called as Flower's engine calls them, without the engine."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from cli.flower_apps import client_app, server_app
from coordinator.grids.in_process import InProcessGrid
from core.errors import CloisterError, ConfigError, RunError
from tests.support.command import simulate
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

CONFIG = FEDERATION + f'test_noise_key = "{TEST_KEY}"\n'


def run(run_config: Mapping[str, str], nodes: int = 3) -> None:
    def node(message: Message, context: Context) -> Message:
        context.run_config = dict(run_config)
        return client_app(message, context)

    # Not the order of the sites: an engine's numbers say nothing.
    configs = {90 - number: {"partition-id": number} for number in range(nodes)}
    with InProcessGrid(node, configs, workers=2) as grid:
        context = Context(
            run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)
        )
        server_app(grid, context)


def test_the_same_weights_as_the_simulation_and_the_same_files(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in", federation=CONFIG)
    expected = simulate(config, tmp_path / "simulated")
    run({"federation": str(config), "output": str(tmp_path / "out")}, nodes=4)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["weights_digest"] == expected["weights_digest"]
    for name in ("model/model.safetensors", "curves.html", "sites/west/ledger.sqlite"):
        assert (tmp_path / "out" / name).exists()


def test_broken_data_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in", federation=CONFIG)
    (tmp_path / "in/south.jsonl").write_text("no json\n")
    with pytest.raises(RunError, match="expected the name of node 89's site, got 'data'"):
        run({"federation": str(config), "output": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run_config", "key"),
    [
        ({"federation": "", "output": ""}, "output"),
        ({"federation": "", "output": "runs/here"}, "output"),
        ({"federation": "federation.toml", "output": "/tmp/out"}, "federation"),  # noqa: S108
    ],
)
def test_a_path_that_is_not_absolute(run_config: Mapping[str, str], key: str) -> None:
    with pytest.raises(ConfigError, match=f"expected an absolute path as '{key}'") as raised:
        run(run_config)
    assert raised.value.hint.startswith(f"flwr run . --run-config '{key}=")


def test_a_node_of_another_runtime_is_refused(tmp_path: Path) -> None:
    def node(message: Message, context: Context) -> Message:
        context.run_config = {"federation": "", "output": str(tmp_path)}
        return client_app(message, context)

    with InProcessGrid(node, {1: {"site": "mercy"}}, workers=1) as grid:
        message = grid.create_message(RecordDict(), "query", 1, "")
        (reply,) = grid.send_and_receive([message])
    assert dict(reply.content["node"]) == {"error": "config"}  # type: ignore[call-overload]


def test_a_federation_without_a_section_simulation(tmp_path: Path) -> None:
    head = FEDERATION.partition("[simulation]")[0]
    config = write_federation(tmp_path / "in", federation=head)
    with pytest.raises(CloisterError, match=r"expected a section \[simulation\] in .*got none"):
        run({"federation": str(config), "output": str(tmp_path / "out")})
