"""Documents of identity, control, aggregation and audits: what is said is heard, no more."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import aggregation_messages, audit_messages
from core.errors import MessageError
from core.messages import WireMessage, decode, encode
from core.wire import documents
from core.wire.documents import session_transcript
from tests.support.aggregation_documents import AGGREGATION_DOCUMENTS
from tests.support.audit_documents import AUDIT_DOCUMENTS
from tests.support.documents import DOCUMENTS

EXAMPLES = (*DOCUMENTS, *AGGREGATION_DOCUMENTS, *AUDIT_DOCUMENTS)
KINDS = [type(document) for document in EXAMPLES]


def kind(value: object) -> str:
    return type(value).__name__


def test_there_is_an_example_of_every_document() -> None:
    modules = {m.__name__ for m in (documents, aggregation_messages, audit_messages)}
    direct = [k for k in WireMessage.__subclasses__() if k.__module__ in modules]
    assert set(KINDS) == {*direct, *(k for each in direct for k in each.__subclasses__())}


@pytest.mark.parametrize("document", EXAMPLES, ids=kind)
def test_what_is_said_is_what_is_heard(document: WireMessage) -> None:
    heard = decode(type(document), encode(document))
    assert heard == document
    assert encode(heard) == encode(document)


@pytest.mark.parametrize("document", EXAMPLES, ids=kind)
def test_an_example_sets_every_field(document: WireMessage) -> None:
    assert document.model_fields_set | {"schema_version"} >= set(type(document).model_fields)


@pytest.mark.parametrize("document", EXAMPLES, ids=kind)
def test_every_missing_key_is_named(document: WireMessage) -> None:
    fields = json.loads(encode(document))
    for name, field in type(document).model_fields.items():
        if field.is_required():
            rest = {key: value for key, value in fields.items() if key != name.replace("_", "-")}
            with pytest.raises(MessageError, match=f"does not fit: {name}: "):
                decode(type(document), json.dumps(rest).encode())


@pytest.mark.parametrize("document", KINDS, ids=lambda k: k.__name__)
def test_every_field_is_described(document: type[WireMessage]) -> None:
    for name, field in document.model_fields.items():
        assert field.description, f"{document.__name__}.{name}"


def test_a_token_is_in_no_repr() -> None:
    with_token = [document for document in EXAMPLES if hasattr(document, "token")]
    assert {kind(document) for document in with_token} == {"Invitation", "JoinRequest"}
    for document in with_token:
        assert document.token not in repr(document)  # type: ignore[attr-defined]


def test_the_transcript_of_a_session_binds_every_part() -> None:
    parts: dict[str, Any] = {
        "federation": "clinic",
        "site": "north",
        "instance": "0" * 32,
        "site_nonce": b"s" * 32,
        "coordinator_nonce": b"c" * 32,
    }
    transcript = session_transcript(**parts)
    assert json.loads(transcript)["protocol"] == 1
    for part, value in parts.items():
        other = value[::-1] + value[:1]
        assert session_transcript(**{**parts, part: other}) != transcript
    exchanged = {"site_nonce": b"c" * 32, "coordinator_nonce": b"s" * 32}
    assert session_transcript(**{**parts, **exchanged}) != transcript


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


def heard_or_refused(kind: type[WireMessage], payload: bytes) -> None:
    """Nothing but MessageError escapes; what is accepted says itself again."""
    try:
        message = decode(kind, payload)
    except MessageError:
        return
    assert decode(kind, encode(message)) == message


@given(st.sampled_from(KINDS), st.binary())
def test_no_bytes_raise_anything_else(kind: type[WireMessage], payload: bytes) -> None:
    heard_or_refused(kind, payload)


@given(st.sampled_from(EXAMPLES), st.data())
def test_no_value_of_a_field_raises_anything_else(
    document: WireMessage, data: st.DataObject
) -> None:
    fields = json.loads(encode(document))
    fields[data.draw(st.sampled_from(sorted(fields)) | st.text())] = data.draw(JSON)
    heard_or_refused(type(document), json.dumps(fields).encode())


@given(st.sampled_from(EXAMPLES), st.data())
def test_no_change_of_the_bytes_raises_anything_else(
    document: WireMessage, data: st.DataObject
) -> None:
    good = encode(document)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    heard_or_refused(type(document), good[:start] + data.draw(st.binary(max_size=8)) + good[end:])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_keys_on_the_wire_are_kebab_case(kind: type[WireMessage]) -> None:
    document = next(example for example in EXAMPLES if type(example) is kind)
    for key in json.loads(encode(document)):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
