"""Sessions over real gRPC and mutual TLS: who comes in, who does not, and what ends a session.

What nobody may do is in the table of ``test_nobody_else_comes_in``.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest

from coordinator.flower import empty_run
from coordinator.grids.remote import RemoteGrid
from coordinator.orders import task_content
from coordinator.payload import to_record
from coordinator.service.peers import Gate
from coordinator.service.servers import Servers
from coordinator.service.sessions import Sessions
from coordinator.service.throttle import Throttle
from core.array_codec import manifest_of
from core.coordinator_config import LivenessSection
from core.digests import arrays_digest
from core.errors import RunError, SessionError, VaultError
from core.messages import decode, encode
from core.wire.channel import COLLECT, CONTROL, JOIN, RENEW, SESSION, check_refuses_tls12
from core.wire.documents import (
    CollectReply,
    ControlReply,
    ControlRequest,
    Invitation,
    JoinReply,
    RenewReply,
    SignedRoster,
)
from core.wire.frames import (
    Chunk,
    Goodbye,
    Heartbeat,
    Proof,
    Welcome,
    decode_document,
    encode_document,
    encode_frame,
)
from privacy.identities.authority import create_authority
from privacy.identities.clock import utc_now, write_timestamp
from privacy.identities.enrolment import (
    make_collect_request,
    make_join_request,
    make_renew_request,
)
from privacy.identities.names import server_tls_name, site_tls_name
from privacy.identities.tls_keys import TlsKey
from privacy.signing import SiteKey
from tests.support.certificates import CLIENT, SERVER, Forgery
from tests.support.enrolled import FEDERATION, Enrolled
from tests.support.messages import TASK
from tests.support.wire_site import Credentials, SiteDouble, WireSite, echo

ARRAYS = {"w": np.arange(1 << 19, dtype=np.float32), "b": np.zeros(3, np.float32)}
MANIFEST = manifest_of(ARRAYS)
ORDER = TASK.model_copy(update={"arrays_digest": arrays_digest(ARRAYS)})
NORTH = site_tls_name(FEDERATION, "north")


class Coordinator:
    """A grid, its servers and the site ``north``."""

    def __init__(self, **settings: Any) -> None:
        self.federation = Enrolled(**settings.pop("federation", {}))
        self.north = self.federation.add("north")
        liveness = settings.pop("liveness", LivenessSection())
        self.grid, self.servers = self.federation.serve(RemoteGrid(liveness), **settings)
        self.grid.set_run(empty_run(7))
        self.grid.begin_run({1: "north"}, MANIFEST)

    def site(
        self, credentials: Credentials | None = None, double: SiteDouble | None = None, **hello: Any
    ) -> WireSite:
        """A stream that wants to become a session."""
        return WireSite(
            credentials or self.north,
            self.servers.port,
            double or SiteDouble(MANIFEST, echo),
            **{"federation": FEDERATION, **hello},
        )

    def ask(self, timeout: float = 20.0) -> list[Any]:
        """Sends the order to north."""
        order = self.grid.create_message(
            task_content(ORDER, to_record(ARRAYS)), "train", 1, "4", timeout
        )
        return list(self.grid.send_and_receive([order], timeout=timeout))


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    made = Coordinator(throttle=Throttle(per_second=1e6, burst=1e6))
    yield made
    made.servers.stop()


@pytest.fixture
def started() -> Iterator[Callable[..., Coordinator]]:
    running: list[Servers] = []

    def start(**settings: Any) -> Coordinator:
        made = Coordinator(**settings)
        running.append(made.servers)
        return made

    yield start
    for servers in running:
        servers.stop()


def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_round_trip_over_tls_is_bit_for_bit(coordinator: Coordinator) -> None:
    with coordinator.site() as north:
        north.wait_open()
        (reply,) = coordinator.ask()
        got = {name: array.numpy() for name, array in reply.content["arrays"].items()}
        assert arrays_digest(got) == ORDER.arrays_digest
        (welcome,) = north.double.told(Welcome)
        assert decode(SignedRoster, welcome.roster) == coordinator.federation.signed
        assert abs(welcome.time_unix_milliseconds / 1000 - time.time()) < 60
    until(lambda: not coordinator.grid.sites())


def test_a_crash_in_a_transfer_is_followed_by_the_whole_message(
    coordinator: Coordinator,
) -> None:
    instance = secrets.token_hex(16)
    in_the_middle, crashed = threading.Event(), threading.Event()

    class Fragile(SiteDouble):
        def take(self, frame: Any) -> Iterator[Any]:
            if isinstance(frame, Chunk):
                in_the_middle.set()
                crashed.wait(10)
            return super().take(frame)

    first = coordinator.site(double=Fragile(MANIFEST), instance=instance).wait_open()
    order = coordinator.grid.create_message(task_content(ORDER, to_record(ARRAYS)), "train", 1, "4")
    replies = iter(coordinator.grid.send_and_receive([order], timeout=20))
    assert in_the_middle.wait(10)
    threading.Timer(0.1, crashed.set).start()
    first.crash()
    assert first.double.orders == []
    with coordinator.site(instance=instance) as again:
        again.wait_open()
        (reply,) = replies
        assert reply.has_content()


# Who may not come in: each makes credentials or a stream that an attacker could have.


def _site_named(coordinator: Coordinator, name: str) -> Credentials:
    """Credentials that our own CA issued for a site's name, whether the roster has it or not."""
    authority, key = coordinator.federation.authority, TlsKey.generate()
    tls_name = site_tls_name(FEDERATION, name)
    chain = authority.issuing.issue(key, tls_name, "client", 24, utc_now())
    return coordinator.federation.credentials(name, SiteKey.generate(), key, chain)


