"""The corpus of bad documents of identity and control.

Those of training stand in tests/unit/core/test_messages.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from core.messages import MAX_MESSAGE_BYTES, WireMessage, encode
from tests.support import documents


@dataclass(frozen=True)
class BadDocument:
    """Bytes that are no document: ``core.messages.decode`` raises ``MessageError``."""

    name: str
    kind: type[WireMessage]
    data: bytes
    words: str


def _at(message: WireMessage, path: str, value: Any) -> bytes:
    """The message's JSON with ``value`` at the dotted ``path``."""
    document = json.loads(encode(message))
    *parents, last = path.split(".")
    table = document
    for parent in parents:
        table = table[int(parent) if parent.isdigit() else parent]
    table[last] = value
    return json.dumps(document).encode()


_MISFITS: list[tuple[WireMessage, str, Any, str]] = [
    (documents.MEMBER, "name", "../north", "name: String should match pattern"),
    (documents.MEMBER, "name", "north\n", "name: String should match pattern"),
    (documents.MEMBER, "node-key", "1" * 63, "node_key: String should match pattern"),
    (documents.MEMBER, "node-key", "A" * 64, "node_key: String should match pattern"),
    (documents.MEMBER, "tls-name", "*.site.clinic", "tls_name: String should match pattern"),
    (documents.MEMBER, "tls-name", "a..b", "tls_name: String should match pattern"),
    (documents.MEMBER, "tls-name", "a." * 9 + "b", "tls_name: String should match pattern"),
    (documents.MEMBER, "num-examples", 0, "num_examples: Input should be greater"),
    (documents.MEMBER, "num-examples", 10**13, "num_examples: Input should be less"),
    (documents.MEMBER, "num-examples", 1.0, "num_examples: Input should be a valid integer"),
    (documents.MEMBER, "num-examples", True, "num_examples: Input should be a valid integer"),
    (documents.MEMBER, "status", "admin", "status: Input should be 'active' or 'revoked'"),
    (documents.OPERATOR, "role", "admin", "role: Input should be 'operator' or 'auditor'"),
    (documents.OPERATOR, "role", ["operator"], "role: Input should be"),
    (documents.ROSTER, "schema-version", 2, "schema_version: Input should be 1"),
    (documents.ROSTER, "epoch", 0, "epoch: Input should be greater than or equal to 1"),
    (documents.ROSTER, "epoch", -1, "epoch: Input should be greater"),
    (documents.ROSTER, "issued", "2026-11-22", "issued: String should match pattern"),
    (documents.ROSTER, "expires", "2026-11-22T10:00:00+01:00", "expires: String should match"),
    (documents.ROSTER, "expires", "\u0662\u0660\u0662\u0666-11-22T10:00:00Z", "expires: String"),
    (documents.ROSTER, "members", {}, "members: Input should be a valid"),
    (documents.ROSTER, "members.0.extra", 1, "members.0.extra: Extra inputs"),
    (documents.SIGNED, "signature", "", "signature: String should match pattern"),
    (documents.SIGNED, "roster", None, "roster: "),
    (documents.INVITATION, "token", "3" * 31, "token: String should match pattern"),
    (documents.INVITATION, "address", "coordinator", "address: String should match pattern"),
    (documents.INVITATION, "address", "a/b:7443", "address: String should match pattern"),
    (documents.INVITATION, "ca-pem", "x" * 16_385, "ca_pem: String should have at most"),
    (documents.JOIN, "csr-pem", "x" * 16_385, "csr_pem: String should have at most"),
    (documents.JOIN, "csr-pem", None, "csr_pem: Input should be a valid string"),
    (documents.JOIN, "signature", "5" * 129, "signature: String should match pattern"),
    (documents.JOIN, "admin", True, "admin: Extra inputs are not permitted"),
    (documents.JOINED, "fingerprint", "6" * 63, "fingerprint: String should match pattern"),
    (documents.COLLECT, "time", "now", "time: String should match pattern"),
    (documents.COLLECTED, "state", "maybe", "state: Input should be 'pending'"),
    (documents.COLLECTED, "roster.signature", 3, "roster.signature: Input should be"),
    (documents.RENEW, "site", "", "site: String should match pattern"),
    (documents.RENEWED, "certificate-pem", "x" * 16_385, "certificate_pem: String should have"),
    (documents.CONTROL, "command", "exec", "command: Input should be 'status'"),
    (documents.CONTROL, "run", "../run", "run: String should match pattern"),
    (documents.CONTROL, "config.model.n-layer", 1e300, "config.model"),
    (documents.CONTROL, "config.privacy.noise-multiplier", -1, "config.privacy.noise_multiplier"),
    (documents.CONTROL, "config.extra", 1, "config.extra: Extra inputs are not permitted"),
    (documents.SITE, "silent-seconds", -0.5, "silent_seconds: Input should be greater"),
    (documents.SITE, "connected", 1, "connected: Input should be a valid boolean"),
    (documents.RUN, "refusals", ["no"] * 65, "refusals: Tuple should have at most 64"),
    (documents.RUN, "reason", "r" * 4097, "reason: String should have at most 4096"),
    (documents.STATUS, "version", "v" * 65, "version: String should have at most 64"),
    (documents.CONTROLLED, "code", "c" * 65, "code: String should have at most 64"),
]
_UNREADABLE_DOCUMENTS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("nothing", lambda good: b"", "is not readable JSON"),
    ("cut short", lambda good: good[:-1], "is not readable JSON"),
    ("doubled", lambda good: good * 2, "is not readable JSON"),
    ("UTF-16", lambda good: good.decode().encode("utf-16"), "is not readable JSON"),
    ("deep", lambda good: b"[" * 100_000, "is not readable JSON"),
    ("a list", lambda good: b"[" + good + b"]", "the whole message"),
    ("too long", lambda good: good + b" " * MAX_MESSAGE_BYTES, "of at most 262144 bytes"),
    ("in snake_case", lambda good: good[:-1] + b',"a_b":1}', "is not readable JSON"),
    ("with a NaN", lambda good: good[:-1] + b',"extra":NaN}', "extra"),
    ("with an unknown key", lambda good: good[:-1] + b',"extra":1}', "extra"),
]


def _bad_documents() -> Iterator[BadDocument]:
    for message, path, value, words in _MISFITS:
        kind = type(message)
        name = f"{kind.__name__}.{path} = {ascii(value)[:24]}"
        yield BadDocument(name, kind, _at(message, path, value), words)
    for message in documents.DOCUMENTS:
        for name, spoil, words in _UNREADABLE_DOCUMENTS:
            kind = type(message)
            yield BadDocument(f"{kind.__name__}: {name}", kind, spoil(encode(message)), words)


BAD_DOCUMENTS: list[BadDocument] = list(_bad_documents())
