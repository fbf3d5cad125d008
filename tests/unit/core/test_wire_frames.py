"""Frames: what is sent is what is read, in one encoding that is protobuf's own."""

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MessageError, SessionError
from core.messages import MAX_MESSAGE_BYTES
from core.wire import cloister_pb2
from core.wire.frames import (
    Begin,
    Challenge,
    Chunk,
    End,
    Frame,
    Goodbye,
    Heartbeat,
    Hello,
    NamedDocument,
    Proof,
    Received,
    Settled,
    Welcome,
    decode_document,
    decode_frame,
    encode_document,
    encode_frame,
)
from core.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES
from tests.support.bad_payloads import GOOD_BEGIN_FRAME, GOOD_HELLO_FRAME, ID

FRAMES: list[Frame] = [
    GOOD_HELLO_FRAME,
    Hello(1, "clinic", "north", ID, bytes(32)),
    Challenge(b"c" * 32),
    Proof(b"p" * 64),
    Welcome(b"{}", 1_795_000_000_000),
    Heartbeat(),
    GOOD_BEGIN_FRAME,
    Begin(ID, "", "train", "", 0, 0.0, 0.0),
    Chunk(b"x"),
    Chunk(bytes(CHUNK_BYTES)),
    End(b"d" * 32),
    End(),
    Received(ID),
    Received(ID, "message"),
    Settled("0123456789abcdef", 4),
    Goodbye("site-stopping", "for maintenance"),
]


def kind(frame: object) -> str:
    return type(frame).__name__


@pytest.mark.parametrize("frame", FRAMES, ids=kind)
def test_what_is_sent_is_what_is_read(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


@pytest.mark.parametrize("frame", FRAMES, ids=kind)
def test_the_bytes_are_protobuf_s(frame: Frame) -> None:
    message = cloister_pb2.Frame.FromString(encode_frame(frame))
    assert message.WhichOneof("kind") == kind(frame).lower()
    assert message.SerializeToString(deterministic=True) == encode_frame(frame)


def test_every_kind_of_the_contract_has_a_frame() -> None:
    kinds = {field.name for field in cloister_pb2.Frame.DESCRIPTOR.fields}
    assert kinds == {kind(frame).lower() for frame in FRAMES}


@pytest.mark.parametrize("size", [1, 125, 126, 127, 128, 129, 16381, 16382, 16384, 16385, 1 << 20])
def test_a_chunk_is_written_as_protobuf_would(size: int) -> None:
    chunk = Chunk(memoryview(b"\x0a" * size))
    ours = encode_frame(chunk)
    assert ours == cloister_pb2.Frame(chunk={"data": bytes(chunk.data)}).SerializeToString()
    assert decode_frame(ours) == chunk


def test_a_chunk_is_read_without_a_copy() -> None:
    data = encode_frame(Chunk(bytes(CHUNK_BYTES)))
    chunk = decode_frame(data)
    assert isinstance(chunk, Chunk)
    assert isinstance(chunk.data, memoryview)
    assert chunk.data.obj is data
    assert chunk.data.readonly


def test_the_largest_frames_are_within_the_limit() -> None:
    full = tuple(NamedDocument(f"d{n}" + "x" * 62, b" " * MAX_MESSAGE_BYTES) for n in range(4))
    begin = Begin(ID, ID, "t" * 64, "g" * 64, 2**64 - 1, 1.0, 1.0, full, "a" * 64)
    pending = (ID,) * 64
    hello = Hello(2**32 - 1, "f" * 64, "s" * 64, ID, bytes(32), 2**63 - 1, pending)
    for frame in (begin, hello, Chunk(bytes(CHUNK_BYTES)), Welcome(b" " * MAX_MESSAGE_BYTES, 0)):
        assert len(encode_frame(frame)) <= MAX_FRAME_BYTES
        assert decode_frame(encode_frame(frame)) == frame


def test_a_frame_beyond_its_limits_cannot_be_made_either() -> None:
    with pytest.raises(MessageError, match="expected a chunk of 1 to 1048576 bytes, got 1048577"):
        Chunk(bytes(CHUNK_BYTES + 1))
    with pytest.raises(MessageError, match="expected nonce of 32 bytes, got 3"):
        Challenge(b"abc")


def test_a_frame_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        FRAMES[-1].code = "other"  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [None, "x", bytearray(b"*\0"), memoryview(b"*\0")])
def test_only_bytes_are_read(data: bytes) -> None:
    with pytest.raises(MessageError, match=f"expected a frame as bytes, got {kind(data)}"):
        decode_frame(data)
    with pytest.raises(MessageError, match=f"expected a document as bytes, got {kind(data)}"):
        decode_document(data)


