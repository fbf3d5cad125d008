"""What every test gets: repeatable hypothesis, silent dependencies, no name looked up."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from core.wire.channel import require_tls13
from tests.support.canaries import Lookout, listening

# Before any test module imports a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    RAY_USAGE_STATS_ENABLED="0",
    OMP_NUM_THREADS="1",  # tiny models: threads would wait for each other, 20 times as long
)
require_tls13()

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("exploring", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def _is_this_machine(host: Any) -> bool:
    name = host.decode("idna") if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def _lookups_of_the_session() -> Iterator[list[str]]:
    """Names that anything in this process, a thread of a library too, tried to look up.

    What C code of a library resolves by itself (gRPC does) is not seen here.
    """
    real, hosts = socket.getaddrinfo, []

    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_this_machine(host):
            return real(host, *args, **kwargs)
        hosts.append(str(host))
        raise socket.gaierror(socket.EAI_FAIL, f"a test looked up {host!r}")

    patch = pytest.MonkeyPatch()
    patch.setattr(socket, "getaddrinfo", guarded)
    yield hosts
    patch.undo()


@pytest.fixture(autouse=True)
def looked_up_hosts(_lookups_of_the_session: list[str]) -> Iterator[list[str]]:
    """Fails the test that looks up a host other than this machine, even if it hides the error."""
    yield _lookups_of_the_session
    hosts = sorted(set(_lookups_of_the_session))
    _lookups_of_the_session.clear()
    if hosts:
        pytest.fail(f"expected no host to be looked up, got {', '.join(hosts)}")


@pytest.fixture(scope="session", autouse=True)
def eavesdropping() -> Iterator[list[Lookout]]:
    """Hears all secrets of secure aggregation that this process makes, and all that is said."""
    lookouts = [Lookout()]
    with listening(lambda: lookouts[-1]):
        yield lookouts


@pytest.fixture(autouse=True)
def _no_secret_is_said(eavesdropping: list[Lookout]) -> Iterator[None]:
    """Fails the test in which a key, a share, a mask or an update reaches a log or an error."""
    eavesdropping[:] = [Lookout()]
    yield
    if found := eavesdropping[-1].found():
        pytest.fail(f"expected no secret in what is said, got {', '.join(sorted(found))}")
