"""The operator's end of the control call."""

from typing import Any, Final

import grpc

from coordinator.service.access import Access
from core.errors import IdentityError, ServiceError, SessionError
from core.messages import decode, encode
from core.wire.channel import CONTROL, channel_options
from core.wire.documents import ControlReply, ControlRequest
from core.wire.frames import decode_document, encode_document

_SECONDS: Final = 15.0
_REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def ask_service(access: Access, request: ControlRequest) -> ControlReply:
    """Asks the running service.

    Guarantees:
        Only a holder of the server's certificate, from the federation's root, is asked.

    Raises:
        SessionError: Nobody answers there.
        IdentityError: The service does not know this operator.
        ServiceError: It says no, and why.
        MessageError: Its answer does not parse.
    """
    credentials = grpc.ssl_channel_credentials(
        access.root_pem.encode("ascii"),
        access.key.private_pem(),
        access.chain_pem.encode("ascii"),
    )
    where = access.where
    options = channel_options(where.server_name)
    with grpc.secure_channel(where.address, credentials, options) as channel:
        ask = channel.unary_unary(CONTROL)  # bytes in, bytes out
        try:
            answer = ask(encode_document(encode(request)), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise _error_of(error, access) from error
    reply = decode(ControlReply, decode_document(answer))
    if reply.code:
        raise ServiceError(f"the service refuses ({reply.code}): {reply.message}")
    return reply


def _error_of(error: Any, access: Access) -> IdentityError | SessionError:
    details = ascii((error.details() or "")[:200])[1:-1]
    if error.code() in _REFUSED:
        return IdentityError(
            f"the service does not take {access.where.name}'s certificate: {details}",
            hint="its log says why; `cloister coordinator grant` gives a new certificate",
        )
    return SessionError(
        f"expected the coordinator's service at {access.where.address}, "
        f"got {error.code().name}: {details}",
        hint="start it: cloister coordinator start",
    )
