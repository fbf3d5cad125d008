"""The audit's outcome as other tools read it: an in-toto statement in a signed DSSE envelope.

Source: in-toto Statement v1 and its predicate test-result v0.1; DSSE 1.0.2 (protocol.md,
envelope.md).
"""

import base64
import binascii
import json
from typing import Any, Final

from audit.attestation.evidence import ModelFacts
from audit.report.document import Report
from audit.verdicts import Verdict
from core.digests import canonical_json, sha256_hex
from core.errors import AttestationError, SiteKeyError
from privacy.signing import SiteKey, verify_envelope

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
MAX_ENVELOPE_BYTES: Final = 4 * 1024 * 1024
_RESULTS: Final = {
    Verdict.PASS: "PASSED",
    Verdict.INCONCLUSIVE: "WARNED",
    Verdict.FAIL: "FAILED",
}


def statement_of(report: Report, report_json: bytes, model: ModelFacts) -> dict[str, Any]:
    """What is attested: which tests and gates the model's files passed.

    Args:
        report: The report.
        report_json: Its file, byte for byte.
        model: The model that it is about.
    """
    weights = {"cloisterArraysSha256": report.identity.model_digest}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            *({"name": name, "digest": {"sha256": digest}} for name, digest in model.files.items()),
            {"name": "weights", "digest": weights},
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate_of(report, report_json),
    }


def predicate_of(report: Report, report_json: bytes) -> dict[str, Any]:
    """What a statement says of the tests and gates of a report."""
    tests = {record.result.test: record.result.verdict for record in report.tests}
    passed = {True: Verdict.PASS, False: Verdict.FAIL}
    tests |= {f"gate/{gate.name}": passed[gate.passed] for gate in report.gates}
    named = {
        verdict: sorted(test for test, found in tests.items() if found is verdict)
        for verdict in Verdict
    }
    return {
        "result": _RESULTS[report.conclusion.verdict],
        "configuration": [
            {"name": "report.json", "digest": {"sha256": sha256_hex(report_json)}},
            {"name": "federation", "digest": {"sha256": report.identity.config_digest}},
        ],
        "passedTests": named[Verdict.PASS],
        "warnedTests": named[Verdict.INCONCLUSIVE],
        "failedTests": named[Verdict.FAIL],
    }


def seal_statement(statement: dict[str, Any], key: SiteKey) -> bytes:
    """The signed envelope, as a file."""
    payload = canonical_json(statement)
    return canonical_json(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [
                {
                    "keyid": key.public_hex,
                    "sig": base64.b64encode(key.sign_envelope(PAYLOAD_TYPE, payload)).decode(
                        "ascii"
                    ),
                }
            ],
        }
    )


def open_statement(data: bytes, public_key: str) -> dict[str, Any]:
    """Reads an envelope that ``seal_statement`` made.

    **Guarantees**: Only ``AttestationError`` escapes. What is returned was signed by ``public_key``
    as an in-toto statement, and these are the very bytes that ``seal_statement`` made.

    Raises:
        AttestationError: It is not that.
    """
    try:
        if len(data) > MAX_ENVELOPE_BYTES:
            raise ValueError("too long")
        envelope = json.loads(data)
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        sig = base64.b64decode(signature["sig"], validate=True)
        statement = json.loads(payload)
        expected = {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [
                {"keyid": public_key, "sig": base64.b64encode(sig).decode("ascii")},
            ],
        }
        if canonical_json(expected) != data or not isinstance(statement, dict):
            raise ValueError("another form")
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise AttestationError(
            f"expected a DSSE envelope with one signature by {public_key[:16]}..., got another file"
        ) from error
    try:
        verify_envelope(public_key, PAYLOAD_TYPE, payload, sig)
    except SiteKeyError as error:
        raise AttestationError(error.message, hint="the statement was changed") from error
    types = (statement.get("_type"), statement.get("predicateType"))
    if types != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise AttestationError(f"expected an in-toto test result, got {types!a}")
    return statement
