"""Contract tests: what we rely on inside Flower is there and does what we think."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.run import Run

from coordinator.flower import (
    CLIENT_RAISED,
    COORDINATOR_NODE_ID,
    NODE_UNAVAILABLE,
    empty_run,
    error_reply,
    instruction,
    quiet_flower,
)


def _message() -> Message:
    content = RecordDict({"task": ConfigRecord({"task": b"x"})})
    return instruction(content, run_id=9, message_id="m1", dst_node_id=5, message_type="train")


def test_an_instruction_needs_no_flower_process_and_carries_its_metadata() -> None:
    message = _message()

    assert message.metadata.run_id == 9
    assert message.metadata.message_id == "m1"
    assert message.metadata.src_node_id == COORDINATOR_NODE_ID
    assert message.metadata.dst_node_id == 5
    assert message.content["task"]["task"] == b"x"


def test_a_reply_goes_back_to_the_sender() -> None:
    reply = Message(RecordDict(), reply_to=_message())

    assert reply.metadata.src_node_id == 5
    assert reply.metadata.dst_node_id == COORDINATOR_NODE_ID
    assert reply.metadata.reply_to_message_id == "m1"


def test_an_error_reply_has_an_error_and_no_content() -> None:
    reply = error_reply(_message(), CLIENT_RAISED, "ValueError")

    assert reply.has_error()
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (CLIENT_RAISED, "ValueError")


def test_make_message_keeps_metadata_and_content_as_they_are() -> None:
    message = _message()

    copy = make_message(message.metadata, message.content)

    assert copy.metadata is message.metadata
    assert copy.content is message.content


def test_an_empty_run_is_flowers_run() -> None:
    assert isinstance(empty_run(3), Run)
    assert empty_run(3).run_id == 3


def test_the_error_codes_are_flowers() -> None:
    assert CLIENT_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert NODE_UNAVAILABLE == ErrorCode.NODE_UNAVAILABLE


def test_flowers_aggregation_reads_arrays_through_numpy_only() -> None:
    class Lent(Array):
        def numpy(self) -> np.ndarray:
            return np.full(2, 3.0, np.float32)

    record = ArrayRecord()
    record["a"] = Lent("float32", (2,), "numpy.ndarray", b"")
    reply = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 4})})

    result = aggregate_arrayrecords([reply], "num-examples")

    np.testing.assert_array_equal(result["a"].numpy(), np.full(2, 3.0, np.float32))


def test_quiet_flower_silences_progress_and_keeps_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flower = logging.getLogger("flwr")
    before = flower.level
    try:
        quiet_flower()
        assert not flower.isEnabledFor(logging.INFO)
        assert flower.isEnabledFor(logging.WARNING)
    finally:
        flower.setLevel(before)
