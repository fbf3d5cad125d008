"""Messages as frames and back: a Begin, the tensors in chunks, an End with their digest.

Neither side holds more than one tensor twice. The receiver knows what to expect before the first
byte, from a manifest that it made itself; of what does not fit it keeps nothing.

Not checked here: whether numbers are finite and what documents say. The coordinator's validation
and the site's policy do that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Protocol

import numpy as np

from core.array_codec import ArraySpec, Encoded, Manifest, array_spec
from core.digests import ArraysDigest
from core.errors import CloisterError, MessageError, SessionError
from core.wire.frames import Begin, Chunk, End, Frame, NamedDocument
from core.wire.limits import CHUNK_BYTES

MAX_SWALLOWED_BYTES: Final = 8 << 30
# A chunk that is thrown away counts as this many bytes at least: small ones cost as much time.
_LEAST_SWALLOWED: Final = 64 << 10
_STYPE: Final = "numpy.ndarray"


class Tensor(Protocol):
    """An array as its bytes: Flower's ``Array`` on the way out, ``Encoded`` on the way in."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stype(self) -> str: ...
    @property
    def data(self) -> bytes: ...


@dataclass(frozen=True)
class Envelope:
    """A message, whole: what Flower knows of it, documents by name, and at most one record of
    arrays."""

    message_id: str
    reply_to: str
    message_type: str
    group_id: str
    run_number: int
    ttl_seconds: float
    created_at: float
    documents: Mapping[str, bytes]
    arrays_name: str = ""
    arrays: Mapping[str, Tensor] | None = None
    arrays_digest: str = ""
    """``core.digests.arrays_digest`` of the arrays: of a message that arrived, as it was counted
    here; of one to be sent, where it is known already, so that it need not be counted again."""


@dataclass(frozen=True)
class Rejected:
    """A message that arrived to its end and does not fit; nothing of it was kept."""

    message_id: str
    reply_to: str
    code: str
    message: str


def frames_of(envelope: Envelope) -> Iterator[Frame]:
    """The frames of a message, made one by one as they are asked for.

    Chunks are views of the arrays' own bytes: nothing is copied here.

    Raises:
        MessageError: The message is beyond the limits of frames, or an array is not what
            ``core.array_codec.encode_arrays`` makes.
    """
    arrays = envelope.arrays
    if (arrays is None) != (not envelope.arrays_name):
        raise MessageError("expected arrays and their record's name, or neither")
    # All of it is checked before the first frame: a message is not left half sent.
    payloads = [] if arrays is None else list(_payloads(arrays))
    known = bytes.fromhex(envelope.arrays_digest)
    yield Begin(
        message_id=envelope.message_id,
        reply_to=envelope.reply_to,
        message_type=envelope.message_type,
        group_id=envelope.group_id,
        run_number=envelope.run_number,
        ttl_seconds=envelope.ttl_seconds,
        created_at=envelope.created_at,
        documents=tuple(NamedDocument(*item) for item in sorted(envelope.documents.items())),
        arrays=envelope.arrays_name,
    )
    digest = ArraysDigest()
    for name, spec, payload in payloads:
        digest.begin(name, spec.dtype, spec.shape)
        for piece in _pieces(payload):
            if not known:
                digest.update(piece)
            yield Chunk(piece)
    yield End(known or (b"" if arrays is None else digest.digest()))


def _payloads(arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, ArraySpec, memoryview]]:
    for name in sorted(arrays):
        array = arrays[name]
        spec = array_spec(tuple(array.shape), np.dtype(array.dtype).newbyteorder("<"))
        if len(array.data) != spec.payload_bytes or not array.data.startswith(spec.header):
            raise MessageError(f"expected {name} as numpy.save writes {array.dtype}, got another")
        yield name, spec, memoryview(array.data)[len(spec.header) :]


def _pieces(payload: memoryview) -> Iterator[memoryview]:
    return (payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES))


class Receiver:
    """Puts the messages of one stream together, one after the other.

    Guarantees:
        An ``Envelope`` holds arrays only as the manifest names them, all of them, with the bytes
        whose digest the sender counted. Memory stays within the manifest's bytes and one more
        copy of the largest tensor, whatever is sent. A message that does not fit is given as
        ``Rejected`` at its end, and the next one is read as if it had not been there.

    Args:
        manifest_for: What the tensors of a message that begins must be; ``None`` where it may
            have none. Raises a ``CloisterError`` to refuse the message whatever follows.
        max_swallowed_bytes: How much of a message that does not fit is read until its end,
            before the stream is given up.
    """

    def __init__(
        self,
        manifest_for: Callable[[Begin], Manifest | None],
        *,
        max_swallowed_bytes: int = MAX_SWALLOWED_BYTES,
    ) -> None:
        self._manifest_for = manifest_for
        self._max_swallowed_bytes = max_swallowed_bytes
        self._arriving: _Arriving | None = None

    def feed(self, frame: Frame) -> Envelope | Rejected | None:
        """Takes a message's next frame; gives the message with its last.

        Raises:
            SessionError: The frames are in no possible order, or a message that does not fit
                does not end. The stream is of no more use.
        """
        arriving = self._arriving
        if isinstance(frame, Begin):
            if arriving is not None:
                raise SessionError("expected the end of a message, got the begin of another")
            self._arriving = _Arriving(frame, self._manifest_for, self._max_swallowed_bytes)
            return None
        if arriving is None or not isinstance(frame, Chunk | End):
            where = "between messages" if arriving is None else "in a message"
            raise SessionError(f"expected no {type(frame).__name__} {where}")
        if isinstance(frame, Chunk):
            arriving.take(frame.data)
            return None
        self._arriving = None
        return arriving.end(frame.digest)


