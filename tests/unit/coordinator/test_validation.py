from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from coordinator.flower import error_reply, instruction
from coordinator.validation import (
    Outcome,
    ReplyRules,
    ValidReply,
    sort_replies,
    validate_reply,
)
from core.digests import arrays_digest
from core.errors import MessageError
from core.messages import LedgerHead, TrainTask
from core.run_record import RejectedReply, SiteRefusal
from core.update_codec import UpdateEncoding, decode_update, encode_update
from tests.support.lies import LIES
from tests.support.messages import TERMS
from tests.support.sites import INITIAL, honest_update, refusal_content, reply_content

WITNESS = LedgerHead(sequence=4, digest="4" * 64)


def _task(site: str = "liar", **changes: Any) -> TrainTask:
    fields: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "server_round": 2,
        "attempt": 1,
        "site": site,
        "arrays_digest": arrays_digest(INITIAL),
        "terms": TERMS,
        "task_digest": TERMS.digest(),
        "num_examples": 100,
    }
    return TrainTask(**(fields | changes))


def _rules(
    max_update_norm: float | None = 50.0,
    *,
    verify_digest: bool = True,
    encoding: UpdateEncoding = "fp32",
) -> ReplyRules:
    return ReplyRules.of(
        INITIAL, encoding=encoding, max_update_norm=max_update_norm, verify_digest=verify_digest
    )


def _sent(node: int = 5) -> Message:
    return instruction(
        RecordDict(), run_id=0, message_id="m", dst_node_id=node, message_type="train"
    )


def _reply(content: RecordDict, node: int = 5) -> Message:
    return Message(content, reply_to=_sent(node))


def _honest(task: TrainTask) -> RecordDict:
    return reply_content(task, honest_update(INITIAL, task.site, task.server_round), 5)


def _sort(*messages: Message, **sites: int) -> Outcome:
    orders = {node: _task(site) for site, node in (sites or {"liar": 5}).items()}
    return sort_replies(messages, orders, _rules())


def test_an_honest_reply_is_valid_and_its_arrays_are_what_was_sent() -> None:
    task = _task()

    outcome = _sort(_reply(_honest(task)))

    (valid,) = outcome.valid
    assert valid.site == "liar"
    assert valid.reply.ledger_head.sequence == 5
    expected = honest_update(INITIAL, "liar", 2)
    assert all(np.array_equal(valid.arrays[name], expected[name]) for name in expected)
    assert not outcome.refusals
    assert not outcome.rejected


@pytest.mark.parametrize("name", LIES)
def test_each_lie_is_a_message_error_that_says_what_was_expected(name: str) -> None:
    lie, expected = LIES[name]
    task = _task()

    with pytest.raises(MessageError) as caught:
        validate_reply(_reply(lie(task, _honest(task))), task, _rules())

    assert expected in caught.value.message


@pytest.mark.parametrize("name", LIES)
def test_each_lie_is_dropped_by_name(name: str) -> None:
    lie, expected = LIES[name]

    outcome = _sort(_reply(lie(_task(), _honest(_task()))))

    (rejected,) = outcome.rejected
    assert (rejected.site, rejected.code) == ("liar", "invalid-reply")
    assert expected in rejected.message
    assert not outcome.valid


def test_a_refusal_is_heard() -> None:
    outcome = _sort(_reply(refusal_content(_task())))

    (refusal,) = outcome.refusals
    assert refusal == SiteRefusal(
        "liar",
        "budget-exceeded",
        "expected epsilon of at most 8, got a task that would reach 9",
        "raise policy.max_epsilon",
    )


def test_a_refusal_of_a_task_that_could_not_be_read_is_heard() -> None:
    assert _sort(_reply(refusal_content(_task(), server_round=0))).refusals


def test_silence_and_errors_are_named() -> None:
    failed = error_reply(_sent(6), 0, "KeyError\n\x1b[31m")

    outcome = _sort(failed, north=5, south=6)

    assert outcome.rejected == [
        RejectedReply("north", "no-reply", "no reply before the deadline"),
        RejectedReply("south", "client-error", "the client failed: KeyError\\n\\x1b[31m"),
    ]


