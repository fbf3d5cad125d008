"""The audit as a model card of the Hugging Face Hub: Markdown under a YAML header.

Source: huggingface.co/docs/hub/model-cards.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from audit.attestation.evidence import ModelFacts
from audit.report.document import Report
from audit.report.words import measure as in_words
from audit.report.words import number
from core.digests import sha256_hex

_PIPELINES: Final = {"classification": "text-classification", "causal-lm": "text-generation"}
# What Markdown or HTML would read as markup, in words that people gave.
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>()#+!|$~&])")


def render_model_card(report: Report, report_json: bytes, model: ModelFacts) -> str:
    """The card.

    **Guarantees**: The same arguments give the same text; no word of the configuration or the
    report can be markup.

    Args:
        report: The report.
        report_json: Its file, byte for byte.
        model: The model that it is about.
    """
    parts = (
        _header(model),
        _what(report, model),
        _uses(report),
        _training(report, model),
        _evaluation(report),
        _risks(report),
        _signed(report, report_json, model),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _header(model: ModelFacts) -> Iterator[str]:
    """YAML; every text is a JSON string, which YAML reads as such."""
    yield "---"
    yield f"model_name: {json.dumps(model.name)}"
    yield f"pipeline_tag: {_PIPELINES[model.task]}"
    yield "tags:"
    for tag in ("federated-learning", "differential-privacy", "cloister"):
        yield f"- {tag}"
    yield "---"


def _what(report: Report, model: ModelFacts) -> Iterator[str]:
    yield f"# {_plain(model.name)}"
    yield ""
    yield f"**Audit: {report.conclusion.verdict.value}.** {_plain(report.conclusion.title)}"
    yield ""
    released = "Released: every gate passed." if report.released else "Not released: a gate failed."
    yield released
    yield ""
    yield "## Model details"
    yield ""
    yield f"- {_plain(model.architecture)}"
    yield f"- Task: {model.task}"
    if model.labels:
        yield f"- Labels: {', '.join(_plain(label) for label in model.labels)}"
    yield f"- Weights: `{report.identity.model_digest}`"


def _uses(report: Report) -> Iterator[str]:
    yield ""
    yield "## Uses"
    yield ""
    yield _plain(report.purpose) if report.purpose else "Not stated by the controller."
    yield ""
    yield "## Limitations"
    yield ""
    for limit in report.conclusion.limits:
        yield f"- {_plain(limit)}"


def _training(report: Report, model: ModelFacts) -> Iterator[str]:
    privacy = report.privacy
    yield ""
    yield "## Training"
    yield ""
    sites = len(report.identity.sites)
    yield f"Federated over {sites} sites in {model.num_rounds} rounds; no site's text was pooled."
    yield ""
    if privacy.mode == "none":
        yield "**Without differential privacy.**"
        return
    yield (
        f"Differential privacy ({privacy.mode}; unit: {_plain(privacy.unit)}; "
        f"neighbouring: {_plain(privacy.neighbouring)}). {_plain(privacy.odds)}"
    )
    yield ""
    yield "| Site | epsilon, whole life | delta |"
    yield "|---|---|---|"
    for site in privacy.sites:
        epsilon = "unbounded" if site.epsilon is None else number(site.epsilon)
        yield f"| {site.site} | {epsilon} | {number(site.delta)} |"


def _evaluation(report: Report) -> Iterator[str]:
    yield ""
    yield "## Audit"
    yield ""
    yield "| Test | Verdict | Finding |"
    yield "|---|---|---|"
    for test in report.tests:
        result = test.result
        figures = "; ".join(
            f"{_plain(item.label)} {_plain(in_words(item))}" for item in result.measures[:1]
        )
        finding = _plain(result.headline) + (f" ({figures})" if figures else "")
        yield f"| {_plain(result.test)} {_plain(test.title)} | {result.verdict.value} | {finding} |"


def _risks(report: Report) -> Iterator[str]:
    yield ""
    yield "## Risks"
    yield ""
    for risk in report.risks:
        yield f"- **{risk.severity}**: {_plain(risk.risk)} {_plain(risk.safeguard)}"


def _signed(report: Report, report_json: bytes, model: ModelFacts) -> Iterator[str]:
    yield ""
    yield "## Evidence"
    yield ""
    yield f"- Report: `report.json`, SHA-256 `{sha256_hex(report_json)}`"
    yield f"- Auditor: {_plain(report.auditor.name)}, {_plain(report.auditor.role)}"
    yield f"- Issued: {report.issued}"
    for name, digest in model.files.items():
        yield f"- `{_plain(name)}`: SHA-256 `{digest}`"


def _plain(text: str) -> str:
    """On one line, without markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
