"""The corpus of bad payloads: everything in it is refused by name, and nothing raw escapes."""

import re

import pytest

from core.errors import MessageError, SessionError
from core.messages import decode
from core.wire.frames import decode_frame
from core.wire.transfer import Envelope, Receiver, Rejected
from tests.support.bad_documents import BAD_DOCUMENTS, BadDocument
from tests.support.bad_payloads import (
    BAD_FRAMES,
    BAD_TRANSFERS,
    GOOD_TRANSFER,
    ID,
    MANIFEST,
    BadFrame,
    BadTransfer,
)


def name(case: object) -> str:
    return str(getattr(case, "name", case))


def test_the_corpus_is_large_and_its_cases_are_told_apart() -> None:
    names = [case.name for case in (*BAD_FRAMES, *BAD_TRANSFERS, *BAD_DOCUMENTS)]
    assert len(names) >= 100
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", BAD_FRAMES, ids=name)
def test_a_bad_frame_is_refused(case: BadFrame) -> None:
    with pytest.raises(MessageError, match=re.escape(case.words)) as caught:
        decode_frame(case.data)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("case", [c for c in BAD_TRANSFERS if not c.breaks], ids=name)
def test_a_bad_message_is_rejected_at_its_end_and_the_next_one_is_read(case: BadTransfer) -> None:
    receiver = Receiver(lambda begin: MANIFEST)
    outcomes = [receiver.feed(frame) for frame in case.frames]

    assert outcomes[:-1] == [None] * (len(outcomes) - 1)
    rejected = outcomes[-1]
    assert isinstance(rejected, Rejected)
    assert (rejected.message_id, rejected.code) == (ID, "message")
    assert case.words in rejected.message

    *_, whole = [receiver.feed(frame) for frame in GOOD_TRANSFER]
    assert isinstance(whole, Envelope)


@pytest.mark.parametrize("case", [c for c in BAD_TRANSFERS if c.breaks], ids=name)
def test_frames_in_no_possible_order_break_the_stream(case: BadTransfer) -> None:
    receiver = Receiver(lambda begin: MANIFEST)
    for frame in case.frames[:-1]:
        receiver.feed(frame)
    with pytest.raises(SessionError, match=case.words):
        receiver.feed(case.frames[-1])


@pytest.mark.parametrize("case", BAD_DOCUMENTS, ids=name)
def test_a_bad_document_is_refused(case: BadDocument) -> None:
    with pytest.raises(MessageError, match=re.escape(case.words)) as caught:
        decode(case.kind, case.data)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
