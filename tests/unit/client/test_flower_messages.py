"""Envelopes as Flower's messages and back."""

import time

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client.content import read_arrays, read_order
from client.flower import context_of, to_message, to_refusal, to_reply
from core.digests import arrays_digest
from core.errors import CloisterError, DataError, MessageError, SiteStoppingError
from core.messages import Refusal, decode, encode
from tests.support.messages import REPLY
from tests.support.site_service import DIGEST, MANIFEST, ORDER, order_envelope


def test_an_order_becomes_a_message_over_the_same_bytes() -> None:
    envelope = order_envelope()
    message = to_message(envelope)
    metadata = message.metadata
    assert (metadata.message_id, metadata.run_id) == (envelope.message_id, 7)
    assert (metadata.message_type, metadata.group_id, metadata.ttl) == ("train", "4", 60.0)
    assert abs(metadata.created_at - time.time()) < 60
    assert read_order(message.content) == ORDER
    assert arrays_digest(read_arrays(message.content, MANIFEST)) == DIGEST
    record = message.content["arrays"]
    assert isinstance(record, ArrayRecord)
    assert envelope.arrays is not None
    for name, array in record.items():
        assert array.data is envelope.arrays[name].data


def test_a_message_can_be_answered_as_in_a_simulation() -> None:
    message = to_message(order_envelope())
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == order_envelope().message_id
    context = context_of(order_envelope())
    assert (context.run_id, dict(context.node_config), dict(context.run_config)) == (7, {}, {})
    assert context.state == RecordDict()


def test_an_answer_becomes_an_envelope_that_names_its_order_and_digest() -> None:
    content = to_message(order_envelope()).content
    reply = RecordDict({"reply": ConfigRecord({"reply": encode(REPLY)})})
    reply["arrays"] = content["arrays"]
    first, second = (to_reply(order_envelope(), reply) for _ in range(2))
    assert first.reply_to == order_envelope().message_id
    assert first.documents == {"reply": encode(REPLY)}
    assert first.arrays_digest == REPLY.arrays_digest
    assert first.message_id != second.message_id


@pytest.mark.parametrize(
    "content",
    [
        {"metrics": MetricRecord({"records": 41})},
        {"reply": ConfigRecord({"reply": "text"})},
        {"reply": ConfigRecord({"other": b"{}"})},
        {"reply": ConfigRecord({"reply": b"{}", "more": 1})},
        {"weights": ArrayRecord()},
    ],
)
def test_nothing_but_documents_and_arrays_leaves(content: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="expected documents and arrays in an answer"):
        to_reply(order_envelope(), RecordDict(content))  # type: ignore[arg-type]


def test_arrays_without_a_reply_do_not_leave() -> None:
    with pytest.raises(MessageError, match="expected TrainReply as bytes, got NoneType"):
        to_reply(order_envelope(), RecordDict({"arrays": ArrayRecord()}))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SiteStoppingError("told to stop"), "told to stop"),
        (DataError("records.jsonl, line 7: odd"), "see the site's own log"),
    ],
)
def test_a_refusal_names_the_round_and_nothing_private(error: CloisterError, message: str) -> None:
    refusal = decode(Refusal, to_refusal(order_envelope(), error, "north").documents["refusal"])
    assert (refusal.site, refusal.server_round, refusal.code) == ("north", 4, error.code)
    assert refusal.message == message
