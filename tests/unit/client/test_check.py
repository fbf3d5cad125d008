"""Is this site ready: each thing that can be wrong, its name and what to do."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from client.check import Finding, check_site
from coordinator.service.servers import Servers
from coordinator.service.throttle import Throttle
from privacy.events import DpSgdEvent, NonPrivateEvent
from privacy.ledger import Ledger
from tests.support.command import cloister
from tests.support.federation import write_records
from tests.support.installed_site import InstalledSite, install_site
from tests.support.joining import Consortium

EVERYTHING = [
    "configuration",
    "federation",
    "disk",
    "data",
    "ledger",
    "model",
    "declared size",
    "approved task",
    "membership",
    "keys",
    "roster",
    "certificate",
    "clock",
    "session",
]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Consortium, Servers]]:
    consortium = Consortium()
    _, servers = consortium.serve(throttle=Throttle(burst=10_000))
    yield consortium, servers
    servers.stop()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, running: tuple[Consortium, Servers]) -> Path:
    folder = tmp_path_factory.mktemp("north")
    install_site(folder).join(*running)
    return folder


@pytest.fixture
def site(tmp_path: Path, ready: Path, running: tuple[Consortium, Servers]) -> InstalledSite:
    """A copy, whose consortium is as it was."""
    shutil.copytree(ready, tmp_path / "north")
    running[0].clock_error = timedelta()
    return InstalledSite(tmp_path / "north")


def wrong(site: InstalledSite, *overrides: str) -> dict[str, Finding]:
    """What is wrong, by name."""
    findings = check_site(site.file, overrides)
    return {finding.name: finding for finding in findings if not finding.ok}


def the_one(site: InstalledSite, name: str, *overrides: str) -> Finding:
    found = wrong(site, *overrides)
    assert set(found) == {name}
    assert found[name].fix
    return found[name]


def test_a_site_that_is_ready(site: InstalledSite) -> None:
    findings = check_site(site.file)
    assert [finding.name for finding in findings] == EVERYTHING
    assert all(finding.ok for finding in findings), findings
    assert not (site.folder / "ledger.sqlite").exists()  # nothing was made, nothing debited


def test_the_command_says_so_and_exits_with_0(site: InstalledSite) -> None:
    done = cloister("client", "check", "--config", site.file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("OK") == len(EVERYTHING)
    assert "FAIL" not in done.stdout


def test_the_command_exits_with_1_where_anything_is_wrong(site: InstalledSite) -> None:
    site.replace("max_epsilon", "allow_nothing = true\nmax_epsilon")
    done = cloister("client", "check", "--config", site.file, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ready"] is False
    (only,) = report["checks"]
    assert (only["name"], only["ok"]) == ("configuration", False)
    assert "policy.allow_nothing" in only["found"]
    assert cloister("client", "check", "--config", site.file).stdout.count("FAIL") == 1


def test_a_federation_s_file_that_is_not_there(site: InstalledSite) -> None:
    (site.folder / "federation.toml").unlink()
    assert "federation.toml, got: No such file" in the_one(site, "federation").found


def test_a_size_that_the_federation_does_not_name(site: InstalledSite) -> None:
    found = the_one(site, "federation", "site.num_examples=41")
    assert found.found == "expected site.num_examples = 40 as in the federation's file, got 41"


def test_a_full_disk(site: InstalledSite) -> None:
    found = the_one(site, "disk", f"service.min_free_megabytes={10**9}")
    assert f"expected {10**9} MB of room at" in found.found


def test_a_disk_that_cannot_be_written(
    site: InstalledSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(dir: Path) -> None:  # noqa: A002 - as tempfile names it
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr("client.check.TemporaryFile", fail)
    found = the_one(site, "disk")
    assert "Read-only file system" in found.found
    assert found.fix == "check the path, its owner and the disk"


def test_data_with_another_column(site: InstalledSite) -> None:
    found = wrong(site, "data.columns.text=body")
    assert set(found) == {"data"}
    assert "records.jsonl, line 1: expected column 'body'" in found["data"].found


def test_more_records_than_declared(site: InstalledSite) -> None:
    write_records(site.folder / "records.jsonl", seed=0, count=51)
    found = the_one(site, "declared size")
    assert "expected at most 50 records at north" in found.found
    assert "51" not in found.found


def test_a_damaged_ledger(site: InstalledSite) -> None:
    (site.folder / "ledger.sqlite").write_bytes(b"not a ledger")
    found = the_one(site, "ledger")
    assert "ledger.sqlite" in found.found
    assert found.fix.startswith("restore all files of the ledger")


def test_a_spent_budget(site: InstalledSite) -> None:
    assert wrong(site, "policy.max_epsilon=0.5") == {}
    with Ledger.open(site.folder / "ledger.sqlite", site="north") as ledger:
        reserve(ledger, max_epsilon=1000.0)
    found = the_one(site, "ledger", "policy.max_epsilon=0.5")
    assert found.found.startswith("expected less than epsilon 0.5 spent, got ")
    assert wrong(site) == {}


def test_a_ledger_that_protects_nothing_says_so(site: InstalledSite) -> None:
    with Ledger.open(site.folder / "ledger.sqlite", site="north") as ledger:
        reserve(ledger, event=NonPrivateEvent("no-privacy", None), max_epsilon=1.0)
    (found,) = [f for f in check_site(site.file) if f.name == "ledger"]
    assert found.found == "NOT PRIVATE: it holds a run without privacy"


def reserve(ledger: Ledger, *, max_epsilon: float, event: object = None) -> None:
    event = event or DpSgdEvent(
        noise_multiplier=1.0,
        sample_rate=0.2,
        max_batch_size=16,
        max_examples=50,
        steps=6,
        max_grad_norm=1.0,
    )
    ledger.reserve(
        event,  # type: ignore[arg-type]
        run_id="0" * 16,
        server_round=1,
        attempt=1,
        task_digest="0" * 64,
        max_epsilon=max_epsilon,
        delta=1e-5,
    )


def test_a_task_that_nobody_approved(site: InstalledSite) -> None:
    found = the_one(site, "approved task", "policy.allowed_tasks=[]")
    assert found.found.endswith(f"got a list without {site.task()}")
    assert found.fix == "read it with `cloister client task`, then add its hash"


def test_terms_that_the_policy_never_allows(site: InstalledSite) -> None:
    found = the_one(site, "approved task", "policy.max_rounds=2")
    assert found.found == "expected rounds of at most 2, got 3"


def test_a_site_that_has_not_joined(tmp_path: Path) -> None:
    found = the_one(install_site(tmp_path), "membership")
    assert found.fix == "cloister client join INVITATION --config FILE"


def test_an_identity_of_another_federation(site: InstalledSite) -> None:
    federation = site.folder / "federation.toml"
    federation.write_text(federation.read_text().replace('"clinic"', '"bank"'))
    found = wrong(site)
    assert set(found) == {"membership", "approved task"}
    assert found["membership"].found == (
        "expected the membership of north in bank with 40 examples, "
        "got that of north in clinic with 40"
    )


def test_a_key_that_others_can_read(site: InstalledSite) -> None:
    (site.identity.folder / "node.key").chmod(0o644)
    found = the_one(site, "keys")
    assert "readable by its owner only, got mode 0644" in found.found
    assert found.fix.startswith("chmod 600")


def test_a_folder_that_others_can_read(site: InstalledSite) -> None:
    site.identity.folder.chmod(0o755)
    assert "closed to others" in the_one(site, "membership").found


def test_a_site_that_waits_for_approval(site: InstalledSite) -> None:
    (site.identity.folder / "roster.json").unlink()
    found = the_one(site, "roster")
    assert "the admin has not approved this site yet" in found.found


def test_a_certificate_that_has_expired(
    site: InstalledSite, running: tuple[Consortium, Servers]
) -> None:
    consortium = running[0]
    name = consortium.members["north"].tls_name
    old = Consortium(now=lambda: consortium.now() - timedelta(days=3))
    chain = old.authority.issuing.issue(
        site.identity.tls_key(), name, "client", 1, consortium.now() - timedelta(days=2)
    )
    site.identity.keep_certificate(chain)
    found = wrong(site)
    assert set(found) == {"certificate", "session"}
    assert "has expired" in found["certificate"].found


def test_a_clock_that_is_a_day_off(
    site: InstalledSite, running: tuple[Consortium, Servers]
) -> None:
    running[0].clock_error = timedelta(days=1)
    found = the_one(site, "clock")
    assert "expected clocks at most 5 minutes apart" in found.found
    assert found.fix == "set the clocks of both machines (NTP)"


def test_nobody_at_the_address(site: InstalledSite) -> None:
    membership = site.identity.require_membership()
    site.identity.pin_membership(
        membership.model_copy(update={"address": "127.0.0.1:1", "enrolment_address": "127.0.0.1:1"})
    )
    found = wrong(site)
    assert set(found) == {"clock", "session"}
    assert "expected the coordinator to answer, got UNAVAILABLE" in found["session"].found
    assert found["session"].fix == "check its address, the network, and that it runs"
