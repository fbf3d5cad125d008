"""Between what the wire carries and what a ClientApp sees: envelopes and Flower's messages."""

import time
from secrets import token_hex

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict

from client.content import ARRAYS, read_order, refusal_content
from core.aggregation_messages import MaskedInput
from core.errors import CloisterError, MessageError
from core.messages import TrainReply, TrainTask, decode
from core.wire.transfer import Envelope

# What Flower's metadata calls the two ends here; the wire has other names for them.
_COORDINATOR, _SITE = 1, 2


def to_message(envelope: Envelope) -> Message:
    """The order in an envelope, over the very bytes that arrived."""
    metadata = Metadata(
        run_id=envelope.run_number,
        message_id=envelope.message_id,
        src_node_id=_COORDINATOR,
        dst_node_id=_SITE,
        reply_to_message_id="",
        group_id=envelope.group_id,
        created_at=time.time(),  # this machine's clock: Flower compares with it
        ttl=envelope.ttl_seconds,
        message_type=envelope.message_type,
    )
    content = RecordDict({n: ConfigRecord({n: json}) for n, json in envelope.documents.items()})
    if envelope.arrays is not None:
        record = ArrayRecord()
        for name, array in envelope.arrays.items():
            record[name] = Array(array.dtype, array.shape, array.stype, array.data)
        content[envelope.arrays_name] = record
    # The constructor with metadata is the one that works outside Flower's own processes.
    return Message(content, metadata=metadata)  # type: ignore[call-overload, no-any-return]


def context_of(envelope: Envelope) -> Context:
    """The context of an order; a site keeps none of Flower's state between orders."""
    return Context(
        run_id=envelope.run_number,
        node_id=_SITE,
        node_config={},
        state=RecordDict(),
        run_config={},
    )


def to_reply(order: Envelope, content: RecordDict) -> Envelope:
    """The envelope of what a ClientApp answered.

    Raises:
        MessageError: The content is not documents and at most one record of arrays.
    """
    documents: dict[str, bytes] = {}
    arrays: ArrayRecord | None = None
    for name, record in content.items():
        if isinstance(record, ArrayRecord) and name == ARRAYS:
            arrays = record
        elif (document := _document(record, name)) is not None:
            documents[name] = document
        else:
            raise MessageError(f"expected documents and arrays in an answer, got {name!r}")
    digest = "" if arrays is None else _named_digest(documents)
    return Envelope(
        message_id=token_hex(16),
        reply_to=order.message_id,
        message_type=order.message_type,
        group_id=order.group_id,
        run_number=order.run_number,
        ttl_seconds=order.ttl_seconds,
        created_at=time.time(),
        documents=documents,
        arrays_name="" if arrays is None else ARRAYS,
        arrays=None if arrays is None else dict(arrays),
        arrays_digest=digest,
    )


def _named_digest(documents: dict[str, bytes]) -> str:
    """The digest that the documents name, so that it is not counted anew."""
    if "masked" in documents:
        return decode(MaskedInput, documents["masked"]).digest
    return decode(TrainReply, documents.get("reply")).arrays_digest


def _document(record: object, name: str) -> bytes | None:
    """The bytes under the record's own name, where it holds nothing else."""
    if not isinstance(record, ConfigRecord) or list(record) != [name]:
        return None
    document = record[name]
    return document if isinstance(document, bytes) else None


def to_refusal(order: Envelope, error: CloisterError, site: str) -> Envelope:
    """The envelope of a site's no to an order that no ClientApp was asked."""
    task: TrainTask | None
    try:
        task = read_order(to_message(order).content)
    except MessageError:
        task = None  # then the refusal names no round
    return to_reply(order, refusal_content(error, site, task))
