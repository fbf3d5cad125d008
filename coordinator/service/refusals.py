"""What a peer learns of an error: a fixed status and the error's name. The log has the rest, if it
is not the same thousands of times."""

import logging
from typing import Final, NoReturn

import grpc

from coordinator.service.throttle import Throttle, caller_address
from core.errors import (
    CloisterError,
    IdentityError,
    MessageError,
    RosterRollbackError,
    SessionError,
    TooManyError,
)

logger = logging.getLogger(__name__)

# Lines of the log: so that nobody fills the disk by being refused.
_LINES: Final = Throttle(per_second=1.0, burst=1000.0)
# The first that fits.
_STATUS: Final[tuple[tuple[type[CloisterError], grpc.StatusCode], ...]] = (
    (RosterRollbackError, grpc.StatusCode.FAILED_PRECONDITION),
    (IdentityError, grpc.StatusCode.UNAUTHENTICATED),
    (MessageError, grpc.StatusCode.INVALID_ARGUMENT),
    (TooManyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SessionError, grpc.StatusCode.ABORTED),
    (CloisterError, grpc.StatusCode.FAILED_PRECONDITION),
)


def refuse(context: grpc.ServicerContext, error: CloisterError, what: str) -> NoReturn:
    """Ends a call because of ``error``; raises what gRPC's ``abort`` raises."""
    if _LINES.admits(caller_address(context.peer())):
        logger.warning("refused %s to %s: %s: %s", what, context.peer(), error.code, error.message)
    _abort(context, next(status for kind, status in _STATUS if isinstance(error, kind)), error.code)


def give_up(context: grpc.ServicerContext) -> NoReturn:
    """Ends a call because of an error of ours, which the log has."""
    _abort(context, grpc.StatusCode.INTERNAL, "internal")


def _abort(context: grpc.ServicerContext, status: grpc.StatusCode, code: str) -> NoReturn:
    context.abort(status, code)
    raise RuntimeError("gRPC's abort does not return")
