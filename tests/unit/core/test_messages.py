"""Messages: what is said is what is heard, and nothing else is."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.errors import MessageError
from core.messages import (
    MAX_MESSAGE_BYTES,
    LedgerHead,
    Refusal,
    TrainReply,
    TrainTask,
    WireMessage,
    decode,
    encode,
)
from tests.golden.regenerate import golden_files, main
from tests.support.messages import EXAMPLES, HEAD, REFUSAL, REPLY, TASK, TERMS

KINDS = [type(example) for example in EXAMPLES]


def ids(value: object) -> str:
    return type(value).__name__


def changed(message: WireMessage, path: str, value: Any) -> bytes:
    """The message's JSON with ``value`` at the dotted ``path``."""
    document = json.loads(encode(message))
    *parents, last = path.split(".")
    table = document
    for parent in parents:
        table = table[parent]
    table[last] = value
    return json.dumps(document).encode()


def all_keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from all_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from all_keys(item)


def test_there_is_an_example_of_every_message() -> None:
    # Those of identity and control stand in test_wire_documents.py.
    kinds = {k for k in WireMessage.__subclasses__() if k.__module__ == WireMessage.__module__}
    assert set(KINDS) == kinds


@pytest.mark.parametrize("example", EXAMPLES, ids=ids)
def test_what_is_said_is_what_is_heard(example: WireMessage) -> None:
    heard = decode(type(example), encode(example))
    assert heard == example
    assert encode(heard) == encode(example)


@pytest.mark.parametrize("example", EXAMPLES, ids=ids)
def test_keys_on_the_wire_are_kebab_case(example: WireMessage) -> None:
    for key in all_keys(json.loads(encode(example))):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)


@pytest.mark.parametrize(
    ("path", "content"), golden_files().items(), ids=lambda v: getattr(v, "name", "")
)
def test_bytes_on_the_wire_are_the_golden_ones(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content


def test_no_golden_file_is_left_over() -> None:
    folder = next(iter(golden_files())).parent
    assert set(folder.iterdir()) == {path for path in golden_files() if path.parent == folder}


def test_golden_files_are_not_rewritten_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: type[WireMessage]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name}"


@pytest.mark.parametrize("payload", [None, "{}", bytearray(b"{}"), 3, {}])
def test_only_bytes_are_parsed(payload: object) -> None:
    message = f"expected LedgerHead as bytes, got {type(payload).__name__}"
    with pytest.raises(MessageError, match=message):
        decode(LedgerHead, payload)


def test_a_message_that_is_too_long_is_not_parsed() -> None:
    payload = b" " * (MAX_MESSAGE_BYTES + 1)
    with pytest.raises(MessageError, match="expected LedgerHead of at most 262144 bytes, got 2621"):
        decode(LedgerHead, payload)