def _forged(coordinator: Coordinator, **says: Any) -> Credentials:
    """North's keys under a certificate that the issuing key was abused for."""
    forgery = Forgery(**{"dns_names": (NORTH,), "now": utc_now() - timedelta(hours=1), **says})
    return replace(
        coordinator.north,
        tls_key_pem=forgery.key.private_pem(),
        chain_pem=forgery.chain(coordinator.federation.authority).encode(),
    )


def no_certificate(coordinator: Coordinator) -> WireSite:
    return coordinator.site(replace(coordinator.north, tls_key_pem=b"", chain_pem=b""))


def expired(coordinator: Coordinator) -> WireSite:
    return coordinator.site(_forged(coordinator, lifetime=timedelta(minutes=59)))


def not_yet_valid(coordinator: Coordinator) -> WireSite:
    return coordinator.site(_forged(coordinator, now=utc_now() + timedelta(hours=1)))


def wrong_ca_with_another_name(coordinator: Coordinator) -> WireSite:
    other = create_authority("other", utc_now())
    key, name = TlsKey.generate(), site_tls_name("other", "north")
    chain = other.issuing.issue(key, name, "client", 24, utc_now())
    stolen = replace(coordinator.north, tls_key_pem=key.private_pem(), chain_pem=chain.encode())
    return coordinator.site(stolen)


def same_site_under_another_ca(coordinator: Coordinator) -> WireSite:
    other = create_authority(FEDERATION, utc_now())
    key = TlsKey.generate()
    chain = other.issuing.issue(key, NORTH, "client", 24, utc_now())
    stolen = replace(coordinator.north, tls_key_pem=key.private_pem(), chain_pem=chain.encode())
    return coordinator.site(stolen)


def server_certificate_as_client(coordinator: Coordinator) -> WireSite:
    tls = coordinator.federation.tls()
    return coordinator.site(
        replace(coordinator.north, tls_key_pem=tls.key_pem, chain_pem=tls.chain_pem)
    )


def server_use_with_the_sites_name(coordinator: Coordinator) -> WireSite:
    return coordinator.site(_forged(coordinator, usages=(SERVER,)))


def two_names_in_one_certificate(coordinator: Coordinator) -> WireSite:
    names = (NORTH, site_tls_name(FEDERATION, "south"))
    return coordinator.site(_forged(coordinator, dns_names=names, usages=(CLIENT,)))


def self_issued_by_a_sites_own_certificate(coordinator: Coordinator) -> WireSite:
    """A leaf is no authority, whatever it signs."""
    north = coordinator.north
    forgery = Forgery(dns_names=(NORTH,), now=utc_now() - timedelta(hours=1))
    own = TlsKey.from_pem(north.tls_key_pem, origin="north")
    chain = forgery.pem(own, north.chain_pem.decode()) + north.chain_pem.decode()
    return coordinator.site(
        replace(north, tls_key_pem=forgery.key.private_pem(), chain_pem=chain.encode())
    )


