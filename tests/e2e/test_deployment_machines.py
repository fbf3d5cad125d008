"""Machines in trouble: a clock that is a day off, a disk that is full or cannot be written. What
happens is refused by name, nothing is released without a debit, and it goes on afterwards."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.support.clocks import shift
from tests.support.deployment import Deployment, Program
from tests.support.disks import fill, read_only_disk, seen_by, small_disk
from tests.support.federation import FEDERATION
from tests.support.forked import run_apart

ENDLESS = (
    FEDERATION.replace("num_rounds = 3", "num_rounds = 900").replace(
        "min_train_nodes = 1", "min_train_nodes = 2"
    )
    + "\n[evaluation]\nevery = 900\n"
)
DAY = timedelta(days=1)
SITE_DISK, RUNS_DISK = 3 << 20, 6 << 20


@pytest.fixture
def own_disks(tmp_path: Path) -> None:
    """Skips where a process may not have mounts of its own."""
    (tmp_path / "probe").mkdir()
    log = tmp_path / "probe.log"
    if run_apart(partial(small_disk, tmp_path / "probe", 1 << 20), log) != 0:
        pytest.skip(f"no mount may be made here: {log.read_text().splitlines()[-1]}")


@pytest.mark.timeout(300)
def test_a_clock_that_is_a_day_off_is_refused_by_name(tmp_path: Path) -> None:
    with Deployment(
        tmp_path / "deployed", federation=ENDLESS, sites=("north",), forked=True
    ) as deployment:
        deployment.set_up()
        coordinator = deployment.start_coordinator()
        deployment.status()
        deployment.enrol("north")
        for ahead, why in (
            (DAY, "expected clocks at most 5 minutes apart"),
            (-DAY, "got one that is not yet valid"),
        ):
            north = deployment.start_client("north", prepare=[partial(shift, ahead)])
            north.wait_logged(why, 30)
            north.kill()
        coordinator.kill()
        north = deployment.start_client("north")
        coordinator = deployment.start_coordinator(prepare=[partial(shift, DAY)])
        north.wait_logged("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", 30)
        assert "opened a session" not in coordinator.log.read_text()
        coordinator.kill()
        coordinator = deployment.start_coordinator(prepare=[partial(shift, -DAY)])
        assert coordinator.process.wait(30) == 1
        assert "expected an issuing authority that is valid at" in coordinator.tail()
        assert "hint: check the clock" in coordinator.tail()
        deployment.start_coordinator()
        deployment.wait_connected("north")
        with Ledger.open(deployment.folder / "north" / "ledger.sqlite", site="north") as ledger:
            assert len(ledger.entries()) == 1


@pytest.mark.usefixtures("own_disks")
@pytest.mark.timeout(300)
def test_full_and_read_only_disks(tmp_path: Path) -> None:
    with Deployment(tmp_path / "deployed", federation=ENDLESS, forked=True) as deployment:
        deployment.set_up()
        runs = deployment.coordinator / "runs"
        runs.mkdir(exist_ok=True)
        _nothing_starts_on_a_disk_that_cannot_be_written(
            lambda: deployment.start_coordinator(
                prepare=[partial(read_only_disk, deployment.coordinator)]
            )
        )
        coordinator = deployment.start_coordinator(prepare=[partial(small_disk, runs, RUNS_DISK)])
        deployment.status()
        deployment.runs = seen_by(coordinator.process.pid, runs)
        for site in deployment.sites:
            deployment.enrol(site)
        for site in ("south", "west"):
            deployment.start_client(site)
        home = deployment.folder / "north"
        _nothing_starts_on_a_disk_that_cannot_be_written(
            lambda: deployment.start_client("north", prepare=[partial(read_only_disk, home)])
        )
        deployment.start_client("north", prepare=[partial(small_disk, home, SITE_DISK)])
        deployment.wait_connected(*deployment.sites)
        run_id = deployment.run()
        deployment.wait_round(run_id, lambda line: len(line["used"]) == 3)
        _a_site_without_room_releases_nothing(deployment, run_id)
        _a_coordinator_without_room_says_so_and_goes_on_later(deployment, run_id)


def _nothing_starts_on_a_disk_that_cannot_be_written(start: Callable[[], Program]) -> None:
    program = start()
    assert program.process.wait(60) == 1, program.tail()
    text = program.tail()
    assert "Read-only file system" in text
    assert "Traceback" not in text


def _a_site_without_room_releases_nothing(deployment: Deployment, run_id: str) -> None:
    north = deployment.program("north")
    home = seen_by(north.process.pid, deployment.folder / "north")
    full = fill(home)
    refused = deployment.wait_round(
        run_id, lambda line: [no["site"] for no in line["refusals"]] == ["north"]
    )
    assert refused["refusals"][0]["code"] in ("ledger", "vault", "round-failed")
    assert refused["used"] == ["south", "west"]
    assert "disk" in north.tail()
    full.unlink()
    deployment.wait_round(
        run_id, lambda line: "north" in line["used"], after=refused["server_round"]
    )
    _check_debits(deployment, run_id, home)


def _check_debits(deployment: Deployment, run_id: str, home: Path) -> None:
    """Whatever was used has its debit; read from a copy, while the client stands still."""
    north = deployment.program("north")
    rounds = [line for line in deployment.record(run_id) if line["kind"] == "round"]
    used = {line["server_round"] for line in rounds if "north" in line["used"]}
    north.freeze()
    copy = deployment.folder / "copy"
    copy.mkdir(mode=0o700)
    for path in home.glob("ledger*"):
        shutil.copy2(path, copy)
    north.thaw()
    with Ledger.open(copy / "ledger.sqlite", site="north") as ledger:
        debited = {e.body["server_round"] for e in ledger.entries() if e.kind == "reserve"}
    assert used <= debited


def _a_coordinator_without_room_says_so_and_goes_on_later(
    deployment: Deployment, run_id: str
) -> None:
    assert deployment.runs is not None
    full = fill(deployment.runs)
    run = deployment.wait_run(run_id, "failed")
    assert "No space left on device" in run["reason"]
    assert deployment.status()["runs"][-1]["state"] == "failed"
    full.unlink()
    before = max(n["server_round"] for n in deployment.record(run_id) if n["kind"] == "round")
    deployment.ok("coordinator", "run", "--folder", deployment.coordinator, "--resume", run_id)
    deployment.wait_round(run_id, lambda line: len(line["used"]) == 3, after=before)
    rounds = [n["server_round"] for n in deployment.record(run_id) if n["kind"] == "round"]
    assert rounds == list(range(len(rounds)))
