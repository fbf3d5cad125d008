"""Coordinator and client die at the same time, and a quorum that does not come: the run ends with
a reason or goes on by itself, and to the very same weights."""

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.support.command import simulate
from tests.support.deployment import Deployment, Program, wait_for
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'
LIVENESS = {"liveness.heartbeat_seconds": "1.0", "liveness.silence_seconds": "6.0"}
ROUNDS = 8
EVERY_SITE = (
    FEDERATION.replace("num_rounds = 3", f"num_rounds = {ROUNDS}")
    .replace("min_train_nodes = 1", "min_train_nodes = 3\nmin_available_nodes = 3")
    .replace("round_timeout_seconds = 60.0", "round_timeout_seconds = 12.0")
)

# Where the first of the two dies; the other is killed as soon as the first is seen to be dead.
NORTH_FIRST = {
    "after the debit": "privacy.ledger:Ledger.reserve@after#1",
    "when the reply is kept": "client.outbox:Outbox.keep@after#1",
}
COORDINATOR_FIRST = {
    "after the first reply counts": "coordinator.grids.dispatch:Dispatch.answered@after#1",
    "within the checkpoint": "core.checkpoints:_write@after#1",
}


def kill_at_once(programs: Sequence[Program]) -> None:
    """kill -9, one signal right after the other."""
    for program in programs:
        if program.running:
            os.kill(program.process.pid, signal.SIGKILL)
    for program in programs:
        program.process.wait()


@pytest.mark.timeout(300)
def test_no_quorum_and_both_killed_at_once(tmp_path: Path) -> None:
    config = write_federation(tmp_path / "in", federation=EVERY_SITE)
    digest = simulate(config, tmp_path / "simulated", TEST_NOISE)["weights_digest"]
    with Deployment(
        tmp_path / "deployed", federation=EVERY_SITE, settings=LIVENESS, forked=True
    ) as deployment:
        deployment.deploy()
        run_id = _without_a_quorum_it_stops_by_name(deployment)
        deployment.start_client("west")
        deployment.wait_connected("west")
        deployment.ok("coordinator", "run", "--folder", deployment.coordinator, "--resume", run_id)
        deployment.wait_round(run_id, after=last_round(deployment, run_id))
        kill_at_once([deployment.program("coordinator"), deployment.program("north")])
        for name, point in NORTH_FIRST.items():
            coordinator = deployment.start_coordinator()
            deployment.start_client("north", kill_at=point).wait_killed(f"north {name}")
            coordinator.kill()
        for name, point in COORDINATOR_FIRST.items():
            north = deployment.start_client("north")
            coordinator = deployment.start_coordinator(kill_at=point)
            coordinator.wait_killed(f"coordinator {name}")
            north.kill()
        deployment.start_coordinator()
        deployment.start_client("north")
        assert deployment.wait_run(run_id)["weights_digest"] == digest
        lines = deployment.record(run_id)
        assert [n["server_round"] for n in lines if n["kind"] == "round"] == list(range(ROUNDS + 1))
        for site in deployment.sites:
            _check_debits(deployment, site)


def last_round(deployment: Deployment, run_id: str) -> int:
    """The newest round of the record."""
    return max(n["server_round"] for n in deployment.record(run_id) if n["kind"] == "round")


def _without_a_quorum_it_stops_by_name(deployment: Deployment) -> str:
    """A site leaves for good in a run that somebody follows."""
    command = ("coordinator", "run", "--folder", deployment.coordinator, "--follow", "--json")
    follower = deployment.start("follower", *command)
    run_id: str = wait_for("the run", lambda: deployment.status()["runs"] or None)[0]["run_id"]
    deployment.wait_round(run_id, after=0)
    deployment.program("west").stop()
    run = deployment.wait_run(run_id, "stopped")
    assert re.fullmatch(
        r"expected 3 (sites within 12 seconds, got 2; away: west|"
        r"usable replies in round \d, got 2: west refused \(site-stopping\))",
        run["reason"],
    )
    assert 0 < run["server_round"] < ROUNDS
    assert follower.process.wait(30) == 1
    assert '"state": "stopped"' in follower.tail()
    assert deployment.record(run_id)[-1]["kind"] == "stopped"
    return run_id


def _check_debits(deployment: Deployment, site: str) -> None:
    """Every round has a debit, and only lost work has two."""
    path = deployment.folder / site / "ledger.sqlite"
    with Ledger.open(path, site=site) as ledger:
        rounds = [e.body["server_round"] for e in ledger.entries() if e.kind == "reserve"]
    assert set(rounds) == set(range(1, ROUNDS + 1))
    assert all(rounds.count(n) <= 3 for n in rounds)