def revoked(coordinator: Coordinator) -> WireSite:
    credentials = coordinator.federation.add("gone")
    coordinator.federation.change("gone", status="revoked")
    return coordinator.site(credentials)


def unapproved_node(coordinator: Coordinator) -> WireSite:
    return coordinator.site(_site_named(coordinator, "stranger"))


def other_node_key(coordinator: Coordinator) -> WireSite:
    return coordinator.site(replace(coordinator.north, node_key=SiteKey.generate()))


def another_sites_name_in_the_hello(coordinator: Coordinator) -> WireSite:
    south = coordinator.federation.add("south")
    return coordinator.site(replace(coordinator.north, site="south", node_key=south.node_key))


def another_federation_in_the_hello(coordinator: Coordinator) -> WireSite:
    return coordinator.site(federation="elsewhere")


def operator_as_site(coordinator: Coordinator) -> WireSite:
    return coordinator.site(coordinator.federation.grant("ann", "operator"))


def wrong_host(coordinator: Coordinator) -> WireSite:
    return coordinator.site(replace(coordinator.north, server_name="evil.clinic.cloister.internal"))


def another_coordinators_root(coordinator: Coordinator) -> WireSite:
    other = create_authority(FEDERATION, utc_now())
    return coordinator.site(replace(coordinator.north, root_pem=other.root_pem.encode()))


def newer_roster_at_the_site(coordinator: Coordinator) -> WireSite:
    return coordinator.site(roster_epoch=10_000)


BY_TLS = ("UNAVAILABLE", "")
BY_US = ("UNAUTHENTICATED", "identity")


