"""Transfers: a message arrives bit for bit, or is rejected; memory stays within the manifest."""

import dataclasses
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.array_codec import Manifest, array_spec, decode_arrays, encode_arrays, manifest_of
from core.digests import ArraysDigest, arrays_digest
from core.errors import MessageError, PolicyRefusedError, SessionError
from core.wire.frames import (
    Begin,
    Chunk,
    End,
    Frame,
    decode_frame,
    encode_frame,
)
from core.wire.limits import CHUNK_BYTES
from core.wire.transfer import Envelope, Receiver, Rejected, frames_of
from tests.support.bad_payloads import ARRAYS, GOOD_TRANSFER, ID, MANIFEST, envelope


def received(
    frames: Iterable[Frame], manifest: Manifest | None = MANIFEST
) -> Envelope | Rejected | None:
    """What comes out with the last frame, after a journey as bytes."""
    receiver = Receiver(lambda begin: manifest)
    outcome = None
    for frame in frames:
        assert outcome is None
        outcome = receiver.feed(decode_frame(encode_frame(frame)))
    return outcome


def test_a_message_arrives_bit_for_bit() -> None:
    sent = envelope()
    heard = received(frames_of(sent))
    digest = arrays_digest(ARRAYS)
    assert heard == dataclasses.replace(sent, arrays_digest=digest)


def test_its_arrays_are_what_the_codec_reads() -> None:
    heard = received(frames_of(envelope()))
    assert isinstance(heard, Envelope)
    assert heard.arrays is not None
    arrays = decode_arrays(dict(heard.arrays), MANIFEST)
    assert arrays_digest(arrays) == heard.arrays_digest == arrays_digest(ARRAYS)


def test_small_numbers_travel_too() -> None:
    arrays = {
        "w": np.arange(700_000, dtype="<u2").reshape(700, 1000),
        "w.int": np.arange(-5, 5, dtype="i1"),
        "w.scale": np.ones(3, "<f4"),
    }
    manifest = {name: array_spec(array.shape, array.dtype) for name, array in arrays.items()}
    heard = received(frames_of(envelope(arrays)), manifest)
    assert isinstance(heard, Envelope)
    assert heard.arrays == encode_arrays(arrays)
    assert heard.arrays_digest == arrays_digest(arrays)


def test_a_message_without_tensors_arrives() -> None:
    sent = envelope(arrays_name="", arrays=None)
    frames = list(frames_of(sent))
    assert [type(frame) for frame in frames] == [Begin, End]
    # The manifest is of no account where a refusal comes instead of weights.
    assert received(frames, MANIFEST) == received(frames, None) == sent


def test_a_record_without_tensors_is_not_the_same_as_none() -> None:
    heard = received(frames_of(envelope({})), {})
    assert isinstance(heard, Envelope)
    assert heard.arrays == {}
    assert heard.arrays_digest == arrays_digest({})


def test_chunks_are_one_mebibyte_of_one_tensor_in_the_order_of_the_names() -> None:
    begin, *chunks, end = GOOD_TRANSFER
    assert isinstance(begin, Begin)
    assert isinstance(end, End)
    sizes = [len(chunk.data) for chunk in chunks if isinstance(chunk, Chunk)]
    assert sizes == [4, CHUNK_BYTES, 1_200_000 - CHUNK_BYTES, 24, 24]
    assert end.digest.hex() == arrays_digest(ARRAYS)


def test_chunks_are_views_of_the_arrays_made_as_they_are_asked_for() -> None:
    sent = envelope()
    frames = frames_of(sent)
    next(frames)
    chunk = next(frames)
    assert sent.arrays is not None
    assert isinstance(chunk, Chunk)
    assert isinstance(chunk.data, memoryview)
    assert chunk.data.obj is sent.arrays["bias"].data


def test_a_digest_that_is_known_is_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = envelope(arrays_digest=arrays_digest(ARRAYS))

    def update(self: ArraysDigest, piece: memoryview) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(ArraysDigest, "update", update)
    assert tuple(frames_of(sent)) == GOOD_TRANSFER


def test_a_digest_that_is_wrong_is_found_out() -> None:
    outcome = received(frames_of(envelope(arrays_digest="0" * 64)))
    assert isinstance(outcome, Rejected)
    assert "expected tensors with the digest that the sender counted" in outcome.message


def test_messages_come_one_after_the_other() -> None:
    receiver = Receiver(lambda begin: MANIFEST if begin.arrays else None)
    plain = envelope(arrays_name="", arrays=None, message_id=ID[::-1])
    messages = [envelope(), plain, envelope()]
    outcomes = [receiver.feed(frame) for message in messages for frame in frames_of(message)]
    arrived = [outcome for outcome in outcomes if outcome is not None]
    assert [a.message_id for a in arrived] == [m.message_id for m in messages]


def test_tensors_where_none_are_expected_are_swallowed() -> None:
    outcome = received(GOOD_TRANSFER, None)
    assert outcome == Rejected(ID, ID[::-1], "message", "expected no tensors in this train message")


