"""gRPC at the site: channels to the coordinator, and calls of one document each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc

from core.errors import CloisterError, IdentityError, SessionError
from core.messages import WireMessage, decode, encode
from core.wire.channel import channel_options
from core.wire.documents import Invitation
from core.wire.frames import decode_document, encode_document
from privacy.identities.tls_keys import TlsKey

CALL_SECONDS: Final = 15.0

Reply = TypeVar("Reply", bound=WireMessage)

_REFUSED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@contextmanager
def enrolment_channel(membership: Invitation) -> Iterator[Any]:
    """To the servers where only the coordinator shows a certificate; closed at the end."""
    credentials = grpc.ssl_channel_credentials(membership.ca_pem.encode("ascii"))
    options = channel_options(membership.server_name)
    with grpc.secure_channel(membership.enrolment_address, credentials, options) as channel:
        yield channel


def session_channel(membership: Invitation, key: TlsKey, chain_pem: str) -> Any:
    """To the servers where both sides show one.

    Guarantees:
        It connects only to a holder of a certificate for the pinned server name, from the pinned
        root.
    """
    credentials = grpc.ssl_channel_credentials(
        membership.ca_pem.encode("ascii"), key.private_pem(), chain_pem.encode("ascii")
    )
    options = channel_options(membership.server_name)
    return grpc.secure_channel(membership.address, credentials, options)


def call(channel: Any, method: str, request: WireMessage, kind: type[Reply]) -> Reply:
    """Asks, and waits for the answer.

    Raises:
        IdentityError: The coordinator says no.
        SessionError: It cannot be reached, or does not answer.
        MessageError: Its answer does not parse.
    """
    ask = channel.unary_unary(method)  # bytes in, bytes out
    try:
        answer = ask(encode_document(encode(request)), timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        raise error_of(error) from error
    return decode(kind, decode_document(answer))


# Long enough for why a TLS handshake failed, which gRPC says last.
_MAX_DETAILS: Final = 400


def error_of(error: Any) -> CloisterError:
    """What gRPC says, by name; of the peer's own words only short, printable ones."""
    code = error.code()
    details = ascii((error.details() or "")[:_MAX_DETAILS])[1:-1]
    if code in _REFUSED:
        return IdentityError(
            f"the coordinator refuses this site: {details}",
            hint="its log says why; `cloister client check` looks at this side",
        )
    return SessionError(
        f"expected the coordinator to answer, got {code.name}: {details}",
        hint="check its address, the network, and that it runs",
    )
