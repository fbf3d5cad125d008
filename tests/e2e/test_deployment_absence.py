"""Sites that are away, are stopped or are shut out while a run goes on, and a coordinator that
is stopped: real processes over real TLS, with the liveness that a user gets."""

import contextlib
import json
import os
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from tests.support.command import cloister
from tests.support.deployment import Deployment, wait_for
from tests.support.federation import FEDERATION
from tests.support.forked import run_apart
from tests.support.lookups import foreign_peers, spy

# A run that is still going on whatever the tests do to it.
ENDLESS = (
    FEDERATION.replace("num_rounds = 3", "num_rounds = 900").replace(
        "min_train_nodes = 1", "min_train_nodes = 2"
    )
    + "\n[evaluation]\nevery = 900\n"
)
# Noticed: a status, a log and a record say so.
AWAY_SECONDS = 20.0


def silence(deployment: Deployment, site: str) -> bool:
    """Whether the status says that a site is not there."""
    report = deployment.try_status()
    sites = {s["name"]: s["connected"] for s in report["sites"]} if report else {}
    return sites.get(site) is False


def last_round(deployment: Deployment, run_id: str) -> int:
    """The newest round of the record."""
    rounds = [line["server_round"] for line in deployment.record(run_id) if line["kind"] == "round"]
    return max(rounds, default=0)


def check_each_round_once(deployment: Deployment, run_id: str) -> None:
    """No round was applied twice, and none is missing."""
    rounds = [line["server_round"] for line in deployment.record(run_id) if line["kind"] == "round"]
    assert rounds == list(range(len(rounds)))


@pytest.mark.timeout(300)
def test_sites_leave_and_return_and_the_run_goes_on(tmp_path: Path) -> None:
    lookups = tmp_path / "lookups.log"
    lookups.touch()
    with Deployment(
        tmp_path / "deployed", federation=ENDLESS, forked=True, prepare=[partial(spy, lookups)]
    ) as deployment:
        deployment.deploy()
        run_id = deployment.run()
        deployment.wait_round(run_id, lambda line: len(line["used"]) == 3)
        _a_frozen_site_is_noticed_and_returns(deployment, run_id)
        _a_stopped_site_ends_by_name_and_returns(deployment, run_id)
        _a_stopped_coordinator_goes_on_with_the_run(deployment, run_id)
        _an_auditor_does_not_steer(deployment, run_id)
        _a_revoked_site_is_cut_and_the_run_goes_on(deployment, run_id)
        deployment.ok("coordinator", "stop", "--folder", deployment.coordinator, "--run", run_id)
        stopped = deployment.wait_run(run_id, "stopped")
        assert "stopped by" in stopped["reason"]
        check_each_round_once(deployment, run_id)
        for program in deployment.programs:
            if program.running:
                assert foreign_peers(program.process.pid) == []
    # The monitoring's address, at least, was looked up; and nothing but this machine was.
    seen = {line.split(" ", 1)[1] for line in lookups.read_text().splitlines()}
    assert "127.0.0.1" in seen
    assert [host for host in seen if "127.0.0.1" not in host] == []


def test_the_spy_sees_a_look_up_and_a_foreign_peer(tmp_path: Path) -> None:
    """The test above can fail."""
    log = tmp_path / "lookups.log"
    assert run_apart(partial(_look_up, log), tmp_path / "out.log") == 0
    assert "socket.getaddrinfo 198.51.100.7" in log.read_text()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, contextlib.suppress(OSError):
        peer.connect(("198.51.100.7", 9))  # no packet is sent; without a route, nothing to see
        assert foreign_peers(os.getpid()) == ["udp 076433C6:0009"]


def _look_up(log: Path) -> None:
    spy(log)
    socket.getaddrinfo("198.51.100.7", 9)


