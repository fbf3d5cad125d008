"""What is in the messages to and from a site, as Flower's records."""

from collections.abc import Mapping
from typing import Final, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from core.aggregation_messages import AttemptMessage
from core.array_codec import Encoded, Manifest, decode_arrays
from core.audit_messages import AuditOrder
from core.errors import CloisterError, MessageError, RefusedError
from core.messages import MAX_TEXT, Refusal, TrainReply, TrainTask, WireMessage, decode, encode
from core.parameters import Arrays
from core.task_codec import decode_task

ARRAYS: Final = "arrays"

Record = TypeVar("Record", ArrayRecord, ConfigRecord)
Document = TypeVar("Document", bound=WireMessage)
_UNREADABLE_RUN: Final = "0" * 16
_ABOUT_THE_TASK: Final = (RefusedError, MessageError)


def read_order(content: RecordDict) -> TrainTask:
    """The order in a message, or MessageError."""
    return decode_task(_record(content, "task", ConfigRecord).get("task"))


def read_document(content: RecordDict, name: str, kind: type[Document]) -> Document:
    """The document ``name`` in a message, or MessageError."""
    return decode(kind, _record(content, name, ConfigRecord).get(name))


def read_arrays(content: RecordDict, manifest: Manifest) -> Arrays:
    """The weights in a message, with the names and shapes of ``manifest``, or MessageError."""
    record = _record(content, ARRAYS, ArrayRecord)
    return dict(decode_arrays(dict(record), manifest))


def reply_content(reply: TrainReply, arrays: Mapping[str, Encoded]) -> RecordDict:
    """What a round sends back."""
    return documents_content({"reply": reply}, arrays)


def documents_content(
    documents: Mapping[str, WireMessage], arrays: Mapping[str, Encoded] | None = None
) -> RecordDict:
    """Documents by name and, where there are any, arrays."""
    content = RecordDict()
    for name, document in documents.items():
        content[name] = ConfigRecord({name: encode(document)})
    if arrays is not None:
        record = ArrayRecord()
        for name, fields in arrays.items():
            record[name] = Array(*fields)
        content[ARRAYS] = record
    return content


def refusal_content(
    error: CloisterError, site: str, asked: TrainTask | AttemptMessage | AuditOrder | None
) -> RecordDict:
    """A refusal with its reason.

    Guarantees:
        Only errors about the task and the budget, which are raised before the site's data is
        touched, carry their text; of any other, which may speak of files and records, the name
        alone leaves the site.
    """
    speaks_of_the_task = isinstance(error, _ABOUT_THE_TASK)
    refusal = Refusal(
        run_id=asked.run_id if asked else _UNREADABLE_RUN,
        server_round=asked.server_round if asked else 0,
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
