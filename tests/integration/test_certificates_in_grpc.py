"""What the TLS library under gRPC makes of our certificates."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from privacy.identities.authority import Authority, create_authority
from privacy.identities.certificates import read_certificate
from privacy.identities.names import server_tls_name, site_tls_name
from privacy.identities.tls_keys import TlsKey
from tests.support.certificates import CLIENT, SERVER, Forgery, organisation_root

NOW = datetime.now(UTC)
LONG = "f_" * 32
METHOD = "/test/WhoAmI"


class WhoAmI(grpc.GenericRpcHandler):
    """Answers with the name in the caller's certificate."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            (pem,) = context.auth_context()["x509_pem_cert"]
            return ",".join(read_certificate(pem).dns_names).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


class Door:
    """A server with a certificate, on a port."""

    def __init__(self, authority: Authority, federation: str, trusted: str) -> None:
        key, name = TlsKey.generate(), server_tls_name(federation)
        chain = authority.issuing.issue(key, name, "server", 24, NOW)
        self.name, self.root_pem = name, authority.root_pem
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[WhoAmI()])
        credentials = grpc.ssl_server_credentials(
            [(key.private_pem(), chain.encode())], trusted.encode(), require_client_auth=True
        )
        self._port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def call(self, key: TlsKey | None, chain: str | None, *, name: str = "", root: str = "") -> str:
        credentials = grpc.ssl_channel_credentials(
            (root or self.root_pem).encode(),
            key.private_pem() if key else None,
            chain.encode() if chain else None,
        )
        options = [("grpc.ssl_target_name_override", name or self.name)]
        with grpc.secure_channel(f"127.0.0.1:{self._port}", credentials, options) as channel:
            answer = channel.unary_unary(METHOD)(b"", timeout=5)
        return bytes(answer).decode()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority(LONG, NOW)


@pytest.fixture(scope="module")
def door(authority: Authority) -> Iterator[Door]:
    door = Door(authority, LONG, authority.root_pem)
    yield door
    door.close()


@pytest.mark.parametrize("site", ["north", "north_1", "n_" * 32, "n" * 64, "n-"])
def test_every_kind_of_name_passes(authority: Authority, door: Door, site: str) -> None:
    key, name = TlsKey.generate(), site_tls_name(LONG, site)
    chain = authority.issuing.issue(key.csr_pem(), name, "client", 24, NOW)
    assert door.call(key, chain) == name


def refused(door: Door, key: TlsKey | None, chain: str | None, **changes: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.call(key, chain, **changes)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


NORTH = site_tls_name(LONG, "north")


def test_without_a_certificate_nobody_enters(door: Door) -> None:
    refused(door, None, None)


@pytest.mark.parametrize(
    "forgery",
    [
        Forgery(("north.example",), now=NOW),
        Forgery((site_tls_name("other", "north"),), now=NOW),
        Forgery((NORTH,), now=NOW - timedelta(days=9)),
        Forgery((NORTH,), now=NOW + timedelta(days=1)),
        Forgery((NORTH,), now=NOW, usages=(SERVER,)),
    ],
    ids=["outside", "other-federation", "expired", "not-yet-valid", "server-as-client"],
)
def test_what_a_stolen_issuing_key_could_make_is_refused_in_the_handshake(
    authority: Authority, door: Door, forgery: Forgery
) -> None:
    refused(door, forgery.key, forgery.chain(authority))


def test_a_good_forgery_would_pass(authority: Authority, door: Door) -> None:
    """Else the refusals above could have another reason."""
    forgery = Forgery((NORTH,), now=NOW)
    assert door.call(forgery.key, forgery.chain(authority)) == NORTH


def test_the_same_name_under_another_ca_is_refused(door: Door) -> None:
    key, other = TlsKey.generate(), create_authority(LONG, NOW)
    refused(door, key, other.issuing.issue(key, NORTH, "client", 24, NOW))


def test_a_certificate_without_its_key_is_refused(authority: Authority, door: Door) -> None:
    chain = authority.issuing.issue(TlsKey.generate(), NORTH, "client", 24, NOW)
    refused(door, TlsKey.generate(), chain)


def test_a_site_does_not_take_another_server(authority: Authority, door: Door) -> None:
    key = TlsKey.generate()
    chain = authority.issuing.issue(key, NORTH, "client", 24, NOW)
    refused(door, key, chain, name="coordinator.example")
    refused(door, key, chain, root=create_authority(LONG, NOW).root_pem)


def test_an_organisation_s_own_ca_lets_its_sites_in(authority: Authority) -> None:
    root_key = TlsKey.generate()
    root = organisation_root(root_key, NOW)
    door = Door(authority, LONG, root)
    try:
        forgery = Forgery(("node_1.hospital.example",), usages=(CLIENT, SERVER), now=NOW)
        assert door.call(forgery.key, forgery.pem(root_key, root)) == "node_1.hospital.example"
    finally:
        door.close()
