"""A federation whose certificates the organisation's own CA issues, as real processes."""

from pathlib import Path

from privacy.signing import write_private_file
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION
from tests.support.organisation import Organisation


def test_a_run_under_the_organisation_s_own_authority(tmp_path: Path) -> None:
    organisation = Organisation(tmp_path)
    certificate, key = organisation.files("north.hospital.example")
    deployment = Deployment(
        tmp_path / "deployed",
        federation=FEDERATION.replace("num_rounds = 3", "num_rounds = 1"),
        sites=("north",),
        settings=dict(line.split("=", 1) for line in organisation.overrides()),
        identities={"north": f'certificate = "{certificate}"\nkey = "{key}"'},
    )
    with deployment:
        deployment.set_up()
        certificate, key = organisation.files("ops.hospital.example")
        operator = deployment.coordinator / "operator"
        deployment.ok(
            "coordinator", "grant", "ops", "--folder", deployment.coordinator,
            "--role", "operator", "--certificate", certificate, "--output", operator,
        )  # fmt: skip
        write_private_file(operator / "operator.key", key.read_bytes())
        deployment.start_coordinator()
        deployment.status()
        deployment.enrol("north")
        deployment.start_client("north")
        deployment.wait_connected("north")
        assert deployment.wait_run(deployment.run())["server_round"] == 1