@pytest.mark.parametrize(
    ("attempt", "status", "log"),
    [
        (no_certificate, BY_TLS, ""),
        (expired, BY_TLS, ""),
        (not_yet_valid, BY_TLS, ""),
        (wrong_ca_with_another_name, BY_TLS, ""),
        (same_site_under_another_ca, BY_TLS, ""),
        (server_certificate_as_client, BY_TLS, ""),
        (server_use_with_the_sites_name, BY_TLS, ""),
        (self_issued_by_a_sites_own_certificate, BY_TLS, ""),
        (wrong_host, BY_TLS, ""),
        (another_coordinators_root, BY_TLS, ""),
        (two_names_in_one_certificate, BY_US, "expected a certificate with one DNS name"),
        (revoked, BY_US, "got one that is revoked"),
        (unapproved_node, BY_US, "got it 0 times"),
        (other_node_key, BY_US, "expected a proof by the node key"),
        (another_sites_name_in_the_hello, BY_US, "expected a session of clinic/north"),
        (another_federation_in_the_hello, BY_US, "got one of elsewhere/north"),
        (operator_as_site, BY_US, "expected a site, got the operator ann"),
        (newer_roster_at_the_site, ("FAILED_PRECONDITION", "roster-rollback"), "seen 10000"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_nobody_else_comes_in(
    coordinator: Coordinator,
    caplog: pytest.LogCaptureFixture,
    attempt: Callable[[Coordinator], WireSite],
    status: tuple[str, str],
    log: str,
) -> None:
    with caplog.at_level(logging.WARNING), attempt(coordinator) as stream:
        got = stream.wait_ended()
        if status is BY_TLS:
            assert got[0] == status[0]
        else:
            assert got == status
        assert not stream.welcomed.is_set()
    assert log in caplog.text
    assert coordinator.grid.sites() == {}


def test_tls_12_is_refused_by_both_servers(coordinator: Coordinator) -> None:
    servers = coordinator.servers
    for port in (servers.port, servers.enrolment_port):
        check_refuses_tls12("127.0.0.1", port)


def test_without_a_roster_nobody_comes_in(started: Callable[..., Coordinator]) -> None:
    coordinator = started()
    coordinator.federation.signed = None
    with coordinator.site() as stream:
        assert stream.wait_ended() == BY_US


def test_the_session_of_a_revoked_site_is_cut_within_two_seconds(
    started: Callable[..., Coordinator],
) -> None:
    coordinator = started()
    with coordinator.site() as north:
        north.wait_open()
        began = time.monotonic()
        coordinator.federation.change("north", status="revoked")
        assert north.wait_ended() == ("OK", "")
        assert time.monotonic() - began < 2
        (goodbye,) = north.double.told(Goodbye)
        assert goodbye.code == "identity"
        assert "got one that is revoked" in goodbye.reason
    assert list(coordinator.grid.get_node_ids()) == []


def test_a_revoked_site_that_does_not_read_is_cut_too(
    started: Callable[..., Coordinator],
) -> None:
    """Its half-sent model fills all buffers, so that no farewell gets through."""
    coordinator, read_on = started(), threading.Event()
    huge = {"w": np.zeros(1 << 25, np.float32)}
    with coordinator.site() as north:
        north.wait_open()
        north._hear = lambda frame: read_on.wait(10)  # type: ignore[method-assign,assignment]
        coordinator.grid.begin_run({1: "north"}, manifest_of(huge))
        order = coordinator.grid.create_message(
            task_content(TASK, to_record(huge)), "train", 1, "4"
        )
        list(coordinator.grid.push_messages([order]))
        time.sleep(0.3)
        coordinator.federation.change("north", status="revoked")
        until(lambda: not coordinator.servers._sessions._streams, 5)
        read_on.set()


@pytest.mark.parametrize("change", [{"node_key": "1" * 64}, {"tls_name": "other.example"}])
def test_a_session_ends_when_the_entry_it_came_in_with_changes(
    started: Callable[..., Coordinator], change: dict[str, Any]
) -> None:
    coordinator = started()
    with coordinator.site() as north:
        north.wait_open()
        coordinator.federation.change("north", **change)
        assert north.wait_ended() == ("OK", "")


def test_a_session_ends_when_its_certificate_does(started: Callable[..., Coordinator]) -> None:
    ahead = timedelta(0)
    coordinator = started(now=lambda: utc_now() + ahead)
    coordinator.federation.lifetime = timedelta(days=9)
    coordinator.federation.sign()
    with coordinator.site() as north:
        north.wait_open()
        ahead = timedelta(hours=23)
        time.sleep(1.2)
        assert not north.ended.is_set()
        ahead = timedelta(hours=25)
        assert north.wait_ended() == ("OK", "")
        (goodbye,) = north.double.told(Goodbye)
        assert "got one that has expired" in goodbye.reason


def test_sessions_end_when_the_roster_has_expired(started: Callable[..., Coordinator]) -> None:
    ahead = timedelta(0)
    coordinator = started(
        now=lambda: utc_now() + ahead, federation={"lifetime": timedelta(hours=1)}
    )
    with coordinator.site() as north:
        north.wait_open()
        ahead = timedelta(hours=2)
        assert north.wait_ended() == ("OK", "")
        (goodbye,) = north.double.told(Goodbye)
        assert goodbye.reason == "expected a roster that is valid now, got none"


def test_a_roster_that_cannot_be_read_lets_nobody_in_and_for_a_while_cuts_nobody(
    started: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = started()
    with coordinator.site() as north:
        north.wait_open()
        coordinator.federation.broken = VaultError("expected the vault's key, got none")
        with coordinator.site() as second:
            assert second.wait_ended() == ("FAILED_PRECONDITION", "vault")
        time.sleep(0.7)
        assert not north.ended.is_set()
        monkeypatch.setattr("coordinator.service.sessions._ROSTER_SECONDS", 0.0)
        assert north.wait_ended() == ("OK", "")


def test_a_newer_session_of_a_site_replaces_the_older_one(coordinator: Coordinator) -> None:
    with coordinator.site() as older, coordinator.site() as newer:
        older.wait_open()
        newer.wait_open()
        both = (older, newer)
        until(lambda: any(stream.ended.is_set() for stream in both))
        (ended,) = [stream for stream in both if stream.ended.is_set()]
        assert [frame.code for frame in ended.double.told(Goodbye)] == ["replaced"]
        assert list(coordinator.grid.sites()) == ["north"]
    until(lambda: not coordinator.grid.sites())


def test_a_silent_site_is_cut_off_and_away(started: Callable[..., Coordinator]) -> None:
    coordinator = started(liveness=LivenessSection(heartbeat_seconds=0.1, silence_seconds=0.4))
    with coordinator.site(heartbeat_seconds=60) as north:
        north.wait_open()
        assert north.wait_ended() == ("ABORTED", "session")
        assert list(coordinator.grid.get_node_ids()) == []
        assert north.double.heartbeats > 0


def test_after_a_standstill_of_the_coordinator_sites_get_another_chance() -> None:
    seconds = [1000.0]
    grid = RemoteGrid(LivenessSection(), clock=lambda: seconds[0])
    federation = Enrolled()
    gate = Gate(federation.authority.root_pem, federation.roster)
    sessions = Sessions(grid, gate, FEDERATION, max_sessions=1, handshake_seconds=1.0)
    grid.connect("north", "0" * 32, [])
    seconds[0] += 60.0
    sessions._watched_at -= 60.0
    sessions.watch()
    assert list(grid.sites()) == ["north"]
    sessions.watch()
    assert list(grid.sites()) == []


def test_heartbeats_keep_a_session_open(started: Callable[..., Coordinator]) -> None:
    coordinator = started(liveness=LivenessSection(heartbeat_seconds=0.1, silence_seconds=0.6))
    with coordinator.site(heartbeat_seconds=0.1) as north:
        north.wait_open()
        time.sleep(1.5)
        assert not north.ended.is_set()
        assert coordinator.grid.sites()["north"] < 0.6


class NothingYet:
    """Frames that do not come."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._ended.wait(30)
        raise StopIteration

    def end(self) -> None:
        self._ended.set()


def test_a_handshake_that_is_not_finished_in_time_is_cut(
    started: Callable[..., Coordinator], caplog: pytest.LogCaptureFixture
) -> None:
    coordinator = started(handshake_seconds=0.3)
    with coordinator.north.channel(coordinator.servers.port) as channel:
        never = NothingYet()
        call = channel.stream_stream(SESSION)(never)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        never.end()
    assert "did not finish its handshake" in caplog.text


def test_streams_and_handshakes_are_limited(started: Callable[..., Coordinator]) -> None:
    coordinator = started(max_sessions=3, handshake_seconds=30)
    blocked = [NothingYet() for _ in range(3)]
    with coordinator.north.channel(coordinator.servers.port) as channel:
        calls = [channel.stream_stream(SESSION)(frames) for frames in blocked[:2]]
        streams = coordinator.servers._sessions._streams
        until(lambda: len(streams) == 2)
        with coordinator.site() as third:  # of the same site
            assert third.wait_ended() == ("RESOURCE_EXHAUSTED", "too-many")
        south = coordinator.federation.add("south")
        with coordinator.site(south) as open_one:
            open_one.wait_open()
            west = coordinator.federation.add("west")
            with coordinator.site(west) as fourth:  # of all
                assert fourth.wait_ended() == ("RESOURCE_EXHAUSTED", "too-many")
        for frames, call in zip(blocked, calls, strict=False):
            frames.end()
            call.cancel()


GARBAGE = [b"", b"\xff" * 40, b"\x3a\x02\x0a\x00", b"\x12\x00", encode_frame(Heartbeat())]


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_instead_of_a_hello_is_refused_by_name(
    coordinator: Coordinator, data: bytes
) -> None:
    with coordinator.north.channel(coordinator.servers.port) as channel:
        call = channel.stream_stream(SESSION)(iter([data]))
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code().name in ("INVALID_ARGUMENT", "ABORTED")
    assert caught.value.details() in ("message", "session")


@pytest.mark.parametrize("frame", [Proof(bytes(64)), Chunk(b"x"), Welcome(b"", 1)])
def test_an_open_session_that_breaks_the_protocol_ends_by_name_and_fails_its_order(
    coordinator: Coordinator, frame: Any
) -> None:
    with coordinator.site(double=SiteDouble(MANIFEST)) as north:
        north.wait_open()
        order = coordinator.grid.create_message(
            task_content(ORDER, to_record(ARRAYS)), "train", 1, "4"
        )
        replies = iter(coordinator.grid.send_and_receive([order], timeout=20))
        until(lambda: len(north.double.orders) == 1)
        north.say(frame)
        assert north.wait_ended() == ("ABORTED", "session")
        (reply,) = replies
        assert "expected no" in reply.error.reason


def test_an_error_of_ours_is_told_to_nobody(
    started: Callable[..., Coordinator],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coordinator = started()
    monkeypatch.setattr(coordinator.grid, "hear", lambda link, frame: 1 / 0)
    with coordinator.site(heartbeat_seconds=0.05) as north:
        north.wait_open()
        assert north.wait_ended() == ("ABORTED", "session")
    assert "a defect of ours" in caplog.text
    coordinator.federation.broken = ZeroDivisionError("secret")
    with coordinator.site() as north:
        assert north.wait_ended() == ("INTERNAL", "internal")


def test_a_message_beyond_the_limit_does_not_arrive(coordinator: Coordinator) -> None:
    with coordinator.north.channel(coordinator.servers.port) as channel:
        call = channel.stream_stream(SESSION)(iter([bytes(3 << 20)]))
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# The other calls.


def call(channel: grpc.Channel, method: str, request: Any, reply: Any) -> Any:
    data = encode_document(encode(request))
    return decode(reply, decode_document(channel.unary_unary(method)(data, timeout=10)))


def refused(channel: grpc.Channel, method: str, request: Any) -> tuple[str, str]:
    data = request if isinstance(request, bytes) else encode_document(encode(request))
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(data, timeout=10)
    return caught.value.code().name, caught.value.details()


def invitation(coordinator: Coordinator, site: str) -> Invitation:
    federation = coordinator.federation
    return Invitation(
        federation=FEDERATION,
        site=site,
        num_examples=40,
        token=federation.invite(site),
        expires=write_timestamp(utc_now() + timedelta(hours=1)),
        address="127.0.0.1:1",
        enrolment_address="127.0.0.1:2",
        server_name=server_tls_name(FEDERATION),
        ca_pem=federation.authority.root_pem,
        admin_key=federation.admin.public_hex,
        tls_name=site_tls_name(FEDERATION, site),
    )


def stranger(coordinator: Coordinator) -> grpc.Channel:
    """A channel of somebody who has no certificate."""
    nobody = replace(coordinator.north, tls_key_pem=b"", chain_pem=b"")
    return nobody.channel(coordinator.servers.enrolment_port)


def test_enrolment_takes_a_token_once(coordinator: Coordinator) -> None:
    invited = invitation(coordinator, "east")
    node_key = SiteKey.generate()
    request = make_join_request(invited, node_key, TlsKey.generate(), now=utc_now())
    with stranger(coordinator) as channel:
        reply = call(channel, JOIN, request, JoinReply)
        assert len(reply.fingerprint) == 64
        question = make_collect_request(FEDERATION, "east", node_key, utc_now())
        assert call(channel, COLLECT, question, CollectReply).state == "pending"

        assert refused(channel, JOIN, request) == BY_US
        other = make_join_request(invited, SiteKey.generate(), TlsKey.generate(), now=utc_now())
        assert refused(channel, JOIN, other) == BY_US
        thief = make_collect_request(FEDERATION, "east", SiteKey.generate(), utc_now())
        assert refused(channel, COLLECT, thief) == BY_US


@pytest.mark.parametrize("data", [b"", b"\xff\xff", encode_document(b"{}"), bytes(300_000)])
def test_a_request_that_cannot_be_read_is_refused_by_name(
    coordinator: Coordinator, data: bytes
) -> None:
    with stranger(coordinator) as channel:
        assert refused(channel, JOIN, data) == ("INVALID_ARGUMENT", "message")


def test_each_server_answers_its_own_calls_only(coordinator: Coordinator) -> None:
    request = ControlRequest(command="status")
    with stranger(coordinator) as channel:
        assert refused(channel, CONTROL, request)[0] == "UNIMPLEMENTED"
    with coordinator.north.channel(coordinator.servers.port) as channel:
        assert refused(channel, JOIN, request)[0] == "UNIMPLEMENTED"


def test_enrolment_is_throttled(started: Callable[..., Coordinator]) -> None:
    coordinator = started(throttle=Throttle(per_second=0.001, burst=2))
    question = make_collect_request(FEDERATION, "east", SiteKey.generate(), utc_now())
    with stranger(coordinator) as channel:
        assert refused(channel, COLLECT, question) == BY_US
        assert refused(channel, COLLECT, question) == BY_US
        assert refused(channel, COLLECT, question) == ("RESOURCE_EXHAUSTED", "too-many")


def test_a_site_renews_its_own_certificate_only(coordinator: Coordinator) -> None:
    key = TlsKey.generate()
    request = make_renew_request(FEDERATION, "north", coordinator.north.node_key, key, utc_now())
    with coordinator.north.channel(coordinator.servers.port) as channel:
        chain = call(channel, RENEW, request, RenewReply).certificate_pem
    renewed = replace(coordinator.north, tls_key_pem=key.private_pem(), chain_pem=chain.encode())
    with coordinator.site(renewed) as north:
        north.wait_open()
    south = coordinator.federation.add("south")
    with south.channel(coordinator.servers.port) as channel:
        assert refused(channel, RENEW, request) == BY_US


def test_operators_steer_auditors_watch_and_sites_do_neither(coordinator: Coordinator) -> None:
    status, stop = ControlRequest(command="status"), ControlRequest(command="stop")
    port = coordinator.servers.port
    with coordinator.federation.grant("ann", "operator").channel(port) as channel:
        for request in (status, stop):
            reply = call(channel, CONTROL, request, ControlReply)
            assert reply.report is not None
    with coordinator.federation.grant("otto", "auditor").channel(port) as channel:
        assert call(channel, CONTROL, status, ControlReply).report is not None
        assert refused(channel, CONTROL, stop) == BY_US
    with coordinator.north.channel(port) as channel:
        assert refused(channel, CONTROL, status) == BY_US
        renew = make_renew_request(
            FEDERATION, "ann", SiteKey.generate(), TlsKey.generate(), utc_now()
        )
    with coordinator.federation.grant("ann", "operator").channel(port) as channel:
        assert refused(channel, RENEW, renew) == BY_US
    assert [request.command for _, request in coordinator.federation.asked] == [
        "status",
        "stop",
        "status",
    ]


def test_an_operator_is_told_why(started: Callable[..., Coordinator]) -> None:
    coordinator = started()
    ann = coordinator.federation.grant("ann", "operator")

    def refuse(operator: Any, request: Any) -> Any:
        raise RunError("expected one run, got two", hint="stop one")

    coordinator.federation.control = refuse  # type: ignore[method-assign]
    with ann.channel(coordinator.servers.port) as channel:
        reply = call(channel, CONTROL, ControlRequest(command="stop"), ControlReply)
    assert (reply.code, reply.message) == ("run", "expected one run, got two\nhint: stop one")


def test_the_servers_certificate_can_be_exchanged_while_they_run(
    started: Callable[..., Coordinator],
) -> None:
    federation = Enrolled()
    shown: list[int] = []
    first, second = federation.tls(), federation.tls()

    def tls() -> Any:
        shown.append(1)
        return first if len(shown) < 4 else second

    _, servers = federation.serve(tls=tls)
    try:
        credentials = federation.add("north")
        for _ in range(3):
            with WireSite(credentials, servers.port, federation=FEDERATION) as north:
                north.wait_open()
        assert len(shown) > 4
    finally:
        servers.stop()


def test_a_port_that_is_taken_is_named(coordinator: Coordinator) -> None:
    from coordinator.service.servers import serve

    tls = coordinator.federation.tls()
    with pytest.raises(RunError, match=f"listen on 127.0.0.1:{coordinator.servers.port}, got no"):
        serve(
            coordinator.grid,
            coordinator.federation,
            lambda: tls,
            federation=FEDERATION,
            address=f"127.0.0.1:{coordinator.servers.port}",
            enrolment_address="127.0.0.1:0",
        )


def test_servers_that_would_take_tls_12_do_not_run(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lax(host: str, port: int) -> None:
        raise SessionError(f"expected {host}:{port} to refuse TLS 1.2, got a handshake")

    monkeypatch.setattr("coordinator.service.servers.check_refuses_tls12", lax)
    with pytest.raises(SessionError, match="to refuse TLS 1.2"):
        Enrolled().serve()


def test_stopping_says_goodbye(started: Callable[..., Coordinator]) -> None:
    coordinator = started()
    with coordinator.site() as north:
        north.wait_open()
        coordinator.servers.stop("until tomorrow")
        north.wait_ended()
        assert north.double.told(Goodbye) == [Goodbye("coordinator-stopping", "until tomorrow")]


def test_the_servers_key_is_in_no_repr() -> None:
    tls = Enrolled().tls()
    assert "PRIVATE" not in repr(tls)
