"""The coordinator's two gRPC servers: one for those who belong, one for those who want to.

The first takes mutual TLS only; every call is that of one active entry of the roster. The second
shows a certificate and asks for none, since whoever joins has none yet: it is throttled, and what
it is told is for the doorkeeper to believe or not.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

import grpc

from coordinator.grids.remote import RemoteGrid
from coordinator.service.doorkeeper import Doorkeeper
from coordinator.service.peers import Gate, Peer, member_of, operator_of
from coordinator.service.refusals import give_up, refuse
from coordinator.service.requests import REQUEST_SECONDS, Requests
from coordinator.service.sessions import Sessions, Watch
from coordinator.service.throttle import Throttle, caller_address
from core.errors import CloisterError, IdentityError, RunError, TooManyError
from core.messages import MAX_TEXT, WireMessage, decode, encode
from core.wire.channel import (
    COLLECT,
    CONTROL,
    ENROLMENT,
    FEDERATION,
    HANDSHAKE_SECONDS,
    JOIN,
    RENEW,
    SESSION,
    check_refuses_tls12,
    server_options,
)
from core.wire.documents import (
    CollectReply,
    CollectRequest,
    ControlReply,
    ControlRequest,
    JoinReply,
    JoinRequest,
    RenewReply,
    RenewRequest,
)
from core.wire.frames import decode_document, encode_document
from privacy.identities.clock import utc_now

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=WireMessage)
Caller = TypeVar("Caller")

# Threads that sessions leave to the calls of operators and renewals.
_SPARE_THREADS: Final = 16
_ENROLMENT_THREADS: Final = 16
_STOP_SECONDS: Final = 2.0


@dataclass(frozen=True)
class ServerTls:
    """What the servers show and whom they trust.

    **Guarantees**: The key is in no ``repr``.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes
    """The server's certificate and what is between it and the root."""
    root_pem: bytes
    """What sites and operators chain to."""


class Servers:
    """Both servers, while they run."""

    def __init__(
        self, federation: "_Listener", enrolment: "_Listener", sessions: Sessions, watch: Watch
    ) -> None:
        self.port = federation.port
        """Where sessions and control are."""
        self.enrolment_port = enrolment.port
        """Where sites join."""
        self._listeners = (enrolment, federation)
        self._sessions = sessions
        self._watch = watch

    def stop(self, reason: str = "the coordinator stops") -> None:
        """Says goodbye to the sites and ends both servers."""
        self._sessions.close("coordinator-stopping", reason)
        for stopped in [listener.server.stop(_STOP_SECONDS) for listener in self._listeners]:
            stopped.wait()
        self._watch.close()


