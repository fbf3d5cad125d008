import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit.attestation.cyclonedx import render_cyclonedx
from audit.attestation.evidence import ModelFacts
from audit.attestation.model_card import render_model_card
from audit.report.document import Report, report_bytes
from audit.report.words import number
from core.digests import sha256_hex
from privacy.signing import SiteKey
from tests.support.reports import EVIL, rich_report

KEY = SiteKey.generate()
REPORT = rich_report(KEY)
JSON = report_bytes(REPORT)
MODEL = ModelFacts(
    name="clinic",
    task="classification",
    labels=("calm", EVIL),
    architecture="Transformer, 1 layers of width 16 with 2 heads",
    num_rounds=12,
    files={"model.safetensors": "a" * 64},
)


def bom(report: Report = REPORT, model: ModelFacts = MODEL) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(render_cyclonedx(report, JSON, model))
    return document


def test_the_bill_of_materials_has_the_report_s_figures() -> None:
    component = bom()["metadata"]["component"]
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    found = {metric["type"]: metric for metric in metrics}
    assert found["membership-auc"]["value"] == "0.523"
    assert found["membership-auc"]["confidenceInterval"] == {
        "lowerBound": "0.4812",
        "upperBound": "0.5648",
    }
    assert "tpr-at-fpr-0-1" not in found  # not measured, and so not stated
    (evidence,) = component["externalReferences"]
    assert evidence["hashes"] == [{"alg": "SHA-256", "content": sha256_hex(JSON)}]
    values = {item["name"]: item["value"] for item in component["properties"]}
    assert values["cloister:released"] == "false"
    assert values["cloister:privacy/mercy/epsilon"] == "8.4021"


def test_its_serial_number_is_the_report_s() -> None:
    assert bom() == bom()
    other = json.loads(render_cyclonedx(REPORT, JSON + b" ", MODEL))
    assert other["serialNumber"] != bom()["serialNumber"]


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_the_bill_of_materials_is_valid_by_the_published_schema(task: str) -> None:
    reason = "cyclonedx-python-lib, which has the published schema, is not installed"
    pytest.importorskip("jsonschema", reason=reason)
    validation = pytest.importorskip("cyclonedx.validation.json", reason=reason)
    from cyclonedx.schema import SchemaVersion  # type: ignore[import-not-found,unused-ignore]

    labels = MODEL.labels if task == "classification" else ()
    document = bom(model=replace(MODEL, task=task, labels=labels))
    strict = validation.JsonStrictValidator(SchemaVersion.V1_7)
    assert strict.validate_str(json.dumps(document)) is None
    del document["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"]
    document["metadata"]["component"]["modelCard"]["more"] = 1
    assert strict.validate_str(json.dumps(document)) is not None


def card(report: Report = REPORT, model: ModelFacts = MODEL) -> tuple[dict[str, Any], str]:
    text = render_model_card(report, JSON, model)
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_model_card_has_a_header_that_the_hub_reads() -> None:
    header, _ = card(model=replace(MODEL, name="a: b # 'c'"))
    assert header["model_name"] == "a: b # 'c'"
    assert header["pipeline_tag"] == "text-classification"
    assert header["tags"] == ["federated-learning", "differential-privacy", "cloister"]


def test_the_model_card_says_what_the_report_says() -> None:
    _, body = card()
    assert "**Audit: FAIL.**" in body
    assert "Not released: a gate failed." in body
    assert f"| mercy | {number(8.4021)} | 1e-5 |" in body
    assert f"SHA-256 `{sha256_hex(JSON)}`" in body
    for test in REPORT.tests:
        assert f"| {test.result.verdict.value} |" in body


def test_a_model_without_privacy_is_called_that() -> None:
    privacy = REPORT.privacy.model_copy(update={"mode": "none"})
    _, body = card(REPORT.model_copy(update={"privacy": privacy}))
    assert "**Without differential privacy.**" in body
    assert "epsilon, whole life" not in body


def test_no_word_of_others_is_markup() -> None:
    _, body = card()
    assert "alert" in body  # the planted words are there
    assert re.search(r"(?<!\\)[<>$]", body) is None
    assert "\\`code\\`" in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {4}


def test_the_facts_are_the_configuration_s(tmp_path: Path) -> None:
    from tests.support.reports import federation

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    facts = ModelFacts.of(federation(), tmp_path)
    assert facts == ModelFacts(
        name="clinic",
        task="classification",
        labels=("calm", "storm"),
        architecture="Transformer, 1 layers of width 16 with 2 heads",
        num_rounds=12,
        files={"model.safetensors": sha256_hex(b"weights")},
    )
