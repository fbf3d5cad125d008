"""Orders whose terms are written and read once: the same bytes, the same orders, the same noes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MessageError
from core.messages import MAX_MESSAGE_BYTES, TrainTask, decode, encode
from core.task_codec import decode_task, encode_task
from tests.support.messages import TASK

WHOLE = encode(TASK)
BARE = TASK.model_copy(update={"dp_sgd": None, "ledger_witness": None})


def _heard(read: Callable[[Any], TrainTask], payload: Any) -> TrainTask | str:
    try:
        return read(payload)
    except MessageError as error:
        return error.message


def _same(payload: Any) -> TrainTask | str:
    """What both ways of reading give; they must agree, twice: then the terms are known."""
    expected = _heard(lambda given: decode(TrainTask, given), payload)
    for _ in range(2):
        got = _heard(decode_task, payload)
        assert got == expected
        assert type(got) is type(expected)
    return expected


@pytest.mark.parametrize("task", [TASK, BARE], ids=["full", "bare"])
def test_the_bytes_are_those_of_the_whole_message(task: TrainTask) -> None:
    payload = encode_task(task, encode(task.terms))

    assert payload == encode(task)
    assert _same(payload) == task
    assert encode(decode_task(payload)) == payload


def test_terms_of_the_same_bytes_are_read_once() -> None:
    other = encode(TASK.model_copy(update={"site": "south"}))

    assert decode_task(WHOLE).terms is decode_task(other).terms


def test_a_number_that_is_written_otherwise_is_another_key() -> None:
    """0.0 equals -0.0, and their bytes and digests differ."""
    minus = WHOLE.replace(b'"weight-decay":0.0', b'"weight-decay":-0.0')

    assert decode_task(WHOLE).terms.digest() != decode_task(minus).terms.digest()
    assert encode(decode_task(minus)) == minus


MARK = b',"terms":'
HEAD, TERMS = WHOLE.split(MARK)
HOSTILE = {
    "not bytes": WHOLE.decode(),
    "nothing": b"",
    "no terms": HEAD + b"}",
    "null terms": HEAD + MARK + b"null}",
    "terms alone": b"{" + MARK + TERMS,
    "terms first": b'{"terms":' + TERMS[:-1] + b"," + HEAD[1:] + b"}",
    "terms twice": HEAD + MARK + TERMS[:-1] + MARK + TERMS,
    "terms twice, once first": b'{"terms":{},' + HEAD[1:] + MARK + TERMS,
    "more after the terms": HEAD + MARK + TERMS[:-1] + b',"more":1}',
    "an unknown key": HEAD + b',"more":1' + MARK + TERMS,
    "a doubled key": HEAD + b',"site":"north"' + MARK + TERMS,
    "a comma too many": HEAD + b"," + MARK + TERMS,
    "cut in a text": HEAD[:-3] + MARK + TERMS,
    "terms within another object": HEAD.replace(b'"dp-sgd":{', b'"dp-sgd":{"x":1' + MARK) + b"}",
    "the mark in a text": HEAD.replace(b'"north"', b'"north,\\"terms\\":"') + MARK + TERMS,
    "spaces": json.dumps(json.loads(WHOLE), indent=1).encode(),
    "a space at the end": WHOLE + b" ",
    "a brace too many": WHOLE + b"}",
    "a brace too few": WHOLE[:-1],
    "two values": WHOLE + WHOLE,
    "not UTF-8": WHOLE.replace(b"north", b"n\xff"),
    "snake case": WHOLE.replace(b"run-id", b"run_id"),
    "a text for a number": WHOLE.replace(b'"attempt":1', b'"attempt":"1"'),
    "true for a number": WHOLE.replace(b'"attempt":1', b'"attempt":true'),
    "a number out of range": WHOLE.replace(b'"attempt":1', b'"attempt":0'),
    "NaN": WHOLE.replace(b'"noise-multiplier":1.1', b'"noise-multiplier":NaN'),
    "other terms": WHOLE.replace(b'"num-rounds":20', b'"num-rounds":0'),
    "too long": WHOLE[:-1] + b" " * MAX_MESSAGE_BYTES + b"}",
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_it_reads_what_the_whole_message_s_reader_reads(payload: object) -> None:
    _same(WHOLE)
    _same(payload)


def test_the_cases_above_hold_both_kinds() -> None:
    """A space or another order of keys changes nothing; the rest is refused."""
    taken = {name for name, payload in HOSTILE.items() if not isinstance(_same(payload), str)}
    assert taken == {"terms first", "spaces", "a space at the end"}


@given(
    at=st.integers(0, len(WHOLE)),
    take=st.integers(0, 12),
    put=st.sampled_from([b"", b'"', b"}", b"{", b",", MARK, MARK + TERMS, b"\\", b"\0", b"1"]),
)
def test_any_change_is_read_alike(at: int, take: int, put: bytes) -> None:
    _same(WHOLE[:at] + put + WHOLE[at + take :])
