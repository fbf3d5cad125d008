"""The corpus of bad payloads: frames and transfers that must be refused by name.

Each case says the words that the refusal must hold. Other tests send the same over real streams.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from core.array_codec import Manifest, encode_arrays, manifest_of
from core.messages import MAX_MESSAGE_BYTES, encode
from core.wire import cloister_pb2
from core.wire.frames import (
    Begin,
    Challenge,
    Chunk,
    End,
    Frame,
    Heartbeat,
    Hello,
    NamedDocument,
    encode_frame,
)
from core.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES
from core.wire.transfer import Envelope, frames_of
from tests.support.messages import REPLY

ID = "0123456789abcdef" * 2


@dataclass(frozen=True)
class BadFrame:
    """Bytes that are no frame: ``decode_frame`` raises ``MessageError`` with ``words``."""

    name: str
    data: bytes
    words: str


@dataclass(frozen=True)
class BadTransfer:
    """Frames, each good, that are no message for ``MANIFEST``.

    ``breaks`` says whether the stream is of no more use (``SessionError``); otherwise the message
    is rejected at its end and the next one can come.
    """

    name: str
    frames: tuple[Frame, ...]
    words: str
    breaks: bool = False


# Frames.

HELLO: dict[str, Any] = {
    "protocol": 1,
    "federation": "clinic",
    "site": "north",
    "instance": ID,
    "nonce": b"n" * 32,
    "roster_epoch": 3,
    "pending": [ID],
}
BEGIN: dict[str, Any] = {
    "message_id": ID,
    "reply_to": ID,
    "message_type": "train",
    "group_id": "1",
    "run_number": 7,
    "ttl_seconds": 60.0,
    "created_at": 1.0,
    "documents": [{"name": "reply", "json": b"{}"}],
    "arrays": "arrays",
}
GOOD_HELLO = cloister_pb2.Frame(hello=HELLO).SerializeToString(deterministic=True)


def _frame(**kind: dict[str, Any]) -> bytes:
    return cloister_pb2.Frame(**kind).SerializeToString(deterministic=True)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, as protobuf writes it."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _numpy_file() -> bytes:
    buffer = BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


_ONE_ENCODING = "in its one encoding"
_NONE_AT_ALL = "bytes that are none"
_CHUNK = "expected a chunk of 1 to 1048576 bytes"

_UNREADABLE: list[tuple[str, bytes, str]] = [
    ("empty", b"", "of a known kind, got one without"),
    ("a zero byte", b"\0", _NONE_AT_ALL),
    ("text", b"GET / HTTP/1.1\r\n\r\n", _NONE_AT_ALL),
    ("JSON", b'{"hello": {}}', _NONE_AT_ALL),
    (
        "a pickle",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.",
        _NONE_AT_ALL,
    ),
    ("a zip", b"PK\x03\x04" + b"\0" * 26, _NONE_AT_ALL),
    ("a numpy file", _numpy_file(), _NONE_AT_ALL),
    ("cut short", GOOD_HELLO[:-1], _NONE_AT_ALL),
    ("a trailing byte", GOOD_HELLO + b"\0", _NONE_AT_ALL),
    ("an endless varint", b"\xff" * 11, _NONE_AT_ALL),
    ("an endless length", b"\x0a" + b"\xff" * 9 + b"\x01", _NONE_AT_ALL),
    ("deep groups", b"\x63" * 5000, _NONE_AT_ALL),
    ("deep groups that end", b"\x63" * 500 + b"\x64" * 500, _NONE_AT_ALL),
    ("an end without its group", b"\x64", _NONE_AT_ALL),
    ("an unknown kind", _field(12, b""), _ONE_ENCODING),
    ("an unknown kind beside one", GOOD_HELLO + _field(99, b"x"), _ONE_ENCODING),
    ("an unknown field within", _field(5, _field(1, b"x")), _ONE_ENCODING),
    ("an unknown field in a document", _field(6, _field(8, _field(3, b"x"))), _ONE_ENCODING),
    ("two kinds", GOOD_HELLO + _frame(heartbeat={}), _ONE_ENCODING),
    ("one kind twice", _frame(heartbeat={}) * 2, _ONE_ENCODING),
    ("a field twice", _field(2, _field(1, b"n" * 32) * 2), _ONE_ENCODING),
    ("fields out of order", _field(9, _field(2, b"message") + _field(1, b"a" * 32)), _ONE_ENCODING),
    ("a default spelt out", _field(8, _field(1, b"")), _ONE_ENCODING),
    ("a padded length", b"\x2a\x80\x00", _ONE_ENCODING),
    ("a kind of the wrong wire type", b"\x28\x01", _ONE_ENCODING),
    ("a number that is too long", _field(1, b"\x08" + b"\xff" * 9 + b"\x01"), _ONE_ENCODING),
    ("text that is not UTF-8", _field(1, _field(2, b"\xff\xfe")), _NONE_AT_ALL),
    ("a megabyte too much", b"\x2a" + b"\0" * (MAX_FRAME_BYTES + 1), "at most 1114112 bytes"),
    ("an endless list", _frame(hello={**HELLO, "pending": [""] * 400_000}), "at most 64 pending"),
    ("a chunk without data", _field(7, b""), _CHUNK),
    ("a chunk of no data", _field(7, b"\x0a\x00"), _CHUNK),
    ("a chunk that is cut short", encode_frame(Chunk(b"x" * 300))[:-1], _CHUNK),
    ("a chunk and a byte more", encode_frame(Chunk(b"x" * 300)) + b"x", _CHUNK),
    ("a chunk that is too large", _field(7, _field(1, b"x" * (CHUNK_BYTES + 1))), _CHUNK),
    ("a chunk with a padded length", b"\x3a\x83\x00\x0a\x01x", _CHUNK),
    ("a chunk with a doubled field", _field(7, _field(1, b"x") * 2), _CHUNK),
    ("a chunk with an unknown field", _field(7, _field(1, b"x") + _field(2, b"y")), _CHUNK),
    ("two chunks", encode_frame(Chunk(b"x")) * 2, _CHUNK),
    ("a chunk and another kind", encode_frame(Chunk(b"x")) + _frame(heartbeat={}), _CHUNK),
]

_BAD_FIELDS: list[tuple[str, str, Any, str]] = [
    ("hello", "protocol", 0, "protocol of 1 to"),
    ("hello", "federation", "", "federation as"),
    ("hello", "federation", "Clinic", "got 'Clinic'"),
    ("hello", "site", "../north", "site as"),
    ("hello", "site", "n" * 65, "site as"),
    ("hello", "site", "north\n", "site as"),
    ("hello", "site", "n\u00f6rth", "got 'n\\xf6rth'"),
    ("hello", "site", "\x1b[2J" * 99, "..."),
    ("hello", "instance", ID.upper(), "instance as"),
    ("hello", "instance", ID[1:], "instance as"),
    ("hello", "nonce", b"", "nonce of 32 bytes, got 0"),
    ("hello", "nonce", b"n" * 33, "nonce of 32 bytes, got 33"),
    ("hello", "roster_epoch", 2**63, "roster_epoch of 0 to"),
    ("hello", "pending", [ID] * 65, "at most 64 pending messages, got 65"),
    ("hello", "pending", ["", ID], "pending as"),
    ("challenge", "nonce", b"n" * 31, "nonce of 32 bytes, got 31"),
    ("proof", "signature", b"s" * 63, "signature of 64 bytes, got 63"),
    ("welcome", "roster", b" " * (MAX_MESSAGE_BYTES + 1), "at most 262144 bytes of roster"),
    ("welcome", "time_unix_milliseconds", -1, "time_unix_milliseconds of 0 to"),
    ("welcome", "time_unix_milliseconds", 2**60, "time_unix_milliseconds of 0 to"),
    ("begin", "message_id", "", "message_id as"),
    ("begin", "message_id", ID + "0", "message_id as"),
    ("begin", "reply_to", "0" * 31, "reply_to as"),
    ("begin", "message_type", "", "message_type as"),
    ("begin", "message_type", "train me", "message_type as"),
    ("begin", "message_type", "t" * 65, "message_type as"),
    ("begin", "group_id", "\0", "group_id as"),
    ("begin", "ttl_seconds", math.nan, "ttl_seconds of 0 to"),
    ("begin", "ttl_seconds", math.inf, "ttl_seconds of 0 to"),
    ("begin", "ttl_seconds", -1.0, "ttl_seconds of 0 to"),
    ("begin", "created_at", math.nan, "created_at of 0 to"),
    ("begin", "created_at", -math.inf, "created_at of 0 to"),
    ("begin", "created_at", 1e300, "created_at of 0 to"),
    ("begin", "documents", [{"name": f"d{n}"} for n in range(5)], "at most 4 documents, got 5"),
    ("begin", "documents", [{"name": "task"}] * 2, "documents with distinct names"),
    ("begin", "documents", [{"name": ""}], "document name as"),
    ("begin", "documents", [{"name": "../task"}], "document name as"),
    (
        "begin",
        "documents",
        [{"name": "task", "json": b" " * (MAX_MESSAGE_BYTES + 1)}],
        "at most 262144 bytes of document task",
    ),
    ("begin", "arrays", "a b", "arrays as"),
    ("end", "digest", b"d" * 31, "digest of 32 bytes, got 31"),
    ("received", "message_id", "", "message_id as"),
    ("received", "code", "Budget", "code as"),
    ("received", "code", "c" * 65, "code as"),
    ("settled", "run_id", ID, "run_id as"),
    ("settled", "server_round", 2**31, "server_round of 0 to"),
    ("goodbye", "code", "", "code as"),
    ("goodbye", "reason", "two\nlines", "reason as"),
    ("goodbye", "reason", "\x1b[2J", "reason as"),
    ("goodbye", "reason", "r" * 1025, "reason as"),
]
_GOOD_FIELDS: dict[str, dict[str, Any]] = {
    "hello": HELLO,
    "begin": BEGIN,
    "received": {"message_id": ID},
    "settled": {"run_id": ID[:16]},
    "goodbye": {"code": "session"},
}

BAD_FRAMES: list[BadFrame] = [
    *(BadFrame(*case) for case in _UNREADABLE),
    *(
        BadFrame(
            f"{kind}.{field} = {ascii(value)[:24]}",
            _frame(**{kind: {**_GOOD_FIELDS.get(kind, {}), field: value}}),
            words,
        )
        for kind, field, value, words in _BAD_FIELDS
    ),
]


# Transfers.

ARRAYS = {
    "bias": np.float32(0.5).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "large": np.arange(300_000, dtype=np.float32).reshape(600, 500),  # a chunk and a piece
    "left": np.arange(6, dtype=np.float32).reshape(2, 3),
    "right": np.arange(6, 12, dtype=np.float32).reshape(2, 3),
}
MANIFEST: Manifest = manifest_of(ARRAYS)


def envelope(arrays: dict[str, Any] | None = None, /, **changes: Any) -> Envelope:
    """A reply with ``ARRAYS``, or with other arrays."""
    fields: dict[str, Any] = {
        "message_id": ID,
        "reply_to": ID[::-1],
        "message_type": "train",
        "group_id": "1",
        "run_number": 7,
        "ttl_seconds": 60.0,
        "created_at": 1.0,
        "documents": {"reply": encode(REPLY)},
        "arrays_name": "arrays",
        "arrays": encode_arrays(ARRAYS if arrays is None else arrays),
    }
    return Envelope(**{**fields, **changes})


GOOD_TRANSFER: tuple[Frame, ...] = tuple(frames_of(envelope()))
_FIRST, *_MIDDLE, _LAST = GOOD_TRANSFER
_OTHER_END = End(bytes(32))


def _sent(**arrays: Any) -> tuple[Frame, ...]:
    return tuple(frames_of(envelope({**ARRAYS, **arrays})))


def _renamed(old: str, new: str) -> tuple[Frame, ...]:
    arrays = {new if name == old else name: array for name, array in ARRAYS.items()}
    return tuple(frames_of(envelope(arrays)))


def _with_numpy_headers() -> tuple[Frame, ...]:
    encoded = encode_arrays(ARRAYS)
    return (_FIRST, *(Chunk(a.data[:CHUNK_BYTES]) for a in encoded.values()), _LAST)


def _plain(**changes: Any) -> Begin:
    """The begin of a message without tensors."""
    return Begin(ID, "", "train", "", 1, 1.0, 1.0, **changes)


_FEWER = {name: array for name, array in ARRAYS.items() if name != "right"}
_BIAS, _LARGE, _REST, _LEFT, _RIGHT = _MIDDLE

BAD_TRANSFERS: list[BadTransfer] = [
    BadTransfer("a shape with fewer bytes", _sent(left=ARRAYS["left"][:1]), "24 bytes of left"),
    BadTransfer("a shape with more bytes", _sent(left=np.ones((4, 3), "f4")), "24 bytes of left"),
    BadTransfer("a transposed shape", _sent(left=ARRAYS["left"].T), "the digest that"),
    BadTransfer("a scalar as a vector", _sent(bias=np.ones(1, "f4")), "the digest that"),
    BadTransfer("a vector where a scalar is", _sent(bias=np.ones(2, "f4")), "4 bytes of bias"),
    BadTransfer("bytes in an empty tensor", _sent(empty=np.ones((1, 4), "f4")), "bytes of large"),
    BadTransfer("another empty shape", _sent(empty=np.ones((4, 0), "f4")), "the digest that"),
    BadTransfer("bf16 for fp32", _sent(large=np.ones((600, 500), "u2")), "1048576 bytes of large"),
    BadTransfer("int8 for fp32", _sent(left=np.ones((2, 3), "i1")), "24 bytes of left"),
    BadTransfer("int8 of as many bytes", _sent(left=np.ones((8, 3), "i1")), "the digest that"),
    BadTransfer("a tensor less", tuple(frames_of(envelope(_FEWER))), "24 more bytes of right"),
    BadTransfer("a tensor more", _sent(surplus=np.ones(3, "f4")), "after 5 tensors"),
    BadTransfer("an unknown name", _renamed("left", "lift"), "the digest that"),
    BadTransfer("an unknown name that sorts last", _renamed("bias", "z"), "4 bytes of bias"),
    BadTransfer("no tensors", (_FIRST, End()), "4 more bytes of bias"),
    BadTransfer("no tensors, with a digest", (_FIRST, _LAST), "4 more bytes of bias"),
    BadTransfer("the first tensors only", (_FIRST, _BIAS, _LARGE, _LAST), "bytes of large"),
    BadTransfer("another digest", (*GOOD_TRANSFER[:-1], _OTHER_END), "the digest that"),
    BadTransfer("no digest", (*GOOD_TRANSFER[:-1], End()), "the digest that"),
    BadTransfer(
        "two tensors exchanged",
        (_FIRST, _BIAS, _LARGE, _REST, _RIGHT, _LEFT, _LAST),
        "the digest that",
    ),
    BadTransfer(
        "a flipped bit",
        (_FIRST, Chunk(b"\x01\0\0\x3f"), _LARGE, _REST, _LEFT, _RIGHT, _LAST),
        "the digest that",
    ),
    BadTransfer(
        "a tensor in small pieces",
        (_FIRST, _BIAS, *(Chunk(bytes(1)) for _ in range(100)), _LAST),
        "1048576 bytes of large, got 1",
    ),
    BadTransfer(
        "a chunk across two tensors",
        (_FIRST, _BIAS, _LARGE, _REST, Chunk(bytes(48)), _LAST),
        "24 bytes of left, got 48",
    ),
    BadTransfer(
        "a chunk twice",
        (_FIRST, _BIAS, _LARGE, _LARGE, _REST, _LEFT, _RIGHT, _LAST),
        "151424 bytes of large, got 1048576",
    ),
    BadTransfer("headers of numpy files", _with_numpy_headers(), "4 bytes of bias, got 132"),
    BadTransfer(
        "tensors without a record", (_plain(), _BIAS, End()), "a message without tensors, got more"
    ),
    BadTransfer("a digest without tensors", (_plain(), _OTHER_END), "no digest of a message"),
    BadTransfer("a chunk before its begin", (_BIAS,), "no Chunk between messages", breaks=True),
    BadTransfer("an end before its begin", (_LAST,), "no End between messages", breaks=True),
    BadTransfer(
        "a begin before the end", (_FIRST, _BIAS, _FIRST), "got the begin of another", breaks=True
    ),
    BadTransfer("an end twice", (_plain(), End(), End()), "no End between messages", breaks=True),
    BadTransfer(
        "another kind of frame", (_FIRST, Heartbeat()), "no Heartbeat in a message", breaks=True
    ),
    BadTransfer(
        "a handshake in a message",
        (_FIRST, Challenge(b"n" * 32)),
        "no Challenge in a message",
        breaks=True,
    ),
]


GOOD_HELLO_FRAME = Hello(**{**HELLO, "pending": tuple(HELLO["pending"])})
GOOD_BEGIN_FRAME = Begin(
    **{**BEGIN, "documents": tuple(NamedDocument(**item) for item in BEGIN["documents"])}
)
