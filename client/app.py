"""Flower's ClientApp over ``local_round``: messages in, replies or refusals out."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.local_round import RoundResult, local_round
from client.site import Site, Workshop
from core.array_codec import Manifest, decode_arrays, encode_arrays
from core.errors import (
    CloisterError,
    LossContractError,
    MessageError,
    RefusedError,
    UnsupportedLayerError,
)
from core.messages import MAX_TEXT, Refusal, TrainTask, decode, encode
from core.parameters import Arrays

logger = logging.getLogger(__name__)

Record = TypeVar("Record", ArrayRecord, ConfigRecord)
_UNREADABLE_RUN: Final = "0" * 16
_ABOUT_THE_TASK: Final = (RefusedError, MessageError, UnsupportedLayerError, LossContractError)


def build_client_app(site_of: Callable[[Context], Site], workshop: Workshop) -> ClientApp:
    """The app that every node runs.

    Args:
        site_of: The site behind a node's context; several in a simulation, one at a real site.
        workshop: Builds and holds the models.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = site_of(context)
        order: TrainTask | None = None
        try:
            order = read_order(message.content)
            arrays = read_arrays(message.content, workshop.manifest)
            result = local_round(site, workshop, order, arrays)
        except CloisterError as error:
            logger.warning("%s refuses a round: %s", site.name, error)
            return Message(refusal_content(error, site, order), reply_to=message)
        return Message(reply_content(result), reply_to=message)

    return app


def read_order(content: RecordDict) -> TrainTask:
    """The order in a message, or MessageError."""
    return decode(TrainTask, _record(content, "task", ConfigRecord).get("task"))


def read_arrays(content: RecordDict, manifest: Manifest) -> Arrays:
    """The weights in a message, with the names and shapes of ``manifest``, or MessageError."""
    record = _record(content, "arrays", ArrayRecord)
    return dict(decode_arrays(dict(record), manifest))


def reply_content(result: RoundResult) -> RecordDict:
    """What a round sends back."""
    arrays = ArrayRecord()
    for name, fields in encode_arrays(result.arrays).items():
        arrays[name] = Array(*fields)
    return RecordDict({"reply": ConfigRecord({"reply": encode(result.reply)}), "arrays": arrays})


def refusal_content(error: CloisterError, site: Site, order: TrainTask | None) -> RecordDict:
    """A refusal with its reason.

    Guarantees:
        Only errors about the task, the model and the budget carry their text; of any other, which
        may speak of files and records, the name alone leaves the site.
    """
    speaks_of_the_task = isinstance(error, _ABOUT_THE_TASK)
    refusal = Refusal(
        run_id=order.run_id if order else _UNREADABLE_RUN,
        server_round=order.server_round if order else 0,
        site=site.name,
        code=error.code,
        message=error.message[:MAX_TEXT] if speaks_of_the_task else "see the site's own log",
        hint=error.hint[:MAX_TEXT] if speaks_of_the_task else "",
    )
    return RecordDict({"refusal": ConfigRecord({"refusal": encode(refusal)})})


def _record(content: RecordDict, name: str, kind: type[Record]) -> Record:
    record = content.get(name)
    if not isinstance(record, kind):
        raise MessageError(f"expected the {kind.__name__} {name!r}, got {type(record).__name__}")
    return record