UNREADABLE = {
    "empty": b"",
    "cut": encode(HEAD)[:-1],
    "not UTF-8": b'{"sequence":1,"digest":"\xff"}',
    "UTF-16": encode(HEAD).decode().encode("utf-16"),
    "with a byte order mark": b"\xef\xbb\xbf" + encode(HEAD),
    "deep list": b"[" * (MAX_MESSAGE_BYTES // 2),
    "deep object": b'{"a":' * 50_000,
    "huge integer": b'{"sequence":' + b"9" * 5000 + b"}",
    "doubled key": encode(HEAD)[:-1] + b',"sequence":4}',
    "doubled key below": encode(REPLY).replace(
        b'"private":true', b'"private":true,"private":false'
    ),
    "snake_case key": encode(REFUSAL).replace(b"run-id", b"run_id"),
    "one key in both cases": encode(REFUSAL)[:-1] + b',"run_id":"0123456789abcdef"}',
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_not_readable_is_refused(payload: bytes) -> None:
    for kind in (LedgerHead, TrainReply, Refusal):
        with pytest.raises(MessageError, match=f"{kind.__name__} is not readable JSON"):
            decode(kind, payload)


NUMBERS = [
    (TASK, "dp-sgd.noise-multiplier"),
    (TASK, "terms.proximal-mu"),
    (TASK, "terms.model.rope-theta"),
    (TASK, "terms.train.learning-rate"),
    (TASK, "terms.train.beta1"),
    (TASK, "terms.privacy.max-grad-norm"),
    (REPLY, "spent.epsilon"),
]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(("message", "path"), NUMBERS)
def test_a_number_that_is_not_finite_is_refused(message: WireMessage, path: str, text: str) -> None:
    payload = changed(message, path, "HERE").replace(b'"HERE"', text.encode())
    where = path.replace("-", "_")
    with pytest.raises(MessageError, match=f"does not fit: {where}: Input should be a finite"):
        decode(type(message), payload)


MISFITS = [
    (TASK, "schema-version", 2, "schema_version: Input should be 1"),
    (TASK, "server-round", 0, "server_round: Input should be greater than or equal to 1"),
    (TASK, "server-round", 1.0, "server_round: Input should be a valid integer"),
    (TASK, "server-round", "1", "server_round: Input should be a valid integer"),
    (TASK, "server-round", True, "server_round: Input should be a valid integer"),
    (TASK, "run-id", "0123456789ABCDEF", "run_id: String should match pattern"),
    (TASK, "run-id", "0123456789abcdef\n", "run_id: String should match pattern"),
    (TASK, "site", "../north", "site: String should match pattern"),
    (TASK, "arrays-digest", "4" * 63, "arrays_digest: String should match pattern"),
    (TASK, "attempt", None, "attempt: Input should be a valid integer"),
    (TASK, "dp-sgd.sample-rate", 1.5, "dp_sgd.sample_rate: .* less than or equal to 1"),
    (TASK, "terms.model.n-layer", 2.5, "terms.model.n_layer: Input should be a valid integer"),
    (TASK, "terms.model.extra", 1, "terms.model.extra: Unexpected keyword argument"),
    (TASK, "terms.train.extra", 1, "terms.train.extra: Unexpected keyword argument"),
    (TASK, "terms.train.steps-per-round", 0, "expected train.steps_per_round of 1 or more, got 0"),
    (TASK, "terms.task.labels", ["a"], "terms.task: .* two or more `labels` for classification"),
    (TASK, "terms.privacy.mode", "none", "terms.privacy: .* has no epsilon"),
    (TASK, "extra", 1, "extra: Extra inputs are not permitted"),
    (REPLY, "loss", 0.5, "loss: Extra inputs are not permitted"),
    (REPLY, "spent.delta", 1, "spent.delta: Input should be less than 1"),
    (REFUSAL, "code", "Budget", "code: String should match pattern"),
    (REFUSAL, "message", "x" * 4097, "message: String should have at most 4096 characters"),
    (REFUSAL, "message", "\ud800", "Refusal does not fit: "),
]


@pytest.mark.parametrize(("message", "path", "value", "words"), MISFITS)
def test_a_misfit_is_named(message: WireMessage, path: str, value: object, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(type(message), changed(message, path, value))


@pytest.mark.parametrize("payload", [b"[]", b"3", b'"x"', b"null"])
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(MessageError, match="LedgerHead does not fit: the whole message: "):
        decode(LedgerHead, payload)


@pytest.mark.parametrize("example", EXAMPLES, ids=ids)
def test_every_missing_key_is_named(example: WireMessage) -> None:
    document = json.loads(encode(example))
    for name, field in type(example).model_fields.items():
        if field.is_required():
            key = name.replace("_", "-")
            rest = {other: value for other, value in document.items() if other != key}
            with pytest.raises(MessageError, match=f"does not fit: {name}: "):
                decode(type(example), json.dumps(rest).encode())


def test_a_peers_words_reach_the_log_on_one_short_line() -> None:
    payload = changed(HEAD, "\x1b[2J\n" + "x" * 100_000, 1)
    with pytest.raises(MessageError) as caught:
        decode(LedgerHead, payload)
    text = str(caught.value)
    assert len(text) < 500
    assert text.isprintable()


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        HEAD.sequence = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TERMS.train.steps_per_round = 1  # type: ignore[misc]


def test_the_task_hash_follows_every_term() -> None:
    other = TERMS.model_copy(update={"num_rounds": 21})
    assert other.digest() != TERMS.digest()
    assert decode(type(TERMS), encode(TERMS)).digest() == TERMS.digest()


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


@given(st.sampled_from(KINDS), JSON)
def test_no_json_raises_anything_else(kind: type[WireMessage], value: object) -> None:
    heard_or_refused(kind, json.dumps(value).encode())


@given(st.data())
def test_no_change_of_one_value_raises_anything_else(data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(EXAMPLES))
    document = json.loads(encode(example))
    table = document
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        if not (isinstance(table[key], dict) and data.draw(st.booleans())):
            break
        table = table[key]
    table[key] = data.draw(JSON | st.integers(-3, 3) | st.sampled_from(["none", "local", 1e308]))
    heard_or_refused(type(example), json.dumps(document).encode())


@given(st.data())
def test_no_flipped_byte_raises_anything_else(data: st.DataObject) -> None:
    payload = bytearray(encode(TASK))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    heard_or_refused(TrainTask, bytes(payload))
