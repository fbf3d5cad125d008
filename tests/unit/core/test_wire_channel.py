"""How gRPC is set up: names as in the contract, options that gRPC knows, TLS 1.3 or nothing."""

import os
import re
import sys
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from core.errors import SessionError
from core.wire import channel, cloister_pb2
from core.wire.channel import channel_options, quiet_grpc, require_tls13, server_options
from core.wire.limits import MAX_FRAME_BYTES

SUITES, GRPC = "GRPC_SSL_CIPHER_SUITES", "grpc._cython.cygrpc"


def test_the_names_of_the_methods_are_the_contract_s() -> None:
    services = cloister_pb2.DESCRIPTOR.services_by_name.values()
    contract = {f"/{s.full_name}/{method.name}" for s in services for method in s.methods}
    ours = (channel.SESSION, channel.RENEW, channel.CONTROL, channel.JOIN, channel.COLLECT)
    assert contract == set(ours)
    assert {s.full_name for s in services} == {channel.FEDERATION, channel.ENROLMENT}


def test_grpc_knows_every_option() -> None:
    # It passes over unknown ones without a word.
    binary = Path(cygrpc.__file__).read_bytes()
    for name, _ in (*channel_options("coordinator"), *server_options()):
        assert name.encode() + b"\0" in binary, name


def test_both_ends_have_the_limits_and_no_compression() -> None:
    for options in (dict(channel_options("coordinator")), dict(server_options())):
        assert options["grpc.max_receive_message_length"] == MAX_FRAME_BYTES
        assert options["grpc.compression_enabled_algorithms_bitset"] == 1


def test_a_connection_without_a_call_is_not_kept() -> None:
    assert dict(server_options())["grpc.max_connection_idle_ms"] == channel.IDLE_SECONDS * 1000


def test_a_channel_expects_the_name_of_the_server_s_certificate() -> None:
    assert dict(channel_options("coordinator"))["grpc.ssl_target_name_override"] == "coordinator"


def test_pings_of_one_end_are_no_abuse_to_the_other() -> None:
    allowed = dict(server_options())["grpc.http2.min_ping_interval_without_data_ms"]
    sent = dict(channel_options("coordinator"))["grpc.keepalive_time_ms"]
    assert isinstance(allowed, int)
    assert isinstance(sent, int)
    assert allowed < sent


def test_tls13_is_required_before_grpc_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, GRPC)
    monkeypatch.setenv(SUITES, "anything else")
    require_tls13()
    assert os.environ[SUITES] == "ECDHE-PSK-CHACHA20-POLY1305"
    monkeypatch.setitem(sys.modules, GRPC, cygrpc)
    require_tls13()  # it was done in time


@pytest.mark.parametrize("suites", [None, "", "ECDHE-RSA-AES128-GCM-SHA256"])
def test_tls13_cannot_be_required_too_late(
    monkeypatch: pytest.MonkeyPatch, suites: str | None
) -> None:
    monkeypatch.delenv(SUITES)
    if suites is not None:
        monkeypatch.setenv(SUITES, suites)
    words = "expected to require TLS 1.3 before gRPC is imported, got it imported already\nhint: "
    with pytest.raises(SessionError, match=re.escape(words)):
        require_tls13()
    assert os.environ.get(SUITES) == suites


def test_grpc_is_quiet_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    quiet_grpc()
    assert os.environ["GRPC_VERBOSITY"] == "NONE"
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    quiet_grpc()
    assert os.environ["GRPC_VERBOSITY"] == "DEBUG"
