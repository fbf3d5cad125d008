"""Three organisations as real processes over real TLS, beside the simulation of the same run."""

from pathlib import Path

from tests.support.command import simulate
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, TEST_KEY, write_federation

TEST_NOISE = f'simulation.test_noise_key="{TEST_KEY}"'


def test_a_deployed_run_gives_the_weights_of_the_simulation(tmp_path: Path) -> None:
    whole = simulate(write_federation(tmp_path / "in"), tmp_path / "simulated", TEST_NOISE)
    text = FEDERATION.replace("min_train_nodes = 1", "min_train_nodes = 3")
    with Deployment(tmp_path / "deployed", federation=text) as deployment:
        deployment.deploy()
        run = deployment.wait_run(deployment.run())
        assert run["weights_digest"] == whole["weights_digest"]
        output = tmp_path / "exported"
        deployment.ok(
            "coordinator", "export", run["run_id"],
            "--folder", deployment.coordinator, "--output", output,
        )  # fmt: skip
        assert (output / "model" / "model.safetensors").exists()
        for program in reversed(deployment.programs):
            assert program.stop() == 0, program.tail()