def test_a_receiver_can_refuse_a_message_by_name_as_it_begins() -> None:
    def refuse(begin: Begin) -> Manifest:
        raise PolicyRefusedError("expected an order of this run, got another")

    receiver = Receiver(refuse)
    *swallowed, outcome = [receiver.feed(frame) for frame in GOOD_TRANSFER]
    assert set(swallowed) == {None}
    words = "expected an order of this run, got another"
    assert outcome == Rejected(ID, ID[::-1], "policy-refused", words)


def test_the_manifest_is_asked_for_once_with_the_begin() -> None:
    asked: list[Begin] = []

    def manifest_for(begin: Begin) -> Manifest:
        asked.append(begin)
        return MANIFEST

    receiver = Receiver(manifest_for)
    for frame in GOOD_TRANSFER:
        receiver.feed(frame)
    assert asked == [GOOD_TRANSFER[0]]


def test_what_does_not_fit_is_not_swallowed_for_ever() -> None:
    receiver = Receiver(lambda begin: None, max_swallowed_bytes=2 * CHUNK_BYTES)
    chunk = Chunk(bytes(CHUNK_BYTES))
    for frame in (GOOD_TRANSFER[0], chunk, chunk):
        receiver.feed(frame)
    with pytest.raises(SessionError, match="a message that does not fit, got ever more: expected"):
        receiver.feed(chunk)


def test_small_chunks_of_what_does_not_fit_are_not_swallowed_for_long() -> None:
    """A byte in a frame of its own costs as much time as many."""
    receiver = Receiver(lambda begin: None, max_swallowed_bytes=2 * CHUNK_BYTES)
    receiver.feed(GOOD_TRANSFER[0])
    for _ in range(32):
        receiver.feed(Chunk(b"1"))
    with pytest.raises(SessionError, match="a message that does not fit, got ever more"):
        receiver.feed(Chunk(b"1"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrays_name": ""}, "expected arrays and their record's name, or neither"),
        ({"arrays": None}, "expected arrays and their record's name, or neither"),
        ({"message_id": "17"}, "expected message_id as"),
        ({"documents": {"a b": b""}}, "expected document name as"),
        (
            {"arrays": {"w": encode_arrays(ARRAYS)["left"]._replace(dtype="uint16")}},
            "expected w as numpy.save writes uint16, got another",
        ),
        (
            {"arrays": {"w": encode_arrays(ARRAYS)["left"]._replace(data=b"")}},
            "expected w as numpy.save writes float32, got another",
        ),
    ],
)
def test_what_cannot_be_sent_is_not_begun_to_be_sent(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        next(frames_of(envelope(**changes)))


def test_memory_stays_within_the_manifest_and_one_tensor() -> None:
    shape = (1024, 1024)  # 4 MiB
    arrays = {f"w{n}": np.zeros(shape, np.float32) for n in range(8)}
    manifest = manifest_of(arrays)
    model = sum(spec.payload_bytes for spec in manifest.values())
    stream = [encode_frame(frame) for frame in frames_of(envelope(arrays))]
    receiver = Receiver(lambda begin: manifest)
    tracemalloc.start()
    # As gRPC would: each frame is new bytes that nothing else keeps.
    outcomes = [receiver.feed(decode_frame(bytes(bytearray(data)))) for data in stream]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(outcomes[-1], Envelope)
    # The last tensor twice, and the two copies of a frame that this test makes.
    assert peak < model + (4 << 20) + 3 * CHUNK_BYTES


def test_of_what_does_not_fit_nothing_is_kept() -> None:
    arrays = {f"w{n}": np.zeros((1024, 1024), np.float32) for n in range(4)}
    manifest = {**manifest_of(arrays), "w1": array_spec((1,))}
    stream = [encode_frame(frame) for frame in frames_of(envelope(arrays))]
    receiver = Receiver(lambda begin: manifest)
    tracemalloc.start()
    for data in stream[:-1]:
        receiver.feed(decode_frame(bytes(bytearray(data))))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(receiver.feed(decode_frame(stream[-1])), Rejected)
    assert kept < CHUNK_BYTES


FRAMES = st.sampled_from(GOOD_TRANSFER) | st.builds(
    Chunk, st.binary(min_size=1, max_size=64) | st.sampled_from([4, 24, 48]).map(bytes)
)


@given(st.lists(FRAMES, max_size=12))
def test_no_frames_raise_anything_else(frames: list[Frame]) -> None:
    receiver = Receiver(lambda begin: MANIFEST)
    for frame in frames:
        try:
            outcome = receiver.feed(frame)
        except SessionError:
            return
        if isinstance(outcome, Envelope):
            assert outcome.arrays == envelope().arrays


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
ANY_ARRAYS = st.dictionaries(st.text("ab.", min_size=1, max_size=3), SHAPES, max_size=4)


@given(ANY_ARRAYS, ANY_ARRAYS)
def test_only_what_the_manifest_says_arrives(
    sent: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    arrays = {name: np.ones(shape, np.float32) for name, shape in sent.items()}
    manifest = {name: array_spec(shape) for name, shape in expected.items()}
    outcome = received(frames_of(envelope(arrays)), manifest)
    assert isinstance(outcome, Envelope) == (sent == expected)