def test_a_node_that_was_not_asked_is_named() -> None:
    outcome = _sort(_reply(_honest(_task()), 5), _reply(_honest(_task()), 77))

    assert [valid.site for valid in outcome.valid] == ["liar"]
    assert outcome.rejected == [RejectedReply("node 77", "unknown-node", "was not asked")]


def test_two_replies_from_one_node_are_both_dropped_in_any_order() -> None:
    honest, other = _reply(_honest(_task())), _reply(refusal_content(_task()))

    for messages in ((honest, other), (other, honest)):
        outcome = _sort(*messages)
        assert outcome.rejected == [
            RejectedReply("liar", "duplicate-reply", "expected one reply, got 2; all dropped")
        ]
        assert not outcome.valid
        assert not outcome.refusals


@pytest.mark.parametrize(
    ("sequence", "digest", "fits"),
    [
        (3, f"{3:064x}", False),
        (4, "4" * 64, True),
        (4, "5" * 64, False),
        (5, f"{5:064x}", True),
    ],
)
def test_a_ledger_that_became_shorter_or_another_is_refused(
    sequence: int, digest: str, fits: bool
) -> None:
    task = _task(ledger_witness=WITNESS)
    head = LedgerHead(sequence=sequence, digest=digest)
    reply = _reply(reply_content(task, INITIAL, 1, ledger_head=head))

    if fits:
        validate_reply(reply, task, _rules())
    else:
        with pytest.raises(MessageError, match="expected a ledger that continues its entry 4"):
            validate_reply(reply, task, _rules())


def test_the_digest_is_not_recomputed_where_nothing_crossed_a_wire() -> None:
    task = _task()
    reply = _reply(reply_content(task, INITIAL, 5, arrays_digest="0" * 64))

    validate_reply(reply, task, _rules(verify_digest=False))
    with pytest.raises(MessageError, match="expected arrays of the digest"):
        validate_reply(reply, task, _rules(verify_digest=True))


def test_without_a_bound_any_update_that_can_be_squared_is_taken() -> None:
    task = _task()
    for size in (2.0**60, -(2.0**60)):
        arrays = {**INITIAL, "scale": np.array(size, np.float32)}
        validate_reply(_reply(reply_content(task, arrays, 5)), task, _rules(None))
    for size in (1.2e18, -3e38):
        arrays = {**INITIAL, "scale": np.array(size, np.float32)}
        with pytest.raises(MessageError, match=r"weights of at most 1\.15292e\+18, got .* scale"):
            validate_reply(_reply(reply_content(task, arrays, 5)), task, _rules(None))


def test_the_bound_holds_at_its_edge() -> None:
    task = _task()
    arrays = {**INITIAL, "scale": np.array(0.5 + 4.0, np.float32)}
    reply = _reply(reply_content(task, arrays, 5))

    validate_reply(reply, task, _rules(4.0))
    with pytest.raises(MessageError, match=r"expected an update of norm at most 3\.99, got 4"):
        validate_reply(reply, task, _rules(3.99))


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_an_encoded_update_arrives_as_weights(encoding: UpdateEncoding) -> None:
    task, new = _task(), honest_update(INITIAL, "liar", 2)
    update = encode_update(new, INITIAL, encoding)

    valid = validate_reply(_reply(reply_content(task, update, 5)), task, _rules(encoding=encoding))

    assert isinstance(valid, ValidReply)
    assert valid.reply.arrays_digest == arrays_digest(update) != arrays_digest(valid.arrays)
    expected = decode_update(update, INITIAL, encoding)
    for name, array in valid.arrays.items():
        assert array.tobytes() == expected[name].tobytes()
        np.testing.assert_allclose(array, new[name], atol=0.02)


def _changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(update: dict[str, Any]) -> None:
        update[name].reshape(-1)[0] = value

    return change


