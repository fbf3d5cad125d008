"""Flower's ClientApp over ``local_round``: messages in, replies or refusals out."""

import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.local_round import after_debit, check_kept, local_round
from client.outbox import Outbox
from client.site import Site, Workshop
from core.array_codec import Encoded, Manifest, decode_arrays, encode_arrays
from core.errors import CloisterError, MessageError, RefusedError, RoundFailedError
from core.messages import MAX_TEXT, Refusal, TrainReply, TrainTask, encode
from core.parameters import Arrays
from core.task_codec import decode_task

logger = logging.getLogger(__name__)

Record = TypeVar("Record", ArrayRecord, ConfigRecord)
_UNREADABLE_RUN: Final = "0" * 16
_ABOUT_THE_TASK: Final = (RefusedError, MessageError)


def build_client_app(
    site_of: Callable[[Context], Site], workshop: Workshop, outbox: Outbox | None = None
) -> ClientApp:
    """The app that every node runs.

    Guarantees:
        Every order is answered with a reply or a refusal; no exception leaves the app.

    Args:
        site_of: The site behind a node's context; several in a simulation, one at a real site.
        workshop: Builds and holds the models.
        outbox: Keeps computed replies; ``None`` in a simulation, where none can be lost.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = site_of(context)
        order: TrainTask | None = None
        error: CloisterError
        try:
            order = read_order(message.content)
            logger.info("%s: asked for round %d of %s", site.name, order.server_round, order.run_id)
            content = _answer(site, workshop, order, message.content, outbox)
            logger.info("%s: answers round %d", site.name, order.server_round)
            return Message(content, reply_to=message)
        except CloisterError as known:
            error = known
        except Exception:
            # Whatever it is and says, it may speak of records.
            logger.exception("%s: a round failed", site.name)
            error = RoundFailedError("the round failed at the site")
        logger.warning("%s refuses a round: %s", site.name, error)
        return Message(refusal_content(error, site.name, order), reply_to=message)

    return app


def _answer(
    site: Site, workshop: Workshop, order: TrainTask, content: RecordDict, outbox: Outbox | None
) -> RecordDict:
    """A kept reply to the same order, else a new one, kept before it is given out."""
    kept = None if outbox is None else outbox.find(order)
    if kept is not None:
        check_kept(site, order, kept.reply)
        return reply_content(kept.reply, kept.arrays)
    result = local_round(site, workshop, order, read_arrays(content, workshop.manifest))
    with after_debit(order):
        arrays = encode_arrays(result.arrays)
        if outbox is not None:
            outbox.keep(order, result.reply, arrays)
        return reply_content(result.reply, arrays)


def read_order(content: RecordDict) -> TrainTask:
    """The order in a message, or MessageError."""
    return decode_task(_record(content, "task", ConfigRecord).get("task"))


def read_arrays(content: RecordDict, manifest: Manifest) -> Arrays:
    """The weights in a message, with the names and shapes of ``manifest``, or MessageError."""
    record = _record(content, "arrays", ArrayRecord)
    return dict(decode_arrays(dict(record), manifest))


def reply_content(reply: TrainReply, arrays: Mapping[str, Encoded]) -> RecordDict:
    """What a round sends back."""
    record = ArrayRecord()
    for name, fields in arrays.items():
        record[name] = Array(*fields)
    return RecordDict({"reply": ConfigRecord({"reply": encode(reply)}), "arrays": record})


def refusal_content(error: CloisterError, site: str, order: TrainTask | None) -> RecordDict:
    """A refusal with its reason.

    Guarantees:
        Only errors about the task and the budget, which are raised before the site's data is
        touched, carry their text; of any other, which may speak of files and records, the name
        alone leaves the site.
    """
    speaks_of_the_task = isinstance(error, _ABOUT_THE_TASK)
    refusal = Refusal(
        run_id=order.run_id if order else _UNREADABLE_RUN,
        server_round=order.server_round if order else 0,
        site=site,
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
