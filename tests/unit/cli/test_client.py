"""The site's commands, in this process."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import client_start
from client.service import SiteService
from coordinator.service.servers import Servers
from coordinator.service.throttle import Throttle
from privacy.ledger import Ledger
from tests.support.command import Done, cloister
from tests.support.enrolled import FEDERATION
from tests.support.installed_site import InstalledSite, install_site
from tests.support.joining import Consortium
from tests.support.site_service import until


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Consortium, Servers]]:
    consortium = Consortium()
    _, servers = consortium.serve(throttle=Throttle(burst=10_000))
    yield consortium, servers
    servers.stop()


@pytest.fixture
def site(tmp_path: Path) -> InstalledSite:
    return install_site(tmp_path)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """`start` sets up the process's logging; here the process is everybody's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def client(tool: str, site: InstalledSite, *arguments: str | Path) -> Done:
    return cloister("client", tool, *arguments, "--config", site.file)


def test_task_prints_the_terms_the_hash_and_the_line_to_add(site: InstalledSite) -> None:
    task = site.task()
    shown = client("task", site)
    assert shown.returncode == 0
    assert f"task {task}" in shown.stdout
    assert '"noise_multiplier": 1.0' in shown.stdout
    assert "site.toml approves it." in shown.stdout
    site.replace(task, "0" * 64)
    assert f'[policy]\nallowed_tasks = ["{task}"]' in client("task", site).stdout


def test_task_as_json(site: InstalledSite) -> None:
    document = json.loads(client("task", site, "--json").stdout)
    assert document["task"] == site.task()
    assert document["terms"]["federation"] == FEDERATION


def test_join_shows_the_fingerprint_and_collects_when_called_again(
    site: InstalledSite, running: tuple[Consortium, Servers]
) -> None:
    consortium, _ = running
    invitation = site.invitation(*running)
    first = client("join", site, invitation, "--wait", "0")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("fingerprint ")
    assert "not approved yet: the same command, or `start`, collects it later" in first.stdout
    consortium.approve()
    second = client("join", site, invitation)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert "north belongs to clinic: cloister client start" in second.stdout


def test_join_with_a_file_that_is_no_invitation(site: InstalledSite) -> None:
    done = client("join", site, site.folder / "none.json")
    assert done.returncode == 1
    assert "cloister: identity: expected an invitation at" in done.stderr


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize(
    ("tool", "message"),
    [("start", "cloister client join INVITATION --config FILE"), ("check", "")],
)
def test_a_site_that_has_not_joined(site: InstalledSite, tool: str, message: str) -> None:
    done = client(tool, site)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.usefixtures("own_logging")
def test_start_refuses_the_identity_of_another_federation(
    site: InstalledSite, running: tuple[Consortium, Servers]
) -> None:
    site.join(*running)
    federation = site.folder / "federation.toml"
    federation.write_text(federation.read_text().replace('"clinic"', '"bank"'))
    done = client("start", site)
    assert done.returncode == 1
    assert "expected the membership of north in bank" in done.stderr


@pytest.mark.usefixtures("own_logging")
def test_start_runs_until_it_is_told_to_stop_and_keeps_a_second_one_off(
    site: InstalledSite,
    running: tuple[Consortium, Servers],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.join(*running)
    services: list[SiteService] = []
    monkeypatch.setattr(client_start, "_stop_on_signals", services.append)
    results: list[Done] = []
    first = threading.Thread(target=lambda: results.append(client("start", site)))
    first.start()
    service = until("the service", lambda: services)[0]
    until("the session", lambda: service._is_open)
    with (
        pytest.raises(Exception, match="for this client alone, got one that runs already"),
        site.identity.locked(),
    ):
        pass
    service.stop()
    first.join(30)
    assert results[0].returncode == 0
    assert (site.folder / "ledger.sqlite").is_file()
    with Ledger.open(site.folder / "ledger.sqlite", site="north") as ledger:
        assert len(ledger.entries()) == 1


def test_start_collects_what_an_interrupted_join_left(
    site: InstalledSite, running: tuple[Consortium, Servers]
) -> None:
    consortium, _ = running
    client("join", site, site.invitation(*running), "--wait", "0")
    consortium.approve()
    client_start._collect_if_missing(site.identity, site.identity.require_membership())
    assert site.identity.roster() == consortium.signed


def test_the_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    handlers: dict[int, object] = {}

    class Service:
        def stop(self) -> None:
            told.append("stop")

    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "_exit", sys.exit)
    client_start._stop_on_signals(Service())  # type: ignore[arg-type]
    assert set(handlers) == {signal.SIGTERM, signal.SIGINT}
    handlers[signal.SIGTERM](signal.SIGTERM, None)  # type: ignore[operator]
    with pytest.raises(SystemExit, match="130"):
        handlers[signal.SIGINT](signal.SIGINT, None)  # type: ignore[operator]
    assert told == ["stop"]


def test_ledger_by_the_site_s_file(site: InstalledSite) -> None:
    missing = client("ledger", site)
    assert missing.returncode == 1
    assert f"expected a ledger at {site.folder / 'ledger.sqlite'}, got none" in missing.stderr
    with Ledger.open(site.folder / "ledger.sqlite", site="north"):
        pass
    shown = client("ledger", site, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["site"] == "north"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("ledger.sqlite",),
        ("--site", "north"),
        ("ledger.sqlite", "--site", "north", "--config", "site.toml"),
    ],
)
def test_ledger_wants_a_file_and_its_site_or_the_site_s_file(arguments: tuple[str, ...]) -> None:
    done = cloister("client", "ledger", *arguments)
    assert done.returncode == 2
    assert "expected LEDGER and --site, or --config, got something else" in done.stderr


def test_importing_the_arguments_imports_neither_torch_nor_grpc() -> None:
    """They take seconds; and TLS 1.3 must be required before gRPC is imported."""
    import subprocess

    code = "import cli.main, sys; print(sorted({'torch', 'grpc', 'flwr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