class _Arriving:
    """One message, from its begin to its end."""

    def __init__(
        self,
        begin: Begin,
        manifest_for: Callable[[Begin], Manifest | None],
        max_swallowed_bytes: int,
    ) -> None:
        self._begin = begin
        self._left_to_swallow = max_swallowed_bytes
        self._rejected: Rejected | None = None
        self._tensors: _Tensors | None = None
        try:
            manifest = manifest_for(begin)
            if begin.arrays:
                if manifest is None:
                    raise MessageError(f"expected no tensors in this {begin.message_type} message")
                self._tensors = _Tensors(manifest)
        except CloisterError as error:
            self._refuse(error)

    def take(self, data: bytes | memoryview) -> None:
        if self._rejected is None:
            try:
                if self._tensors is None:
                    raise MessageError("expected the end of a message without tensors, got more")
                self._tensors.take(data)
            except MessageError as error:
                self._refuse(error)
        if self._rejected is not None:
            self._left_to_swallow -= max(len(data), _LEAST_SWALLOWED)
            if self._left_to_swallow < 0:
                raise SessionError(
                    "expected the end of a message that does not fit, got ever more: "
                    f"{self._rejected.message}"
                )

    def end(self, digest: bytes) -> Envelope | Rejected:
        begin = self._begin
        if self._rejected is None:
            try:
                arrays = _finished(self._tensors, digest)
            except MessageError as error:
                self._refuse(error)
        if self._rejected is not None:
            return self._rejected
        return Envelope(
            message_id=begin.message_id,
            reply_to=begin.reply_to,
            message_type=begin.message_type,
            group_id=begin.group_id,
            run_number=begin.run_number,
            ttl_seconds=begin.ttl_seconds,
            created_at=begin.created_at,
            documents={document.name: document.json for document in begin.documents},
            arrays_name=begin.arrays,
            arrays=arrays,
            arrays_digest=digest.hex(),
        )

    def _refuse(self, error: CloisterError) -> None:
        begin = self._begin
        # Frees what arrived; the error itself would keep it, by its traceback.
        self._tensors = None
        self._rejected = Rejected(begin.message_id, begin.reply_to, error.code, error.message)


def _finished(tensors: "_Tensors | None", digest: bytes) -> dict[str, Encoded] | None:
    if tensors is None:
        if digest:
            raise MessageError("expected no digest of a message without tensors, got one")
        return None
    return tensors.finish(digest)


class _Tensors:
    """The tensors of a manifest, in the order of their names, as their bytes come in."""

    def __init__(self, manifest: Manifest) -> None:
        self._expected = iter(sorted(manifest.items()))
        self._digest = ArraysDigest()
        self._done: dict[str, Encoded] = {}
        self._present: tuple[str, ArraySpec] | None = None
        self._payload = BytesIO()
        self._left = 0
        self._open_next()

    def take(self, data: bytes | memoryview) -> None:
        if self._present is None:
            raise MessageError(f"expected the end after {len(self._done)} tensors, got more bytes")
        name, _ = self._present
        size = min(CHUNK_BYTES, self._left)
        if len(data) != size:
            raise MessageError(f"expected the next {size} bytes of {name}, got {len(data)}")
        self._digest.update(data)
        self._payload.write(data)
        self._left -= size
        if not self._left:
            self._close_present()
            self._open_next()

    def finish(self, digest: bytes) -> dict[str, Encoded]:
        if self._present is not None:
            name, _ = self._present
            raise MessageError(f"expected {self._left} more bytes of {name}, got the end")
        if digest != self._digest.digest():
            raise MessageError("expected tensors with the digest that the sender counted")
        return self._done

    def _open_next(self) -> None:
        """Goes to the next tensor that has bytes."""
        while (item := next(self._expected, None)) is not None:
            self._present = item
            name, spec = item
            self._digest.begin(name, spec.dtype, spec.shape)
            self._payload = _room_for(spec)
            self._left = spec.payload_bytes - len(spec.header)
            if self._left:
                return
            self._close_present()

    def _close_present(self) -> None:
        if self._present is not None:
            name, spec = self._present
            # Flower's arrays are bytes. This gives the buffer itself: each byte was copied once.
            data = self._payload.getvalue()
            self._done[name] = Encoded(spec.dtype.name, spec.shape, _STYPE, data)
        self._payload = BytesIO()
        self._present = None


def _room_for(spec: ArraySpec) -> BytesIO:
    """A payload's buffer, with its header. Made in its full size: one that grows leaves holes."""
    payload = BytesIO()
    payload.seek(spec.payload_bytes - 1)
    payload.write(b"\0")
    payload.seek(0)
    payload.write(spec.header)
    return payload
