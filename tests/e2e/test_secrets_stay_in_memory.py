"""A deployed run under secure aggregation, one site killed within it: what the sites' processes
drew, agreed on, derived, dealt, masked and trained is in no file of the product and in no log.
"""

import os
from functools import partial
from pathlib import Path

from tests.support.canaries import KINDS, buried, bury, files_below, find, forms
from tests.support.deployment import Deployment
from tests.support.federation import FEDERATION, SITES

SECURE = (
    FEDERATION.replace("min_train_nodes = 1", "min_train_nodes = 3\nmin_available_nodes = 3")
    + "\n[secure_aggregation]\nmax_update_norm = 20.0\n"
)


def core_limits(pid: int) -> str:
    """Soft and hard limit of the size of a process's core files."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return " ".join(next(x for x in lines if x.startswith("Max core file size")).split()[4:6])


def test_no_secret_of_a_site_is_on_any_disk(tmp_path: Path) -> None:
    side = tmp_path / "side"
    side.mkdir()
    with Deployment(
        tmp_path / "deployed",
        federation=SECURE,
        forked=True,
        test_noise=False,
        prepare=[partial(bury, side)],
        verbose=True,
    ) as deployment:
        deployment.deploy()
        deployment.program("north").kill()
        run_id = deployment.run()
        point = "client.secure_round:SecureRound.mask@after#1"
        deployment.start_client("north", kill_at=point).wait_killed("its mark")
        deployment.start_client("north")
        deployment.wait_run(run_id)
        for name in ("coordinator", *SITES):
            assert core_limits(deployment.program(name).process.pid) == "0 0"
        for name in ("coordinator", *SITES):
            program = deployment.program(name)
            assert program.stop() == 0, program.tail()
        secrets = buried(side)
        assert {kind for kind, _ in secrets} == set(KINDS)
        # Seven attempts' worth at least, of three sites.
        assert len(secrets) > 500
        files = files_below(deployment.folder)
        assert {"coordinator/state.sqlite", "north/ledger.sqlite"} <= set(files)
        assert any(name.endswith("record.jsonl") for name in files)
        assert any("checkpoints" in name for name in files)
        assert any(name.startswith("south-") and b"answers round" in files[name] for name in files)
        assert find(secrets, files) == set()


def test_the_search_finds_a_secret_in_each_of_its_forms(tmp_path: Path) -> None:
    """The test above can fail."""
    rng_bytes = [os.urandom(size) for size in (32, 66, 64)]
    for secret in rng_bytes:
        planted = list(forms(secret))
        for number, form in enumerate(planted):
            padded = os.urandom(1000 + number) + form + os.urandom(31)
            (tmp_path / f"{len(secret)}-{number}").write_bytes(padded)
    found = find([("key", secret) for secret in rng_bytes], files_below(tmp_path))
    assert found == {f"key in {path.name}" for path in tmp_path.iterdir()}
    others = [("key", os.urandom(32))]
    assert find(others, files_below(tmp_path)) == set()