def serve(
    grid: RemoteGrid,
    doorkeeper: Doorkeeper,
    tls: Callable[[], ServerTls],
    *,
    federation: str,
    address: str,
    enrolment_address: str,
    max_sessions: int = 256,
    handshake_seconds: float = HANDSHAKE_SECONDS,
    request_seconds: float = REQUEST_SECONDS,
    throttle: Throttle | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Servers:
    """Starts both servers.

    Guarantees:
        Nothing is answered over TLS older than 1.3: that is tried at the start, and the servers
        do not run where it is not so. No error of a peer's making reaches gRPC raw. Who calls is
        known before what is asked is read, and whoever asks nothing is cut.

    Args:
        grid: Where sessions are opened.
        doorkeeper: Who belongs, and who may join.
        tls: Key and certificates; asked at each connection, so that they can be exchanged. The
            root is that of the first answer.
        federation: The federation.
        address: For sessions and control, ``host:port``; port 0 for any free one.
        enrolment_address: For enrolment.
        max_sessions: Streams of sites at a time.
        handshake_seconds: How long a session may take to open.
        request_seconds: How long the request of any other call may take to come.
        throttle: How often an address may call the enrolment.
        now: UTC.

    Raises:
        RunError: An address cannot be listened on.
        SessionError: TLS 1.2 is not refused.
    """
    gate = Gate(tls().root_pem.decode("ascii"), doorkeeper.roster, now=now)
    sessions = Sessions(
        grid,
        gate,
        federation,
        max_sessions=max_sessions,
        handshake_seconds=handshake_seconds,
        now=now,
    )
    calls = _Calls(gate, doorkeeper, throttle or Throttle(), Requests(request_seconds))
    members = _Listener(
        address,
        _credentials(tls, mutual=True),
        FEDERATION,
        {
            SESSION: grpc.stream_stream_rpc_method_handler(sessions.handle),
            RENEW: calls.handler(RenewRequest, calls.peer, calls.renew),
            CONTROL: calls.handler(ControlRequest, calls.peer, calls.control),
        },
        threads=max_sessions + _SPARE_THREADS,
    )
    strangers = _Listener(
        enrolment_address,
        _credentials(tls, mutual=False),
        ENROLMENT,
        {
            JOIN: calls.handler(JoinRequest, calls.stranger, calls.join),
            COLLECT: calls.handler(CollectRequest, calls.stranger, calls.collect),
        },
        threads=_ENROLMENT_THREADS,
    )
    for listener in (members, strangers):
        listener.start()

    def look() -> None:
        calls.requests.cut_overdue()
        sessions.watch()

    return Servers(members, strangers, sessions, Watch(look))


class _Listener:
    """One server on one address."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials,
        service: str,
        handlers: dict[str, grpc.RpcMethodHandler],
        *,
        threads: int,
    ) -> None:
        self.server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix=service.rpartition(".")[2].lower()),
            options=server_options(),
            maximum_concurrent_rpcs=threads,
        )
        # Handlers get and give bytes: what is parsed, we parse.
        named = {path.rpartition("/")[2]: handler for path, handler in handlers.items()}
        generic = grpc.method_handlers_generic_handler(service, named)
        self.server.add_generic_rpc_handlers((generic,))
        self._host = address.rpartition(":")[0].strip("[]")
        try:
            self.port: int = self.server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise RunError(
                f"expected to listen on {address}, got no such port",
                hint="is another coordinator running, or the address another machine's?",
            ) from error

    def start(self) -> None:
        self.server.start()
        wildcard = self._host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        try:
            check_refuses_tls12("localhost" if wildcard else self._host, self.port)
        except CloisterError:
            self.server.stop(None)
            raise


class _Calls:
    """The calls that are no sessions."""

    def __init__(
        self, gate: Gate, doorkeeper: Doorkeeper, throttle: Throttle, requests: Requests
    ) -> None:
        self._gate = gate
        self._doorkeeper = doorkeeper
        self._throttle = throttle
        self.requests = requests

    def handler(
        self,
        kind: type[Request],
        who: Callable[[grpc.ServicerContext], tuple[str, Caller]],
        answer: Callable[[Request, Caller], WireMessage],
    ) -> grpc.RpcMethodHandler:
        """gRPC's handler of a call: who calls, then what is asked, then the answer."""

        def handle(stream: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                name, caller = who(context)
                request = decode(kind, decode_document(self.requests.read(name, stream, context)))
                return encode_document(encode(answer(request, caller)))
            except CloisterError as error:
                refuse(context, error, kind.__name__)
            except grpc.RpcError:
                raise  # the peer is gone or was cut; gRPC knows
            except Exception:
                logger.exception("%s failed: a defect of ours", kind.__name__)
                give_up(context)

        # As a stream of one, so that the handler begins before the request is there.
        return grpc.stream_unary_rpc_method_handler(handle)

    def peer(self, context: grpc.ServicerContext) -> tuple[str, Peer]:
        peer = self._gate.identify(context.auth_context())
        return peer.entry.tls_name, peer

    def stranger(self, context: grpc.ServicerContext) -> tuple[str, None]:
        address = caller_address(context.peer())
        if not self._throttle.admits(address):
            raise TooManyError("expected fewer calls to the enrolment from one address, got more")
        return address, None

    def renew(self, request: RenewRequest, peer: Peer) -> RenewReply:
        return self._doorkeeper.renew(member_of(peer), request)

    def control(self, request: ControlRequest, peer: Peer) -> ControlReply:
        operator = operator_of(peer)
        if operator.role != "operator" and request.command != "status":
            raise IdentityError(
                f"expected an operator for {request.command!r}, got the {operator.role} "
                f"{operator.name}"
            )
        try:
            return self._doorkeeper.control(operator, request)
        except CloisterError as error:  # an operator may know why
            return ControlReply(code=error.code, message=str(error)[:MAX_TEXT])

    def join(self, request: JoinRequest, caller: None) -> JoinReply:
        return self._doorkeeper.join(request)

    def collect(self, request: CollectRequest, caller: None) -> CollectReply:
        return self._doorkeeper.collect(request)


def _credentials(tls: Callable[[], ServerTls], *, mutual: bool) -> grpc.ServerCredentials:
    present, lock = tls(), threading.Lock()

    def configuration(material: ServerTls) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(material.key_pem, material.chain_pem)],
            root_certificates=material.root_pem if mutual else None,
        )

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC at each connection; ``None`` where all is as it was."""
        nonlocal present
        newest = tls()
        with lock:
            if newest == present:
                return None
            present = newest
        return configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        configuration(present), changed, require_client_authentication=mutual
    )
