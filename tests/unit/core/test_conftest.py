"""The guard against looking up names works, and lets this machine through."""

import os
import socket

import pytest


@pytest.mark.parametrize("host", ["example.org", b"example.org", "192.0.2.1", "2001:db8::1"])
def test_looking_up_another_host_raises_and_is_remembered(
    host: str | bytes, looked_up_hosts: list[str]
) -> None:
    with pytest.raises(socket.gaierror, match="a test looked up"):
        socket.getaddrinfo(host, 443)
    assert looked_up_hosts == [str(host)]
    looked_up_hosts.clear()  # else the guard would fail this very test


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "0.0.0.0", None])  # noqa: S104
def test_this_machine_may_be_looked_up(host: str | None, looked_up_hosts: list[str]) -> None:
    socket.getaddrinfo(host, 443, proto=socket.IPPROTO_TCP)
    assert looked_up_hosts == []


def test_dependencies_are_told_to_keep_quiet() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
