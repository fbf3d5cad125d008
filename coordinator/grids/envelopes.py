"""Flower's messages as envelopes and back.

A ``ConfigRecord`` ``n`` with the one entry ``n`` of bytes is the document ``n``; an
``ArrayRecord`` is the arrays. Nothing else travels: numbers that a site computed have no other way
out of it than the documents that its policy knows.
"""

from collections.abc import Iterable
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from core.array_codec import Received
from core.errors import MessageError, RunError
from core.messages import TrainReply, TrainTask, decode
from core.wire.frames import NamedDocument
from core.wire.transfer import Envelope

_TASK: Final = "task"
_REPLY: Final = "reply"


def envelope_of(message: Message, message_id: str) -> Envelope:
    """A message of the coordinator's, ready to be sent.

    Guarantees:
        The arrays' bytes are not copied: messages to many nodes share them.

    Raises:
        RunError: It holds a record that does not travel.
    """
    documents: dict[str, bytes] = {}
    arrays: dict[str, dict[str, Received]] = {}
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            arrays[name] = dict(record)
        elif isinstance(record, ConfigRecord) and isinstance(record.get(name), bytes):
            documents[name] = _only_entry(name, record)
        else:
            raise RunError(
                f"expected {name!r} as an ArrayRecord or as a ConfigRecord with bytes under its "
                f"own name, got {type(record).__name__}"
            )
    if len(arrays) > 1:
        raise RunError(f"expected at most one ArrayRecord in a message, got {len(arrays)}")
    arrays_name, tensors = next(iter(arrays.items()), ("", None))
    metadata = message.metadata
    return Envelope(
        message_id=message_id,
        reply_to="",
        message_type=metadata.message_type,
        group_id=metadata.group_id,
        run_number=metadata.run_id,
        ttl_seconds=metadata.ttl,
        created_at=metadata.created_at,
        documents=documents,
        arrays_name=arrays_name,
        arrays=tensors,
        # The order names it, so that it is not counted anew for every site.
        arrays_digest=_named_digest(documents) if tensors else "",
    )


def content_of(envelope: Envelope) -> RecordDict:
    """What a reply holds, as Flower's records over the same bytes."""
    content = RecordDict()
    for name, document in envelope.documents.items():
        content[name] = ConfigRecord({name: document})
    if envelope.arrays is not None:
        record = ArrayRecord()
        for name, array in envelope.arrays.items():
            record[name] = Array(array.dtype, array.shape, array.stype, array.data)
        content[envelope.arrays_name] = record
    return content


def answered_round(documents: Iterable[NamedDocument]) -> tuple[str, int] | None:
    """The run and the round that a reply says it belongs to; ``None`` where it does not say."""
    for document in documents:
        if document.name == _REPLY:
            try:
                reply = decode(TrainReply, document.json)
            except MessageError:
                return None
            return reply.run_id, reply.server_round
    return None


def _only_entry(name: str, record: ConfigRecord) -> bytes:
    document = record[name]
    if len(record) != 1 or not isinstance(document, bytes):
        raise RunError(f"expected {name!r} with one entry, got {len(record)}")
    return document


def _named_digest(documents: dict[str, bytes]) -> str:
    if _TASK not in documents:
        return ""
    return decode(TrainTask, documents[_TASK]).arrays_digest
