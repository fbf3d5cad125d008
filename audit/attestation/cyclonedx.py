"""The audit as a model card of CycloneDX, for inventories of software and models.

Source: CycloneDX 1.7, bom-1.7.schema.json, ``modelCard``.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any, Final

from audit.attestation.evidence import ModelFacts
from audit.report.document import Report, TestRecord
from core.digests import sha256_hex

SPEC_VERSION: Final = "1.7"
# Serial numbers of equal reports are equal.
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:cloister:audit-report")
_APPROACHES: Final = {"classification": "supervised", "causal-lm": "self-supervised"}


def render_cyclonedx(report: Report, report_json: bytes, model: ModelFacts) -> bytes:
    """The bill of materials, as a file.

    **Guarantees**: The same arguments give the same bytes; nothing is said that the report does
    not say.

    Args:
        report: The report.
        report_json: Its file, byte for byte.
        model: The model that it is about.
    """
    digest = sha256_hex(report_json)
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": report.issued,
            "tools": {
                "components": [
                    {"type": "application", "name": "cloister", "version": report.tool_version}
                ]
            },
            "authors": [{"name": report.auditor.name}],
            "component": _component(report, digest, model),
        },
    }
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def _component(report: Report, digest: str, model: ModelFacts) -> dict[str, Any]:
    files = [
        {
            "type": "file",
            "bom-ref": f"file/{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": sha256}],
        }
        for name, sha256 in model.files.items()
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": model.name,
        "version": report.identity.run_id,
        "description": report.conclusion.title,
        "components": files,
        "externalReferences": [
            {
                "type": "evidence",
                "url": "report.json",
                "comment": "The audit's report, signed",
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        ],
        "properties": [
            {"name": f"cloister:{name}", "value": value} for name, value in _properties(report)
        ],
        "modelCard": _card(report, model),
    }


def _card(report: Report, model: ModelFacts) -> dict[str, Any]:
    return {
        "modelParameters": {
            "approach": {"type": _APPROACHES[model.task]},
            "task": model.task,
            "architectureFamily": "Transformer",
            "modelArchitecture": model.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "class" if model.labels else "text"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [metric for test in report.tests for metric in _metrics(test)]
        },
        "considerations": {
            "useCases": [report.purpose] if report.purpose else [],
            "technicalLimitations": list(report.conclusion.limits),
            "performanceTradeoffs": [report.privacy.odds],
            "ethicalConsiderations": [
                {"name": risk.risk, "mitigationStrategy": risk.safeguard} for risk in report.risks
            ],
            "fairnessAssessments": [
                {"groupAtRisk": test.title, "harms": test.result.headline}
                for test in report.tests
                if test.tier == "bias"
            ],
        },
    }


def _metrics(test: TestRecord) -> Iterator[dict[str, Any]]:
    for measure in test.result.measures:
        if measure.value is None:
            continue
        metric: dict[str, Any] = {
            "type": measure.name,
            "value": repr(measure.value),
            "slice": f"{test.result.test}: {test.title}",
        }
        if measure.interval is not None:
            metric["confidenceInterval"] = {
                "lowerBound": repr(measure.interval.low),
                "upperBound": repr(measure.interval.high),
            }
        yield metric


def _properties(report: Report) -> Iterator[tuple[str, str]]:
    yield "run-id", report.identity.run_id
    yield "weights-digest", report.identity.model_digest
    yield "verdict", report.conclusion.verdict.value
    yield "released", "true" if report.released else "false"
    yield "privacy/mode", report.privacy.mode
    yield "privacy/unit", report.privacy.unit
    yield "privacy/neighbouring", report.privacy.neighbouring
    for site in report.privacy.sites:
        yield f"privacy/{site.site}/epsilon", repr(site.epsilon) if site.epsilon else "unbounded"
        yield f"privacy/{site.site}/delta", repr(site.delta)
