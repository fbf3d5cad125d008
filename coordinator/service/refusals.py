"""What a peer learns of an error: a fixed status and the error's name. The log has the rest."""

import logging
from typing import Final, NoReturn

import grpc

from core.errors import (
    CloisterError,
    IdentityError,
    MessageError,
    RosterRollbackError,
    SessionError,
    TooManyError,
)

logger = logging.getLogger(__name__)

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
    logger.warning("refused %s to %s: %s: %s", what, context.peer(), error.code, error.message)
    _abort(context, next(status for kind, status in _STATUS if isinstance(error, kind)), error.code)


def give_up(context: grpc.ServicerContext) -> NoReturn:
    """Ends a call because of an error of ours, which the log has."""
    _abort(context, grpc.StatusCode.INTERNAL, "internal")


def _abort(context: grpc.ServicerContext, status: grpc.StatusCode, code: str) -> NoReturn:
    context.abort(status, code)
    raise RuntimeError("gRPC's abort does not return")
