"""kill -9 at named places of a deployed run: it goes on by itself, to the very same weights.

Every process is real, and so is TLS. The test noise key makes the weights comparable: a round
that was applied twice, or with other weights, would show in the final digest.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.support.command import simulate
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'

# In the order of a round. A coordinator that goes on appends "resumed" before "attempt", and
# settles the round before; hence the numbers.
COORDINATOR_POINTS = {
    "before the first round": "coordinator.run_directory:RunDirectory.append@before#2",
    "before an attempt is written down": "coordinator.run_directory:RunDirectory.append@before#2",
    "after an attempt is written down": "coordinator.run_directory:RunDirectory.append@after#2",
    "after one site was asked": "coordinator.grids.remote:RemoteGrid._push@after#1",
    "after all sites were asked": "coordinator.grids.remote:RemoteGrid._push@after#3",
    "within an order's transfer": "coordinator.grids.link:Link._next_of_order@after#5",
    "when a site has its order": "coordinator.grids.dispatch:Dispatch.delivered@before#1",
    "within a reply's transfer": "core.wire.transfer:Receiver.feed@after#5",
    "before the first reply counts": "coordinator.grids.dispatch:Dispatch.answered@before#1",
    "after the first reply counts": "coordinator.grids.dispatch:Dispatch.answered@after#1",
    "after the last reply counts": "coordinator.grids.dispatch:Dispatch.answered@after#3",
    "before the checkpoint": "coordinator.rounds:save_state@before#1",
    "within the checkpoint, before it is on the disk": "core.checkpoints:_sync@before#1",
    "within the checkpoint, before it has its name": "core.checkpoints:_write@after#1",
    "within the checkpoint, before old ones go": "coordinator.state:prune_checkpoints@before#1",
    "after the checkpoint": "coordinator.rounds:save_state@after#1",
    "before the round is recorded": "coordinator.run_directory:RunDirectory.append@before#3",
    "after the round is recorded": "coordinator.run_directory:RunDirectory.append@after#3",
    "before the sites are told": "coordinator.grids.switchboard:Switchboard.settle@before#2",
    "after the sites are told": "coordinator.grids.switchboard:Switchboard.settle@after#2",
    "before the run counts as finished": "coordinator.service.run_queue:RunQueue.move@before#2",
}

# In an order in which no round loses its third attempt: a client that dies as a round ends may
# have been asked for the next one already.
CLIENT_POINTS = {
    "before the debit": "client.app:local_round@before#1",
    "after the debit": "privacy.ledger:Ledger.reserve@after#1",
    "before the receipt of its reply is read": "client.desk:Desk.received@before#1",
    "before training": "client.local_round:load_arrays@before#1",
    "after the receipt of its reply is read": "client.desk:Desk.received@after#1",
    "within training": "privacy.ledger:Ledger.settle@before#1",
    "before the reply is forgotten": "client.outbox:Outbox.settle@before#2",
    "after training, before the reply is kept": "client.outbox:Outbox.keep@before#1",
    "after the reply is forgotten": "client.outbox:Outbox.settle@after#2",
    "when the reply is kept": "client.outbox:Outbox.keep@after#1",
    "before the next round's kept reply is sent": "client.worker:Worker._answer@after#2",
    "within the reply's transfer": "client.session_io:encode_frame@before#8",
}
# Lost work is debited again; a kept reply is sent again, not computed again.
CLIENT_DEBITS = {1: 2, 2: 2, 3: 2, 4: 2, 5: 1, 6: 1}

LIVENESS = {"liveness.heartbeat_seconds": "1.0", "liveness.silence_seconds": "6.0"}


def federation(num_rounds: int) -> str:
    """Every site in every round: a lost one would show in the weights."""
    text = FEDERATION.replace("num_rounds = 3", f"num_rounds = {num_rounds}")
    return text.replace(
        "min_train_nodes = 1", "min_train_nodes = 3\nmin_available_nodes = 3"
    ).replace("round_timeout_seconds = 60.0", "round_timeout_seconds = 120.0")


def whole_run(folder: Path, text: str) -> str:
    """The final weights of the same run, simulated without a fault."""
    config = write_federation(folder / "in", federation=text)
    digest: str = simulate(config, folder / "simulated", TEST_NOISE)["weights_digest"]
    return digest


def debits(deployment: Deployment, site: str) -> Counter[int]:
    """How many debits a site's ledger has, by round."""
    path = deployment.folder / site / "ledger.sqlite"
    with Ledger.open(path, site=site) as ledger:
        return Counter(e.body["server_round"] for e in ledger.entries() if e.kind == "reserve")


def applied_rounds(deployment: Deployment, run_id: str) -> list[int]:
    """The rounds of the record, in its order."""
    record = deployment.coordinator / "runs" / run_id / "record.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [line["server_round"] for line in lines if line["kind"] == "round"]


@pytest.mark.timeout(900)
def test_a_coordinator_killed_anywhere_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    text = federation(num_rounds=16)
    digest = whole_run(tmp_path, text)
    with Deployment(
        tmp_path / "deployed", federation=text, settings=LIVENESS, forked=True
    ) as deployment:
        deployment.deploy()
        first = deployment.programs[0]
        run_id = deployment.run()
        first.kill()
        for name, point in COORDINATOR_POINTS.items():
            deployment.start_coordinator(kill_at=point).wait_killed(name)
        deployment.start_coordinator()
        run = deployment.wait_run(run_id)
        assert run["weights_digest"] == digest
        assert applied_rounds(deployment, run_id) == list(range(17))
        for site in deployment.sites:
            # Whatever the coordinator lost, the sites kept: nothing was trained twice.
            assert debits(deployment, site) == dict.fromkeys(range(1, 17), 1)


@pytest.mark.timeout(900)
def test_a_client_killed_anywhere_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    text = federation(num_rounds=6)
    digest = whole_run(tmp_path, text)
    with Deployment(
        tmp_path / "deployed", federation=text, settings=LIVENESS, forked=True
    ) as deployment:
        deployment.deploy()
        north = next(p for p in deployment.programs if p.name == "north")
        north.kill()
        run_id = deployment.run()
        for name, point in CLIENT_POINTS.items():
            deployment.start_client("north", kill_at=point).wait_killed(name)
        deployment.start_client("north")
        run = deployment.wait_run(run_id)
        assert run["weights_digest"] == digest
        assert applied_rounds(deployment, run_id) == list(range(7))
        assert debits(deployment, "north") == CLIENT_DEBITS
        for site in ("south", "west"):
            assert debits(deployment, site) == dict.fromkeys(range(1, 7), 1)
