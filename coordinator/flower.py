"""The one file that touches Flower's internals; everything else uses its public modules.

Messages are built from their metadata, because Flower's own constructor works only inside a
process that its engine started.
"""

import logging
import time
from typing import Final

from flwr.app import DEFAULT_TTL, Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run

# Flower's name for the sender of the coordinator's messages.
COORDINATOR_NODE_ID: Final = 1
CLIENT_RAISED: Final = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NODE_UNAVAILABLE: Final = ErrorCode.NODE_UNAVAILABLE
# A reply came and was not fit to be given on.
REPLY_REJECTED: Final = ErrorCode.REPLY_MESSAGE_UNAVAILABLE


def instruction(
    content: RecordDict,
    *,
    run_id: int,
    message_id: str,
    dst_node_id: int,
    message_type: str,
    group_id: str = "",
    ttl: float | None = None,
) -> Message:
    """A message from the coordinator to a node."""
    metadata = Metadata(
        run_id=run_id,
        message_id=message_id,
        src_node_id=COORDINATOR_NODE_ID,
        dst_node_id=dst_node_id,
        reply_to_message_id="",
        group_id=group_id,
        created_at=time.time(),
        ttl=DEFAULT_TTL if ttl is None else ttl,
        message_type=message_type,
    )
    return make_message(metadata, content)


def error_reply(message: Message, code: int, reason: str) -> Message:
    """Says that ``message`` could not be handled."""
    return Message(Error(code, reason), reply_to=message)


def empty_run(run_id: int) -> Run:
    """What Flower knows of a run that its engine did not start: the number."""
    return Run.create_empty(run_id)


def quiet_flower() -> None:
    """Keeps Flower's progress lines off stderr; its warnings stay."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


__all__ = [
    "CLIENT_RAISED",
    "COORDINATOR_NODE_ID",
    "NODE_UNAVAILABLE",
    "REPLY_REJECTED",
    "Run",
    "empty_run",
    "error_reply",
    "instruction",
    "quiet_flower",
]
