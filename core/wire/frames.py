"""Frames: what a session's stream consists of, each within its limits, and their bytes.

A frame that exists is within its limits: its constructor checks them, so that the side that sends
and the side that receives share one definition. Tensors go by ``Chunk``, which is written and
read without protobuf's copies; all else goes through the generated code.
"""

import re
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Final, TypeAlias

from google.protobuf.message import DecodeError

from core.errors import CloisterError, MessageError
from core.messages import MAX_MESSAGE_BYTES
from core.wire import cloister_pb2
from core.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES, at_most, matches, sized, within

MAX_DOCUMENTS: Final = 4
MAX_PENDING: Final = 64
MAX_REASON: Final = 1024
NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
DIGEST_BYTES: Final = 32
MAX_TTL_SECONDS: Final = 366 * 24 * 3600.0

_ID: Final = re.compile(r"[0-9a-f]{32}")
_RUN_ID: Final = re.compile(r"[0-9a-f]{16}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CODE: Final = re.compile(r"[a-z][a-z-]{0,63}")
_REASON: Final = re.compile(r"[ -~]{0,1024}")


@dataclass(frozen=True)
class Hello:
    """Site to coordinator, the first frame: who opens a session, and what it still works on."""

    protocol: int
    federation: str
    site: str
    instance: str
    nonce: bytes
    roster_epoch: int = 0
    pending: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        within("protocol", self.protocol, 1, 2**32 - 1)
        matches("federation", self.federation, _NAME)
        matches("site", self.site, _NAME)
        matches("instance", self.instance, _ID)
        sized("nonce", self.nonce, NONCE_BYTES)
        within("roster_epoch", self.roster_epoch, 0, 2**63 - 1)
        at_most("pending messages", len(self.pending), MAX_PENDING)
        for message_id in self.pending:
            matches("pending", message_id, _ID)


@dataclass(frozen=True)
class Challenge:
    """Coordinator to site: sign this."""

    nonce: bytes

    def __post_init__(self) -> None:
        sized("nonce", self.nonce, NONCE_BYTES)


@dataclass(frozen=True)
class Proof:
    """Site to coordinator: the node key's signature over ``documents.session_transcript``."""

    signature: bytes

    def __post_init__(self) -> None:
        sized("signature", self.signature, SIGNATURE_BYTES)


@dataclass(frozen=True)
class Welcome:
    """Coordinator to site: the session is open."""

    roster: bytes
    time_unix_milliseconds: int

    def __post_init__(self) -> None:
        at_most("bytes of roster", len(self.roster), MAX_MESSAGE_BYTES)
        within("time_unix_milliseconds", self.time_unix_milliseconds, 0, 2**53)


@dataclass(frozen=True)
class Heartbeat:
    """Either side: still there."""


@dataclass(frozen=True)
class NamedDocument:
    """Canonical JSON under a name; what it says is parsed by ``core.messages.decode``."""

    name: str
    json: bytes

    def __post_init__(self) -> None:
        matches("document name", self.name, _NAME)
        at_most(f"bytes of document {self.name}", len(self.json), MAX_MESSAGE_BYTES)


@dataclass(frozen=True)
class Begin:
    """Either side: a message begins."""

    message_id: str
    reply_to: str
    message_type: str
    group_id: str
    run_number: int
    ttl_seconds: float
    created_at: float
    documents: tuple[NamedDocument, ...] = ()
    arrays: str = ""

    def __post_init__(self) -> None:
        matches("message_id", self.message_id, _ID)
        matches("reply_to", self.reply_to, _ID, may_be_empty=True)
        matches("message_type", self.message_type, _LABEL)
        matches("group_id", self.group_id, _LABEL, may_be_empty=True)
        within("run_number", self.run_number, 0, 2**64 - 1)
        within("ttl_seconds", self.ttl_seconds, 0, MAX_TTL_SECONDS)
        within("created_at", self.created_at, 0, 2.0**53)
        at_most("documents", len(self.documents), MAX_DOCUMENTS)
        names = [document.name for document in self.documents]
        if len(set(names)) != len(names):
            raise MessageError(f"expected documents with distinct names, got {', '.join(names)}")
        at_most("bytes of documents", sum(len(d.json) for d in self.documents), CHUNK_BYTES)
        matches("arrays", self.arrays, _NAME, may_be_empty=True)


@dataclass(frozen=True)
class Chunk:
    """The next bytes of the current tensor; as received, a view of the frame's own bytes."""

    data: bytes | memoryview

    def __post_init__(self) -> None:
        size = len(self.data)
        if not 0 < size <= CHUNK_BYTES:
            raise MessageError(f"expected a chunk of 1 to {CHUNK_BYTES} bytes, got {size}")


@dataclass(frozen=True)
class End:
    """Either side: the message is complete; ``digest`` is empty where it has no tensors."""

    digest: bytes = b""

    def __post_init__(self) -> None:
        if self.digest:
            sized("digest", self.digest, DIGEST_BYTES)


@dataclass(frozen=True)
class Received:
    """A message arrived whole and fits (no code), or why it does not."""

    message_id: str
    code: str = ""

    def __post_init__(self) -> None:
        matches("message_id", self.message_id, _ID)
        matches("code", self.code, _CODE, may_be_empty=True)


@dataclass(frozen=True)
class Settled:
    """Coordinator to site: forget the reply of this round."""

    run_id: str
    server_round: int

    def __post_init__(self) -> None:
        matches("run_id", self.run_id, _RUN_ID)
        within("server_round", self.server_round, 0, 2**31 - 1)


@dataclass(frozen=True)
class Goodbye:
    """Either side: the stream ends on purpose."""

    code: str
    reason: str = ""

    def __post_init__(self) -> None:
        matches("code", self.code, _CODE)
        matches("reason", self.reason, _REASON, may_be_empty=True)

    @classmethod
    def because(cls, error: CloisterError) -> "Goodbye":
        """The farewell that tells of ``error``: its name, and its message made printable."""
        return cls(error.code, ascii(error.message)[1:-1][:MAX_REASON])


Frame: TypeAlias = (
    Hello
    | Challenge
    | Proof
    | Welcome
    | Heartbeat
    | Begin
    | Chunk
    | End
    | Received
    | Settled
    | Goodbye
)

_KINDS: Final[dict[str, Any]] = {
    kind.__name__.lower(): kind
    for kind in (
        Hello,
        Challenge,
        Proof,
        Welcome,
        Heartbeat,
        Begin,
        Chunk,
        End,
        Received,
        Settled,
        Goodbye,
    )
}
# Field 7 of Frame and field 1 of Chunk, both length-delimited.
_CHUNK_TAG: Final = b"\x3a"
_DATA_TAG: Final = b"\x0a"
# By the size of the chunk; the commonest first.
_HEADER_LENGTHS: Final = (8, 7, 6, 5, 4)
_DOCUMENT_HEADER_BYTES: Final = 4


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes; of a chunk's data, one copy is made."""
    if isinstance(frame, Chunk):
        return b"".join((_chunk_header(len(frame.data)), frame.data))
    kind = type(frame).__name__.lower()
    return cloister_pb2.Frame(**{kind: asdict(frame)}).SerializeToString(deterministic=True)


def decode_frame(data: bytes) -> Frame:
    """Reads a frame that a peer sent; a chunk's data is a view of ``data``.

    Guarantees:
        Only ``MessageError`` escapes, whatever the bytes are. A frame has one encoding: fields
        that are unknown, doubled, out of order or needlessly long are refused, so what is read
        is all that was sent.

    Raises:
        MessageError: Too long, no protobuf, of no known kind, not in its one encoding, or a
            field beyond its limits.
    """
    if not isinstance(data, bytes):
        raise MessageError(f"expected a frame as bytes, got {type(data).__name__}")
    if len(data) > MAX_FRAME_BYTES:
        raise MessageError(f"expected a frame of at most {MAX_FRAME_BYTES} bytes, got {len(data)}")
    if data.startswith(_CHUNK_TAG):
        return _decode_chunk(data)
    message = _parse(cloister_pb2.Frame, data, "a frame")
    name = message.WhichOneof("kind")
    if name is None:
        raise MessageError("expected a frame of a known kind, got one without")
    kind, content = _KINDS[name], getattr(message, name)
    frame: Frame = kind(
        **{field.name: _value(getattr(content, field.name)) for field in fields(kind)}
    )
    return frame


def encode_document(json: bytes) -> bytes:
    """The bytes of a ``Document``, which every call but the session carries both ways."""
    at_most("bytes of document", len(json), MAX_MESSAGE_BYTES)
    return cloister_pb2.Document(json=json).SerializeToString(deterministic=True)


def decode_document(data: bytes) -> bytes:
    """The JSON in a ``Document`` that a peer sent, for ``core.messages.decode``.

    Guarantees:
        As ``decode_frame``.

    Raises:
        MessageError: Too long, no protobuf, or not in its one encoding.
    """
    if not isinstance(data, bytes):
        raise MessageError(f"expected a document as bytes, got {type(data).__name__}")
    at_most("bytes of document", len(data), MAX_MESSAGE_BYTES + _DOCUMENT_HEADER_BYTES)
    json: bytes = _parse(cloister_pb2.Document, data, "a document").json
    at_most("bytes of document", len(json), MAX_MESSAGE_BYTES)
    return json


def _parse(kind: Any, data: bytes, what: str) -> Any:
    try:
        message = kind.FromString(data)
        message.DiscardUnknownFields()
        again = message.SerializeToString(deterministic=True)
    except (DecodeError, RecursionError, ValueError) as error:
        raise MessageError(f"expected {what}, got {len(data)} bytes that are none") from error
    if again != data:
        raise MessageError(
            f"expected {what} in its one encoding, got unknown, doubled or padded fields",
            hint="both sides need versions that speak the same protocol",
        )
    return message


def _value(value: Any) -> Any:
    """A field's value, with the names that frames have instead of protobuf's containers."""
    if isinstance(value, str | bytes | int | float):
        return value
    return tuple(
        NamedDocument(item.name, item.json)
        if isinstance(item, cloister_pb2.NamedDocument)
        else item
        for item in value
    )


def _decode_chunk(data: bytes) -> Chunk:
    # Instead of reading the header, write the one that a chunk of this size has, and compare.
    for length in _HEADER_LENGTHS:
        size = len(data) - length
        header = _chunk_header(size) if 0 < size <= CHUNK_BYTES else b""
        if len(header) == length and data.startswith(header):
            return Chunk(memoryview(data)[length:])
    raise MessageError(
        f"expected a chunk of 1 to {CHUNK_BYTES} bytes in its one encoding, "
        f"got {len(data)} bytes that are none"
    )


@lru_cache(maxsize=1024)  # nearly all chunks of a model have one of a few sizes
def _chunk_header(size: int) -> bytes:
    inner = _DATA_TAG + _varint(size)
    return _CHUNK_TAG + _varint(len(inner) + size) + inner


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
