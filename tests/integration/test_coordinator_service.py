"""The coordinator's service and its commands: real servers on this machine, in this process."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.service.folder import CoordinatorFolder
from coordinator.service.service import CoordinatorService
from core.messages import decode
from core.wire.documents import Invitation
from privacy.identities.clock import utc_now
from privacy.identities.tls_keys import TlsKey
from tests.support.command import Done, cloister
from tests.support.office import Newcomer, Office, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator")


@pytest.fixture
def service(folder: CoordinatorFolder) -> Iterator[CoordinatorService]:
    with CoordinatorService.open(folder) as service:
        yield service


def coordinator(folder: CoordinatorFolder, tool: str, *arguments: str | Path) -> Done:
    return cloister("coordinator", tool, "--folder", folder.root, *arguments)


def ok(folder: CoordinatorFolder, tool: str, *arguments: str | Path) -> str:
    done = coordinator(folder, tool, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(folder: CoordinatorFolder, *arguments: str | Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(ok(folder, "status", "--json", *arguments))
    return report


def join(folder: CoordinatorFolder, invitation: Path) -> str:
    """A site joins, not over the wire; returns its fingerprint."""
    office = Office(folder)
    newcomer = Newcomer(decode(Invitation, invitation.read_bytes().strip()), utc_now())
    fingerprint = newcomer.join(office.reception).fingerprint
    office.store.close()
    return fingerprint


def test_the_admin_s_commands_show_at_once(
    service: CoordinatorService, folder: CoordinatorFolder, tmp_path: Path
) -> None:
    report = status(folder)
    assert (report["federation"], report["roster_epoch"], report["runs"]) == ("tiny", 1, [])
    assert {site["name"]: site["status"] for site in report["sites"]} == {
        "north": "not-invited",
        "south": "not-invited",
        "west": "not-invited",
    }

    invitation = tmp_path / "north.json"
    ok(folder, "invite", "north", "--output", invitation)
    assert invitation.stat().st_mode & 0o777 == 0o600
    assert status(folder)["sites"][0]["status"] == "invited"

    fingerprint = join(folder, invitation)
    north = status(folder)["sites"][0]
    assert (north["status"], north["fingerprint"]) == ("pending", fingerprint)
    assert f"north waits with the fingerprint {fingerprint}\n" in ok(folder, "status")

    ok(folder, "approve", "north", fingerprint)
    report = status(folder)
    assert (report["sites"][0]["status"], report["roster_epoch"]) == ("active", 2)

    ok(folder, "revoke", "north")
    assert status(folder)["sites"][0]["status"] == "revoked"


def test_an_invitation_says_where_the_running_service_is(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    invitation = decode(Invitation, ok(folder, "invite", "north").strip().encode())
    ports = folder.ports()
    assert ports is not None
    assert invitation.address == f"127.0.0.1:{ports.sessions}"
    assert invitation.enrolment_address == f"127.0.0.1:{ports.enrolment}"


def test_a_run_waits_for_its_sites_and_is_stopped(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    first = json.loads(ok(folder, "run", "--json"))["run_id"]
    second = ok(folder, "run", "--set", "federation.num_rounds=5").strip()
    runs = status(folder)["runs"]
    assert [run["run_id"] for run in runs] == [first, second]
    assert [run["num_rounds"] for run in runs] == [3, 5]
    ok(folder, "stop", "--run", second)
    ok(folder, "stop", "--run", first)
    refused = coordinator(folder, "stop", "--run", "0" * 16)
    assert refused.returncode == 1
    assert "the service refuses (service): expected the id of a run" in refused.stderr


def test_a_run_without_sites_ends_with_its_reason_and_can_go_on(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    impatient = ("--set", "strategy.round_timeout_seconds=0.3")
    done = coordinator(folder, "run", "--follow", "--json", *impatient)
    assert done.returncode == 1
    run = json.loads(done.stdout)
    assert run["state"] == "stopped"
    assert "expected 1 sites within 0.3 seconds, got 0" in run["reason"]
    done = coordinator(folder, "run", "--resume", run["run_id"], "--follow")
    assert done.returncode == 1
    assert f"run {run['run_id']} stopped after 0 of 3 rounds: expected 1 sites" in done.stdout
    done = coordinator(folder, "run", "--resume", run["run_id"], *impatient)
    assert done.returncode == 2
    assert "expected --resume without --config and --set" in done.stderr


def test_a_run_of_another_federation_is_refused(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    done = coordinator(folder, "run", "--set", "federation.name=other")
    assert done.returncode == 1
    assert "refuses (config): expected a run of the federation 'tiny', got one" in done.stderr


def test_an_auditor_watches_and_no_more(
    service: CoordinatorService, folder: CoordinatorFolder, tmp_path: Path
) -> None:
    ok(folder, "grant", "ann", "--role", "auditor", "--output", tmp_path / "ann")
    assert status(folder, "--identity", tmp_path / "ann")["federation"] == "tiny"
    done = coordinator(folder, "stop", "--identity", tmp_path / "ann")
    assert done.returncode == 1
    assert status(folder)["federation"] == "tiny"

    # The same key, a new certificate and a new role.
    key = (tmp_path / "ann" / "operator.key").read_bytes()
    ok(folder, "grant", "ann", "--role", "operator", "--output", tmp_path / "ann")
    assert (tmp_path / "ann" / "operator.key").read_bytes() == key
    ok(folder, "run", "--identity", tmp_path / "ann")

    ok(folder, "revoke", "ann", "--operator")
    done = coordinator(folder, "status", "--identity", tmp_path / "ann")
    assert done.returncode == 1
    assert "the service does not take ann's certificate" in done.stderr


def test_a_key_may_stay_where_it_was_made(
    service: CoordinatorService, folder: CoordinatorFolder, tmp_path: Path
) -> None:
    key = TlsKey.generate()
    (tmp_path / "request.pem").write_text(key.csr_pem())
    out = ok(folder, "grant", "bob", "--role", "auditor", "--csr", tmp_path / "request.pem")
    made = folder.root / "operators" / "bob"
    assert f"its key goes to {made / 'operator.key'}" in out
    assert not (made / "operator.key").exists()
    (made / "operator.key").write_bytes(key.private_pem())
    (made / "operator.key").chmod(0o600)
    assert status(folder, "--identity", made)["federation"] == "tiny"
    done = coordinator(folder, "grant", "eve", "--role", "auditor", "--csr", tmp_path / "none.pem")
    assert done.returncode == 2
    assert "expected a certificate request at" in done.stderr


def test_the_admin_s_key_may_lie_elsewhere(folder: CoordinatorFolder, tmp_path: Path) -> None:
    folder.offline.rename(tmp_path / "medium")
    done = coordinator(folder, "renew")
    assert done.returncode == 1
    assert "got none\nhint: --admin-key FILE names it on the offline medium" in done.stderr
    ok(folder, "renew", "--admin-key", tmp_path / "medium" / "admin.key")
    ok(
        folder, "renew", "--admin-key", tmp_path / "medium" / "admin.key",
        "--root-key", tmp_path / "medium" / "root.key",
    )  # fmt: skip
    other = make_folder(tmp_path / "other")
    done = coordinator(folder, "renew", "--admin-key", other.admin_key)
    assert done.returncode == 1
    assert "expected the admin's key" in done.stderr


def test_a_second_service_is_refused(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    done = coordinator(folder, "start")
    assert done.returncode == 1
    assert "got one that runs\nhint: `cloister coordinator status` asks it" in done.stderr


def test_without_a_service_the_commands_say_so(folder: CoordinatorFolder) -> None:
    done = coordinator(folder, "status")
    assert done.returncode == 1
    assert "hint: start it: cloister coordinator start" in done.stderr


def test_stop_ends_the_service(service: CoordinatorService, folder: CoordinatorFolder) -> None:
    assert service.health()["healthy"]
    waiting = threading.Thread(target=service.wait)
    waiting.start()
    ok(folder, "stop")
    waiting.join(30)
    assert not waiting.is_alive()
    assert not service.health()["healthy"]


def test_a_monitor_reads_health_and_figures(
    service: CoordinatorService, folder: CoordinatorFolder
) -> None:
    ports = folder.ports()
    assert ports is not None
    address = f"http://127.0.0.1:{ports.metrics}"
    with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:  # noqa: S310
        assert json.load(answer)["federation"] == "tiny"
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:  # noqa: S310
        text = answer.read().decode()
    assert "cloister_connected_sites 0.0" in text
    assert 'cloister_runs{state="queued"} 0.0' in text
    (left,) = [line for line in text.splitlines() if line.startswith("cloister_roster_seconds")]
    assert 89 < float(left.split()[1]) / 86_400 <= 90
