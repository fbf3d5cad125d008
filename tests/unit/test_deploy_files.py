"""The files of `deploy/`, as far as they can be checked where neither systemd nor Docker runs."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import build_parser
from core.coordinator_config import ListenSection
from core.site_config import ServiceSection

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("coordinator", "client")
HARDENING = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
    "User": "cloister",
}


def path_of(unit: str) -> Path:
    return DEPLOY / "systemd" / f"cloister-{unit}.service"


def unit_of(name: str) -> dict[str, str]:
    lines = path_of(name).read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
    return dict(pairs)


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return document


def parses(command: list[str]) -> None:
    """The command line takes it; a usage error would exit."""
    build_parser().parse_args(command)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_hardened_and_restarts(name: str) -> None:
    unit = unit_of(name)
    assert unit.items() >= HARDENING.items()
    assert unit["Restart"] == "on-failure"
    assert unit["LoadCredential"] == f"vault-key:/etc/cloister/{name}-vault.key"


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists_with_the_key_in_its_environment(name: str) -> None:
    found = re.fullmatch(
        r"/bin/sh -c 'CLOISTER_VAULT_KEY=\"\$\$\(cat %d/vault-key\)\" "
        r"exec /opt/cloister/bin/cloister (.*)'",
        unit_of(name)["ExecStart"],
    )
    assert found
    parses(found[1].split())


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_waits_longer_for_its_end_than_a_round_may_take(name: str) -> None:
    assert int(unit_of(name)["TimeoutStopSec"]) >= ServiceSection().stop_seconds + 15


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path_of(name)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "cloister-" in line]
    assert ours == []


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    text = (DEPLOY / "Dockerfile").read_text()
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    copied = {source for line in copies for source in line.split()}
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    assert {"cli", "client", "coordinator", "core", "privacy"} <= copied


def test_the_image_has_no_root_and_the_tested_versions() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER cloister$", text, re.MULTILINE)
    assert text.rindex("USER") > text.rindex("RUN")
    assert len(re.findall(r"pip install .*--constraint constraints.txt", text)) == 2


@pytest.mark.parametrize("service", ["coordinator", "mercy", "riverside", "lakeside"])
def test_a_service_runs_a_command_that_exists_without_privileges(service: str) -> None:
    described = compose()["services"][service]
    parses(described["command"])
    assert described["read_only"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert int(described["stop_grace_period"].removesuffix("s")) >= ServiceSection().stop_seconds
    assert (DEPLOY / described["build"]["context"] / described["build"]["dockerfile"]).is_file()


def test_the_sites_share_no_network() -> None:
    described = compose()
    services = described["services"]
    for site in ("mercy", "riverside", "lakeside"):
        assert services[site]["networks"] == [site]
        assert site in services["coordinator"]["networks"]
        assert "ports" not in services[site]
    assert set(described["networks"]) == set(services["coordinator"]["networks"])


def test_the_readme_and_the_health_check_name_the_ports_that_are_listened_on() -> None:
    listen = ListenSection()
    text = (DEPLOY / "README.md").read_text()
    for address in (listen.address, listen.enrolment_address):
        assert address.rpartition(":")[2] in text
    assert str(listen.metrics_port) in text
    check = " ".join(compose()["services"]["coordinator"]["healthcheck"]["test"])
    assert f"http://127.0.0.1:{listen.metrics_port}/healthz" in check
