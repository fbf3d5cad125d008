"""How gRPC is set up on both sides: method names, limits, liveness, TLS 1.3.

Imports neither gRPC nor anything large: gRPC reads its environment when it is first imported.
"""

import contextlib
import os
import socket
import ssl
import sys
from typing import Final

from core.errors import SessionError
from core.wire.limits import MAX_FRAME_BYTES

FEDERATION: Final = "cloister.v1.Federation"
ENROLMENT: Final = "cloister.v1.Enrolment"
SESSION: Final = f"/{FEDERATION}/Session"
RENEW: Final = f"/{FEDERATION}/Renew"
CONTROL: Final = f"/{FEDERATION}/Control"
JOIN: Final = f"/{ENROLMENT}/Join"
COLLECT: Final = f"/{ENROLMENT}/Collect"

MAX_METADATA_BYTES: Final = 8 * 1024
MAX_STREAMS_PER_CONNECTION: Final = 8
KEEPALIVE_SECONDS: Final = 10
KEEPALIVE_TIMEOUT_SECONDS: Final = 5
HANDSHAKE_SECONDS: Final = 10
IDLE_SECONDS: Final = 60

Options = list[tuple[str, str | int]]

_CIPHER_SUITES: Final = "GRPC_SSL_CIPHER_SUITES"
# A suite of TLS 1.2 for pre-shared keys. gRPC has none, so no handshake of TLS 1.2 can agree on
# a suite, whatever kind of key the certificates have; the suites of TLS 1.3 are not chosen here.
_NONE_FOR_TLS12: Final = "ECDHE-PSK-CHACHA20-POLY1305"
# RFC 8446 section 5.1: the content type of a handshake record; an alert has another.
_HANDSHAKE_RECORD: Final = b"\x16"
_GRPC: Final = "grpc._cython.cygrpc"


def require_tls13() -> None:
    """Makes this process speak TLS 1.3 and nothing older, in both directions.

    gRPC's Python interface has no setting for it, so it is left without a suite for TLS 1.2.

    Guarantees:
        After it returns, a channel or server of this process completes no handshake below
        TLS 1.3.

    Raises:
        SessionError: gRPC was imported before, and has read its environment.
    """
    if os.environ.get(_CIPHER_SUITES) == _NONE_FOR_TLS12:
        return
    if _GRPC in sys.modules:
        raise SessionError(
            "expected to require TLS 1.3 before gRPC is imported, got it imported already",
            hint="call require_tls13() first, before any import of grpc or of what imports it",
        )
    os.environ[_CIPHER_SUITES] = _NONE_FOR_TLS12


def quiet_grpc() -> None:
    """Keeps gRPC's own lines off stderr, unless the environment asks for them; call it before
    gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def check_refuses_tls12(host: str, port: int, *, timeout_seconds: float = 5.0) -> None:
    """Offers a server of ours TLS 1.2 and nothing newer, and wants to be refused.

    Looks at the first answer only: a server that goes on with the handshake would refuse later
    whoever has no certificate, and that says nothing about versions.

    Raises:
        SessionError: The server agreed, or did not answer.
    """
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            connection.sendall(_tls12_hello())
            answer = connection.recv(1)
    except ConnectionResetError:
        return
    except OSError as error:
        raise SessionError(f"expected an answer from {host}:{port}, got {error}") from error
    if answer == _HANDSHAKE_RECORD:
        raise SessionError(
            f"expected {host}:{port} to refuse TLS 1.2, got a handshake",
            hint="call require_tls13() before gRPC is imported",
        )


def _tls12_hello() -> bytes:
    """What a client says first that knows TLS 1.2 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it never comes to that
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    return hello.read()


def channel_options(server_name: str) -> Options:
    """A site's or an operator's end.

    Args:
        server_name: The name that the coordinator's certificate bears.
    """
    return [
        *_both_ends(),
        ("grpc.ssl_target_name_override", server_name),
        # A later channel may have another certificate: it gets a connection of its own.
        ("grpc.use_local_subchannel_pool", 1),
        # What is sent again, and when, is for the session to say.
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
    ]


def server_options() -> Options:
    """The coordinator's end."""
    return [
        *_both_ends(),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # A connection without a call: whoever opens many would take all of the process's files.
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        # Less than the other end's keepalive, or its pings would count as abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
        # A second server on the same port is an error, not a share of the connections.
        ("grpc.so_reuseport", 0),
    ]


def _both_ends() -> Options:
    return [
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # Weights do not compress, and compression beside secrets leaks them.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.default_compression_algorithm", 0),
    ]
