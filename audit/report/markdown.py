"""The report on one page of Markdown: what a pull request or a model's page can show."""

import re
from collections.abc import Iterator
from typing import Final

from audit.report import words
from audit.report.document import UNSIGNED, Report
from audit.verdicts import Verdict

MAX_LINES: Final = 60
_MAX_FINDINGS: Final = 14
_MAX_SITES: Final = 8
_MAX_CELL: Final = 220
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")


def render_markdown(report: Report) -> str:
    """Writes the page.

    **Guarantees**: At most ``MAX_LINES`` lines, whatever the report holds; what was left out is
    counted. Words from elsewhere cannot become markup.
    """
    lines = [
        *_head(report),
        *_gates(report),
        *_privacy(report),
        *_findings(report),
        *_foot(report),
    ]
    return "\n".join(lines) + "\n"


def _head(report: Report) -> Iterator[str]:
    identity = report.identity
    yield f"# Audit of {_plain(identity.federation)}, run {identity.run_id}"
    yield ""
    yield f"**{report.conclusion.verdict}: {_plain(report.conclusion.title)}.**"
    yield ""
    yield _plain(report.privacy.odds, 600)
    yield ""


def _gates(report: Report) -> Iterator[str]:
    if not report.gates:
        yield "The federation agreed on no gates."
    else:
        yield "| Gate | | Measured | Allowed |"
        yield "|---|---|---|---|"
    for gate in report.gates:
        verdict = "passed" if gate.passed else "**NOT PASSED**"
        measured = "undecided" if gate.measured is None else words.number(gate.measured)
        limit = "" if gate.limit is None else words.number(gate.limit)
        yield f"| {_plain(gate.label)} | {verdict} | {measured} | {limit} |"
    yield ""


def _privacy(report: Report) -> Iterator[str]:
    yield "| Site | Epsilon | Delta | Best guess of 100 |"
    yield "|---|---|---|---|"
    sites = sorted(report.privacy.sites, key=lambda site: (-site.best_guess, site.site))
    for site in sites[:_MAX_SITES]:
        epsilon = "no bound" if site.epsilon is None else words.number(site.epsilon)
        guess = words.percent(site.best_guess)
        yield f"| {_plain(site.site)} | {epsilon} | {words.number(site.delta)} | {guess} |"
    if len(sites) > _MAX_SITES:
        yield f"| and {len(sites) - _MAX_SITES} more | | | |"
    yield ""


def _findings(report: Report) -> Iterator[str]:
    yield "| Test | Verdict | Finding |"
    yield "|---|---|---|"
    for test in report.tests[:_MAX_FINDINGS]:
        result = test.result
        verdict = f"**{result.verdict}**" if result.verdict is Verdict.FAIL else result.verdict
        yield f"| {_plain(result.test)} | {verdict} | {_plain(result.headline)} |"
    rest = report.tests[_MAX_FINDINGS:]
    if rest:
        kinds = ", ".join(
            f"{count} {verdict}"
            for verdict in words.VERDICT_ORDER
            if (count := sum(test.result.verdict is verdict for test in rest))
        )
        yield f"| and {len(rest)} more | | {kinds} |"
    if report.not_run:
        yield f"| not run | | {len(report.not_run)} tests; the report says why |"
    yield ""


def _foot(report: Report) -> Iterator[str]:
    identity = report.identity
    yield "PASS does not mean that there is no leak: it means that one of the size that the test "
    yield "names would probably have been found. INCONCLUSIVE is not good news."
    yield ""
    yield f"- Purpose: {_plain(report.purpose) or '(empty)'}"
    yield f"- Legal basis: {_plain(report.legal_basis) or '(empty)'}"
    yield f"- Model `{identity.model_digest}`"
    yield f"- Configuration `{identity.config_digest}`, task `{identity.task_digest}`"
    yield (
        f"- Issued {report.issued} by {_plain(report.auditor.name)}, "
        f"{_plain(report.auditor.role)}; Cloister {_plain(report.tool_version)}, "
        f"suite {report.reproduction.suite}"
    )
    signed = "not signed" if report.signature == UNSIGNED else f"signature `{report.signature}`"
    yield f"- Key `{report.auditor.public_key}`, {signed}"


def _plain(text: str, longest: int = _MAX_CELL) -> str:
    """On one line, without markup."""
    text = " ".join(text.split())
    if len(text) > longest:
        text = text[: longest - 4] + " ..."
    return _SPECIAL.sub(r"\\\1", text)