ENCODED_LIES: Mapping[str, tuple[UpdateEncoding, Callable[[dict[str, Any]], None], str]] = {
    "bf16 NaN": ("bf16", _changed("head.weight", 0x7FC1), "got NaN or infinity in head.weight"),
    "bf16 infinity": ("bf16", _changed("scale", 0xFF80), "got NaN or infinity in scale"),
    "bf16 huge": ("bf16", _changed("scale", 0x7149), "expected an update of norm at most 50"),
    "bf16 missing": ("bf16", lambda update: update.pop("scale"), "missing 'scale'"),
    "int8 steps": ("int8", _changed("head.weight", -128), "got -128 in head.weight"),
    "int8 negative": ("int8", _changed("scale.scale", -1), "finite and not negative"),
    "int8 NaN": ("int8", _changed("scale.scale", np.nan), "finite and not negative"),
    "int8 infinity": ("int8", _changed("head.weight.scale", np.inf), "finite and not negative"),
    "int8 huge": ("int8", _changed("scale.scale", 1e30), "expected an update of norm at most 50"),
    "int8 overflow": ("int8", _changed("scale.scale", 3e38), "expected finite weights"),
    "int8 no scales": ("int8", lambda update: update.pop("scale.scale"), "missing 'scale.scale'"),
    "int8 more scales": (
        "int8",
        lambda update: update.update({"scale.scale": np.ones(2, np.float32)}),
        "expected scale.scale of shape (1,), got (2,)",
    ),
}


@pytest.mark.parametrize("name", ENCODED_LIES)
def test_each_lie_about_an_encoded_update_says_what_was_expected(name: str) -> None:
    encoding, lie, expected = ENCODED_LIES[name]
    task = _task()
    update = encode_update(honest_update(INITIAL, "liar", 2), INITIAL, encoding)
    lie(update)

    with pytest.raises(MessageError) as caught:
        validate_reply(_reply(reply_content(task, update, 5)), task, _rules(encoding=encoding))

    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("sent", "expected", "message"),
    [
        ("fp32", "bf16", "expected head.bias as uint16 in numpy.ndarray, got 'float32'"),
        ("bf16", "fp32", "expected head.bias as float32 in numpy.ndarray, got 'uint16'"),
        ("fp32", "int8", "missing 'head.bias.scale'"),
        ("int8", "bf16", "unknown 'head.bias.scale'"),
    ],
)
def test_another_encoding_than_the_task_s_is_refused(
    sent: UpdateEncoding, expected: UpdateEncoding, message: str
) -> None:
    task = _task()
    update = encode_update(INITIAL, INITIAL, sent)

    with pytest.raises(MessageError) as caught:
        validate_reply(_reply(reply_content(task, update, 5)), task, _rules(encoding=expected))

    assert message in caught.value.message


ARRAYS = st.builds(
    lambda dtype, shape, data: Array(dtype, tuple(shape), "numpy.ndarray", data),
    st.sampled_from(["float32", "int8"]),
    st.lists(st.integers(0, 4), max_size=2),
    st.binary(max_size=64),
)
RECORDS = st.one_of(
    st.dictionaries(st.sampled_from([*INITIAL, "x"]), ARRAYS, max_size=4).map(ArrayRecord),
    st.dictionaries(
        st.sampled_from(["reply", "refusal", "x"]),
        st.binary(max_size=40) | st.text(max_size=8) | st.integers(0, 9) | st.just(b'{"site":"a"}'),
        max_size=2,
    ).map(ConfigRecord),
    st.just(MetricRecord({"a": 1.0})),
)


@given(
    st.dictionaries(
        st.sampled_from(["reply", "arrays", "refusal"]) | st.text(max_size=5), RECORDS, max_size=3
    )
)
def test_nothing_raw_escapes_from_hostile_records(records: dict[str, Any]) -> None:
    outcome = _sort(_reply(RecordDict(records)))

    (rejected,) = outcome.rejected
    assert rejected.code == "invalid-reply"
    assert len(rejected.message) < 2000


@given(st.binary(max_size=300), st.integers(0, 600), st.booleans())
def test_nothing_raw_escapes_from_a_damaged_reply(noise: bytes, at: int, refuse: bool) -> None:
    name = "refusal" if refuse else "reply"
    content = refusal_content(_task()) if refuse else _honest(_task())
    data = content[name][name]
    assert isinstance(data, bytes)
    content[name] = ConfigRecord({name: data[:at] + noise + data[at + len(noise) + 1 :]})

    outcome = _sort(_reply(content))

    assert len(outcome.valid) + len(outcome.refusals) + len(outcome.rejected) == 1
