"""kill -9 in the middle of 100 MB, both ways: the transfer begins anew, to the same weights."""

from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.support.command import simulate
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'
LIVENESS = {"liveness.heartbeat_seconds": "1.0", "liveness.silence_seconds": "6.0"}
# 25 million parameters of four bytes; a step on a record or two.
LARGE = (
    FEDERATION[: FEDERATION.index("[evaluation.holdout]")]
    .replace("num_rounds = 3", "num_rounds = 1")
    .replace("n_layer = 1\nn_head = 2\nn_embd = 16", "n_layer = 2\nn_head = 4\nn_embd = 1008")
    .replace("steps_per_round = 2", "steps_per_round = 1")
    .replace("global_batch_size = 8", "global_batch_size = 2")
    .replace("micro_batch_size = 4", 'micro_batch_size = 2\noptimizer = "sgd"')
    .replace("noise_multiplier = 1.0\nmax_grad_norm = 1.0", 'mode = "none"')
    .replace("round_timeout_seconds = 60.0", "round_timeout_seconds = 120.0")
    + '\n[[sites]]\nname = "north"\nnum_examples = 40\n'
    + '\n[simulation]\nsite_files = ["north.toml"]\n'
)
# Of about 100 chunks, near the middle: who dies where.
COORDINATOR = {
    "within the order's 100 MB": "coordinator.grids.link:Link._next_of_order@after#50",
    "within the reply's 100 MB": "core.wire.transfer:Receiver.feed@after#50",
}
CLIENT = {
    "within the order's 100 MB": "core.wire.transfer:Receiver.feed@after#50",
    "within the reply's 100 MB": "client.session_io:encode_frame@before#50",
}


@pytest.mark.timeout(300)
def test_killed_within_100_megabytes_both_ways(tmp_path: Path) -> None:
    policies = {"north": "allow_non_private = true"}
    config = write_federation(tmp_path / "in", federation=LARGE, policies=policies)
    digest = simulate(config, tmp_path / "simulated", TEST_NOISE)["weights_digest"]
    with Deployment(
        tmp_path / "deployed", federation=LARGE, sites=("north",), settings=LIVENESS, forked=True
    ) as deployment:
        deployment.deploy()
        deployment.program("north").kill()
        run_id = deployment.run()
        for name, point in CLIENT.items():
            deployment.start_client("north", kill_at=point).wait_killed(f"client {name}")
        deployment.program("coordinator").kill()
        deployment.start_client("north")
        for name, point in COORDINATOR.items():
            coordinator = deployment.start_coordinator(kill_at=point)
            coordinator.wait_killed(f"coordinator {name}")
        deployment.start_coordinator()
        run = deployment.wait_run(run_id)
        assert run["weights_digest"] == digest
        checkpoints = deployment.coordinator / "runs" / run_id / "checkpoints"
        sizes = [path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()]
        assert max(sizes) > 95e6
        with Ledger.open(deployment.folder / "north" / "ledger.sqlite", site="north") as ledger:
            debits = [entry for entry in ledger.entries() if entry.kind == "reserve"]
        # The first client had computed its reply and kept it: nobody computed it again.
        assert len(debits) == 1
