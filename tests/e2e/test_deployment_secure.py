"""Secure aggregation between real processes over TLS, beside the simulation of the same run."""

from pathlib import Path

import pytest

from tests.support.command import simulate
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'
SECURE = FEDERATION + "\n[secure_aggregation]\nmax_update_norm = 10.0\n"
DISTRIBUTED = (
    SECURE.replace("steps_per_round = 2", "steps_per_round = 1")
    .replace("[privacy]", '[privacy]\nmode = "distributed"')
    .replace("[strategy]", '[strategy]\nname = "central"')
)


@pytest.mark.parametrize("federation", [SECURE, DISTRIBUTED], ids=["local", "distributed"])
def test_a_deployed_run_opens_the_sums_of_the_simulation(tmp_path: Path, federation: str) -> None:
    simulated = simulate(
        write_federation(tmp_path / "in", federation=federation), tmp_path / "out", TEST_NOISE
    )
    with Deployment(tmp_path / "deployed", federation=federation, forked=True) as deployment:
        deployment.deploy()
        run = deployment.wait_run(deployment.run())
        assert run["weights_digest"] == simulated["weights_digest"]
        rounds = [line for line in deployment.record(run["run_id"]) if line["kind"] == "round"]
        opened = [line["transcript"]["survivors"] for line in rounds[1:]]
        assert opened == [["north", "south", "west"]] * 3
        assert all(len(line["transcript"]["signatures"]) == 3 for line in rounds[1:])
