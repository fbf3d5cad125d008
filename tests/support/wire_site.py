"""A site that speaks the protocol and trains nothing: without IO, and over real gRPC.

``SiteDouble`` takes frames and gives frames; ``WireSite`` carries them over a stream.
"""

import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import grpc

from core.array_codec import Manifest, Received
from core.wire.channel import SESSION, channel_options
from core.wire.documents import PROTOCOL_VERSION, session_transcript
from core.wire.frames import (
    Begin,
    Challenge,
    Chunk,
    End,
    Frame,
    Heartbeat,
    Hello,
    Proof,
    Welcome,
    decode_frame,
    encode_frame,
)
from core.wire.frames import Received as ReceivedFrame
from core.wire.session import Session
from core.wire.transfer import Envelope, Receiver, Rejected, frames_of
from privacy.signing import SiteKey

Answer = Callable[[Envelope], Envelope | None]


def reply_to(order: Envelope, documents: Mapping[str, bytes], **changes: Any) -> Envelope:
    """A reply with these documents; ``arrays`` go under the name ``arrays``."""
    reply = Envelope(
        message_id=secrets.token_hex(16),
        reply_to=order.message_id,
        message_type=order.message_type,
        group_id=order.group_id,
        run_number=order.run_number,
        ttl_seconds=60.0,
        created_at=time.time(),
        documents=documents,
    )
    return replace(reply, **changes)


def echo(order: Envelope) -> Envelope:
    """Sends an order's arrays back, with an empty document."""
    arrays: Mapping[str, Received] | None = order.arrays
    return reply_to(
        order,
        {"reply": b"{}"},
        arrays=arrays,
        arrays_name=order.arrays_name,
        arrays_digest=order.arrays_digest,
    )


@dataclass
class SiteDouble:
    """The site's end of an open session.

    Args:
        manifest: What orders must look like; ``None`` for orders without arrays.
        answer: Makes the reply to an order, at once; ``None`` for later or never.
    """

    manifest: Manifest | None = None
    answer: Answer = lambda order: None
    table: Session = field(default_factory=lambda: Session("site"))
    orders: list[Envelope] = field(default_factory=list)
    heard: list[Frame] = field(default_factory=list)
    """All but tensors and heartbeats."""
    heartbeats: int = 0

    def __post_init__(self) -> None:
        self._receiver = Receiver(lambda begin: self.manifest)

    def take(self, frame: Frame) -> Iterator[Frame]:
        """What the site says to a frame of the coordinator's."""
        if isinstance(frame, Heartbeat):
            self.heartbeats += 1
        elif not isinstance(frame, Chunk):
            self.heard.append(frame)
        if not isinstance(frame, Begin | Chunk | End):
            return
        message = self._receiver.feed(frame)
        if isinstance(message, Rejected):
            yield ReceivedFrame(message.message_id, message.code)
        elif message is not None:
            self.orders.append(message)
            yield ReceivedFrame(message.message_id)
            reply = self.answer(message)
            if reply is not None:
                yield from frames_of(reply)

    def told(self, kind: type[Frame]) -> list[Any]:
        """The frames of a kind that it heard."""
        return [frame for frame in self.heard if isinstance(frame, kind)]


@dataclass(frozen=True)
class Credentials:
    """What a site has after it has joined."""

    site: str
    node_key: SiteKey
    tls_key_pem: bytes
    chain_pem: bytes
    root_pem: bytes
    server_name: str

    def channel(self, port: int, **changes: Any) -> grpc.Channel:
        """A channel over mutual TLS."""
        this = replace(self, **changes)
        credentials = grpc.ssl_channel_credentials(
            this.root_pem, this.tls_key_pem or None, this.chain_pem or None
        )
        return grpc.secure_channel(
            f"127.0.0.1:{port}", credentials, options=channel_options(this.server_name)
        )


class WireSite:
    """A site with a session over gRPC; ``with`` ends it as a crash would."""

    def __init__(
        self,
        credentials: Credentials,
        port: int,
        double: SiteDouble | None = None,
        *,
        federation: str,
        instance: str | None = None,
        pending: tuple[str, ...] = (),
        roster_epoch: int = 0,
        heartbeat_seconds: float = 1.0,
    ) -> None:
        self.credentials = credentials
        self.double = double or SiteDouble()
        self.instance = instance or secrets.token_hex(16)
        self.welcomed = threading.Event()
        self.ended = threading.Event()
        self.error: grpc.RpcError | None = None
        self._federation = federation
        self._hello = Hello(
            PROTOCOL_VERSION,
            federation,
            credentials.site,
            self.instance,
            secrets.token_bytes(32),
            roster_epoch,
            pending,
        )
        self._heartbeat_seconds = heartbeat_seconds
        self._out: queue.Queue[Iterator[Frame | bytes] | None] = queue.Queue()
        self._channel = credentials.channel(port)
        self._call = self._channel.stream_stream(SESSION)(self._requests())
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.crash()

    def wait_open(self, seconds: float = 10.0) -> "WireSite":
        """Until the Welcome."""
        deadline = time.monotonic() + seconds
        while not self.welcomed.wait(0.01):
            if self.ended.is_set() or time.monotonic() > deadline:
                raise AssertionError(f"no session: {self.status()}")
        return self

    def status(self) -> tuple[str, str]:
        """How gRPC says the stream ended: its status and the error's name."""
        if self.error is None:
            return ("OK", "")
        return (self.error.code().name, self.error.details() or "")  # type: ignore[attr-defined]

    def wait_ended(self, seconds: float = 10.0) -> tuple[str, str]:
        """Until the stream ends; its status."""
        assert self.ended.wait(seconds), "the session goes on"
        return self.status()

    def say(self, *frames: Frame) -> None:
        """Sends frames, legal or not."""
        self._out.put(iter(frames))

    def say_raw(self, frames: Iterator[bytes]) -> None:
        """Sends bytes, frames or not."""
        self._out.put(frames)

    def send(self, envelope: Envelope) -> None:
        """Sends a message."""
        self._out.put(frames_of(envelope))

    def hang_up(self) -> None:
        """Ends the site's half of the stream."""
        self._out.put(None)

    def crash(self) -> None:
        """The connection is gone, without a word."""
        self._call.cancel()
        self._out.put(None)
        self._channel.close()
        self._reader.join(10)

    def _requests(self) -> Iterator[bytes]:
        yield encode_frame(self._hello)
        while True:
            try:
                frames = self._out.get(timeout=self._heartbeat_seconds)
            except queue.Empty:
                if self.welcomed.is_set():
                    yield encode_frame(Heartbeat())
                continue
            if frames is None:
                return
            for frame in frames:
                yield frame if isinstance(frame, bytes) else encode_frame(frame)

    def _read(self) -> None:
        try:
            for data in self._call:
                self._hear(decode_frame(data))
        except grpc.RpcError as error:
            self.error = error
        finally:
            self.ended.set()
            self._out.put(None)

    def _hear(self, frame: Frame) -> None:
        match frame:
            case Challenge(nonce):
                hello = self._hello
                transcript = session_transcript(
                    self._federation, hello.site, hello.instance, hello.nonce, nonce
                )
                signature = self.credentials.node_key.sign("session", transcript)
                self.say(Proof(bytes.fromhex(signature)))
            case Welcome():
                self.double.heard.append(frame)
                self.welcomed.set()
            case _:
                answers = self.double.take(frame)
                first = next(answers, None)
                if first is not None:
                    # The chunks of a reply are made when they are sent.
                    self._out.put(itertools.chain([first], answers))
