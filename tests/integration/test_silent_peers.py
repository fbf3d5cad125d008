"""Peers that open a call and say nothing more: none of them keeps others out."""

import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from coordinator.service.peers import Gate
from coordinator.service.servers import Servers
from coordinator.service.sessions import _Stream
from coordinator.service.throttle import Throttle
from core.errors import TooManyError
from core.wire.channel import COLLECT, CONTROL, JOIN, RENEW, channel_options
from core.wire.frames import encode_document
from privacy.identities.names import server_tls_name
from tests.support.enrolled import FEDERATION, Enrolled
from tests.support.wire_site import Credentials


class Silent:
    """Calls that are begun and never filled, over several connections; ``with`` ends them."""

    def __init__(self, channels: list[grpc.Channel], method: str, calls: int) -> None:
        self._done = threading.Event()
        self.calls = [
            channel.stream_stream(method)(self._nothing())
            for channel in channels
            for _ in range(calls)
        ]

    def _nothing(self) -> Iterator[bytes]:
        self._done.wait(60)
        yield from ()

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for call in self.calls:
            call.cancel()


def code(call: Any) -> str:
    try:
        call.result()
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


@pytest.fixture
def federation() -> Enrolled:
    return Enrolled()


@pytest.fixture
def start(federation: Enrolled) -> Iterator[Callable[..., Servers]]:
    running: list[Servers] = []

    def begin(**settings: Any) -> Servers:
        _, servers = federation.serve(**settings)
        running.append(servers)
        return servers

    yield begin
    for servers in running:
        servers.stop()


def stranger(federation: Enrolled, servers: Servers) -> grpc.Channel:
    root = grpc.ssl_channel_credentials(federation.authority.root_pem.encode())
    options = channel_options(server_tls_name(FEDERATION))
    return grpc.secure_channel(f"127.0.0.1:{servers.enrolment_port}", root, options)


def test_strangers_who_say_nothing_do_not_close_the_enrolment(
    federation: Enrolled, start: Callable[..., Servers]
) -> None:
    servers = start(throttle=Throttle(per_second=1e6, burst=1e6), request_seconds=1.0)
    channels = [stranger(federation, servers) for _ in range(3)]
    with Silent(channels[:2], JOIN, calls=4) as silent:
        ask = channels[2].unary_unary(COLLECT)
        ended = [code(one) for one in silent.calls]
        # As many as one address may have, until they are cut; the others at once.
        assert sorted(ended) == ["CANCELLED"] * 4 + ["RESOURCE_EXHAUSTED"] * 4
        assert code(ask.future(encode_document(b"{}"), timeout=5)) == "INVALID_ARGUMENT"


def test_a_revoked_site_that_says_nothing_is_sent_away_at_once(
    federation: Enrolled, start: Callable[..., Servers]
) -> None:
    gone, ann = federation.add("gone"), federation.grant("ann", "operator")
    federation.change("gone", status="revoked")
    servers = start(max_sessions=1)
    channels = [gone.channel(servers.port) for _ in range(3)]
    with (
        Silent(channels, RENEW, calls=8) as silent,
        ann.channel(servers.port) as channel,
    ):
        status = encode_document(b'{"command":"status"}')
        answer = channel.unary_unary(CONTROL).future(status, timeout=5, wait_for_ready=True)
        for one in silent.calls:
            assert code(one) in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
        assert code(answer) in ("OK", "RESOURCE_EXHAUSTED")
        assert code(channel.unary_unary(CONTROL).future(status, timeout=5)) == "OK"


def test_a_site_that_opens_one_session_after_another_leaves_streams_to_others(
    federation: Enrolled, start: Callable[..., Servers]
) -> None:
    """Streams that were replaced and are not read last until they are cut."""
    north, south = federation.add("north"), federation.add("south")
    sessions = start(max_sessions=6)._sessions
    gate = Gate(federation.authority.root_pem, federation.roster)

    def enter(site: Credentials) -> None:
        leaf, *above = site.chain_pem.split(b"-----END CERTIFICATE-----\n")[:-1]
        end = b"-----END CERTIFICATE-----\n"
        peer = gate.identify(
            {"x509_pem_cert": [leaf + end], "x509_pem_cert_chain": [one + end for one in above]}
        )
        stream = _Stream(Mock(), peer, 0.0, link=Mock(closed_at=None))
        sessions._enter(stream)

    for _ in range(4):
        enter(north)
    with pytest.raises(TooManyError, match="at most 4 streams of north at a time"):
        enter(north)
    enter(south)
