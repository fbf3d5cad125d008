"""The report's JSON: one form, under a schema, and no number of it can be changed."""

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.attestation.auditor import check_signer
from audit.report.document import (
    Report,
    parse_report,
    report_bytes,
    report_schema,
    sign_report,
    verify_report,
)
from core.errors import AttestationError
from privacy.signing import SiteKey
from tests.golden.regenerate import FOLDER
from tests.support.reports import auditor_of, rich_report


@pytest.fixture(scope="module")
def key() -> SiteKey:
    return SiteKey.generate()


@pytest.fixture(scope="module")
def report(key: SiteKey) -> Report:
    return rich_report(key)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where numbers stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        if isinstance(item, dict | list):
            yield from leaves(item, (*path, name))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield (*path, name)


def rewritten(document: Any) -> bytes:
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True)
    return text.encode("ascii") + b"\n"


def test_what_was_written_is_read_again(report: Report) -> None:
    assert parse_report(report_bytes(report)) == report


def test_the_auditor_s_signature_holds(report: Report, key: SiteKey) -> None:
    verify_report(parse_report(report_bytes(report)))
    check_signer(report.auditor, {key.public_hex}, datetime(2026, 6, 1, tzinfo=UTC))


def test_one_changed_number_breaks_the_signature(report: Report) -> None:
    original = json.loads(report_bytes(report))
    # Of long lists the first ones: their items are all alike.
    places = [p for p in leaves(original) if not any(isinstance(n, int) and n > 2 for n in p)]
    assert len(places) > 100
    for path in places:
        document = copy.deepcopy(original)
        *way, last = path
        inner = document
        for step in way:
            inner = inner[step]
        inner[last] += 1 if isinstance(inner[last], int) else 1e-9 * max(1.0, abs(inner[last]))
        with pytest.raises(AttestationError):
            verify_report(parse_report(rewritten(document)))


def test_a_changed_verdict_breaks_the_signature(report: Report) -> None:
    forged = report_bytes(report).replace(b'"verdict": "FAIL"', b'"verdict": "PASS"', 1)
    assert forged != report_bytes(report)
    with pytest.raises(AttestationError, match="changed or not signed"):
        verify_report(parse_report(forged))


def test_a_report_without_a_signature_is_refused(report: Report) -> None:
    with pytest.raises(AttestationError, match="not signed"):
        verify_report(report.model_copy(update={"signature": "0" * 128}))


def test_another_key_than_the_auditor_s_does_not_sign(report: Report) -> None:
    with pytest.raises(AttestationError, match="that the report names"):
        sign_report(report, SiteKey.generate())


def test_a_key_does_not_sign_outside_its_time(report: Report, key: SiteKey) -> None:
    late = report.model_copy(update={"issued": "2029-01-01T00:00:00Z"})
    with pytest.raises(AttestationError, match="got one of 2029"):
        sign_report(late, key)


def test_who_signs_another_name_signs_another_report(report: Report, key: SiteKey) -> None:
    renamed = report.model_copy(update={"auditor": auditor_of(key, name="Eve")})
    with pytest.raises(AttestationError):
        verify_report(renamed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data.replace(b"\n", b"\r\n", 1),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"{}",
        lambda data: data.replace(b'"schema-version": 1', b'"schema-version": 2'),
        lambda data: data.replace(b'"issued"', b'"Issued"'),
        lambda data: data.replace(b"0.523", b"NaN", 1),
        lambda data: data.replace(b"0.523", b"5.23e-1", 1),
    ],
)
def test_another_form_is_refused_by_name(report: Report, damage: Any) -> None:
    damaged = damage(report_bytes(report))
    assert damaged != report_bytes(report)
    with pytest.raises(AttestationError):
        parse_report(damaged)


@given(st.binary(max_size=200))
def test_junk_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(AttestationError):
        parse_report(data)


def test_the_file_keeps_its_schema(report: Report) -> None:
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(report_bytes(report))
    jsonschema.validate(document, schema)
    for break_it in (
        lambda d: d.pop("gates"),
        lambda d: d.update({"unknown-field": 1}),
        lambda d: d["conclusion"].update({"verdict": "FINE"}),
        lambda d: d["tests"][0]["result"].update({"p-value": 1.5}),
    ):
        broken = json.loads(report_bytes(report))
        break_it(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_the_schema_is_the_one_that_was_published() -> None:
    published = json.loads((FOLDER / "audit" / "report-1.schema.json").read_bytes())
    assert report_schema() == published, "raise the schema version, or restore the schema"