def _a_frozen_site_is_noticed_and_returns(deployment: Deployment, run_id: str) -> None:
    north = deployment.program("north")
    before = last_round(deployment, run_id)
    north.freeze()
    began = time.monotonic()
    wait_for("north to be away", lambda: silence(deployment, "north") or None, AWAY_SECONDS)
    named = deployment.wait_round(
        run_id,
        lambda line: [bad["site"] for bad in line["rejected"]] == ["north"],
        after=before,
        seconds=AWAY_SECONDS - (time.monotonic() - began),
    )
    assert named["rejected"][0]["code"] == "client-error"
    assert "the site is away" in named["rejected"][0]["message"]
    assert named["used"] == ["south", "west"]
    deployment.program("coordinator").wait_logged("nothing was heard of north for 15 seconds")
    without = deployment.wait_round(run_id, after=named["server_round"])
    assert (without["used"], without["rejected"]) == (["south", "west"], [])
    north.thaw()
    again = without["server_round"]
    deployment.wait_round(run_id, lambda line: "north" in line["used"], after=again)


def _a_stopped_site_ends_by_name_and_returns(deployment: Deployment, run_id: str) -> None:
    assert deployment.program("west").stop() == 0, deployment.program("west").tail()
    gone = deployment.wait_round(
        run_id,
        lambda line: line["used"] == ["north", "south"],
        after=last_round(deployment, run_id) - 1,
    )
    # In the round in which it left, it answered or said why not, or was gone before it was asked.
    for line in deployment.record(run_id):
        if line["kind"] == "round" and "west" not in line["used"]:
            reasons = [no["code"] for no in line["refusals"] if no["site"] == "west"]
            reasons += [bad["message"] for bad in line["rejected"] if bad["site"] == "west"]
            for reason in reasons:
                assert reason.endswith(("site-stopping", "the site is unknown or away")), reasons
    deployment.start_client("west")
    deployment.wait_round(run_id, lambda line: "west" in line["used"], after=gone["server_round"])


def _a_stopped_coordinator_goes_on_with_the_run(deployment: Deployment, run_id: str) -> None:
    coordinator = deployment.program("coordinator")
    assert coordinator.stop() == 0, coordinator.tail()
    before = last_round(deployment, run_id)
    deployment.start_coordinator()
    after = deployment.wait_round(run_id, after=before)
    assert after["used"] == ["north", "south", "west"]


def _an_auditor_does_not_steer(deployment: Deployment, run_id: str) -> None:
    folder, ann = deployment.coordinator, deployment.folder / "ann"
    deployment.ok(
        "coordinator", "grant", "ann", "--folder", folder, "--role", "auditor", "--output", ann
    )
    as_ann = ("--folder", folder, "--identity", ann)
    status = json.loads(deployment.ok("coordinator", "status", *as_ann, "--json").stdout)
    assert [run["run_id"] for run in status["runs"]] == [run_id]
    for command in (("run",), ("stop", "--run", run_id), ("stop",)):
        done = cloister("coordinator", *command, *as_ann)
        assert done.returncode == 1
        assert "identity" in done.stderr
    assert [run["state"] for run in deployment.status()["runs"]] == ["running"]
    deployment.program("coordinator").wait_logged("expected an operator")


def _a_revoked_site_is_cut_and_the_run_goes_on(deployment: Deployment, run_id: str) -> None:
    before = last_round(deployment, run_id)
    began = time.monotonic()
    deployment.ok("coordinator", "revoke", "south", "--folder", deployment.coordinator)
    wait_for("south to be cut", lambda: silence(deployment, "south") or None, 10)
    after = deployment.wait_round(
        run_id, lambda line: line["used"] == ["north", "west"], after=before
    )
    assert time.monotonic() - began < 60
    # Of the rounds that began after it was cut, it is in none, and nobody waits for it.
    later = deployment.wait_round(run_id, after=after["server_round"] + 2)
    for line in deployment.record(run_id):
        if line["kind"] == "round" and line["server_round"] > after["server_round"]:
            assert line["used"] == ["north", "west"], later
    deployment.program("south").wait_logged("got one that is revoked")
    with Ledger.open(deployment.folder / "south" / "ledger.sqlite", site="south") as ledger:
        debited = len(ledger.entries())
    deployment.wait_round(run_id, after=last_round(deployment, run_id) + 1)
    with Ledger.open(deployment.folder / "south" / "ledger.sqlite", site="south") as ledger:
        assert len(ledger.entries()) == debited
    deployment.program("coordinator").wait_logged("south is disconnected")