def test_a_farewell_tells_of_an_error_in_printable_words() -> None:
    error = SessionError("expected \u00e9\n\x1b[2J" + "x" * 2000, hint="not sent")
    goodbye = Goodbye.because(error)
    assert goodbye.code == "session"
    assert goodbye.reason.startswith("expected \\xe9\\n\\x1b[2J")
    assert len(goodbye.reason) == 1024
    assert decode_frame(encode_frame(goodbye)) == goodbye


@pytest.mark.parametrize("json", [b"", b"{}", b" " * MAX_MESSAGE_BYTES])
def test_a_document_is_read_as_it_was_sent(json: bytes) -> None:
    assert decode_document(encode_document(json)) == json


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05{}", "expected a document, got 4 bytes that are none"),
        (b"\x0a\x02{}\x12\x00", "expected a document in its one encoding, got unknown"),
        (b"\x0a\x02{}\x0a\x02{}", "expected a document in its one encoding, got unknown"),
        (b"\x0a\x00", "expected a document in its one encoding, got unknown"),
        (b"\x0a" * (MAX_MESSAGE_BYTES + 9), "expected at most 262148 bytes of document, got 2621"),
    ],
)
def test_a_bad_document_envelope_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode_document(data)


def test_a_document_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(MessageError, match="at most 262144 bytes of document, got 262145"):
        encode_document(b" " * (MAX_MESSAGE_BYTES + 1))


def read_or_refused(data: bytes) -> None:
    """Nothing but MessageError escapes; what is read has those very bytes."""
    try:
        frame = decode_frame(data)
    except MessageError:
        return
    assert encode_frame(frame) == data


@given(st.binary())
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    read_or_refused(data)
    try:
        json = decode_document(data)
    except MessageError:
        return
    assert encode_document(json) == data


_NEAR_MISSES = [encode_frame(frame) for frame in FRAMES if len(encode_frame(frame)) < 1000]


@given(st.sampled_from(_NEAR_MISSES), st.data())
def test_no_change_of_a_good_frame_raises_anything_else(good: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    read_or_refused(good[:start] + data.draw(st.binary(max_size=8)) + good[end:])


TEXT, SHORT, COUNT = st.text(max_size=70), st.binary(max_size=70), st.integers(0, 2**31)
NUMBER, DOCUMENT = st.floats(width=64), st.fixed_dictionaries({"name": TEXT, "json": SHORT})
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "hello": {
        "protocol": COUNT,
        "federation": TEXT,
        "site": TEXT,
        "instance": TEXT,
        "nonce": SHORT,
        "roster_epoch": COUNT,
        "pending": st.lists(TEXT),
    },
    "challenge": {"nonce": SHORT},
    "proof": {"signature": SHORT},
    "welcome": {"roster": SHORT, "time_unix_milliseconds": st.integers(-(2**63), 2**63 - 1)},
    "begin": {
        "message_id": TEXT,
        "reply_to": TEXT,
        "message_type": TEXT,
        "group_id": TEXT,
        "run_number": COUNT,
        "ttl_seconds": NUMBER,
        "created_at": NUMBER,
        "documents": st.lists(DOCUMENT),
        "arrays": TEXT,
    },
    "chunk": {"data": SHORT},
    "end": {"digest": SHORT},
    "received": {"message_id": TEXT, "code": TEXT},
    "settled": {"run_id": TEXT, "server_round": COUNT},
    "goodbye": {"code": TEXT, "reason": TEXT},
}
GOOD = {kind(frame).lower(): asdict(frame) for frame in reversed(FRAMES)}


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_no_value_of_a_field_raises_anything_else(name: str, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(FIELDS[name])))
    fields = {**GOOD[name], field: data.draw(FIELDS[name][field])}
    read_or_refused(cloister_pb2.Frame(**{name: fields}).SerializeToString(deterministic=True))


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_no_values_of_the_fields_raise_anything_else(name: str, data: st.DataObject) -> None:
    fields = data.draw(st.fixed_dictionaries({}, optional=FIELDS[name]))
    read_or_refused(cloister_pb2.Frame(**{name: fields}).SerializeToString(deterministic=True))


def test_the_bytes_of_a_hello_do_not_change_from_version_to_version() -> None:
    # Written out by hand: a changed byte is a changed promise to peers of another version.
    written = b"".join(
        (
            b"\x0a\x79",  # Frame.hello, 121 bytes
            b"\x08\x01\x12\x06clinic\x1a\x05north",
            b"\x22\x20" + ID.encode() + b"\x2a\x20" + b"n" * 32 + b"\x30\x03",
            b"\x3a\x20" + ID.encode(),
        )
    )
    assert encode_frame(GOOD_HELLO_FRAME) == written
