"""The report as one page that needs neither network nor script."""

import re
from itertools import groupby
from typing import Any, Final

import jinja2

from audit.report import words
from audit.report.document import UNSIGNED, Report, TestRecord
from audit.report.figures import draw
from audit.report.sparks import spark
from audit.verdicts import Table, Verdict

_KINDS: Final = {Verdict.FAIL: "fail", Verdict.INCONCLUSIVE: "open", Verdict.PASS: "pass"}
_ORIGINS: Final = {
    "ledger": "the site's ledger, computed anew",
    "reply": "the site's last reply",
    "none": "nothing",
}


def render_html(report: Report) -> str:
    """Draws the page.

    **Guarantees**: The same report gives the same page. It runs nothing and fetches nothing, and
    every word that came from elsewhere stays a word.
    """
    # Not cached: a page is written once an audit.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("audit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        cell=words.cell,
        draw=draw,
        full=words.full,
        interval=words.interval,
        kind=lambda verdict: _KINDS[Verdict(verdict)],
        number=words.number,
        numeric=_numeric,
        percent=words.percent,
        power=words.power,
        slug=_slug,
        spark=spark,
    )
    return environment.get_template("report.html.j2").render(**_context(report))


def _context(report: Report) -> dict[str, Any]:
    claims = [site.epsilon for site in report.privacy.sites if site.epsilon is not None]
    covered = report.privacy.private and claims
    return {
        "report": report,
        "verdicts": words.VERDICT_ORDER,
        "counts": {
            verdict: sum(test.result.verdict is verdict for test in report.tests)
            for verdict in Verdict
        },
        "gates_passed": sum(gate.passed for gate in report.gates),
        "epsilon": words.at_most(max(claims)) if covered else "none",
        "tiers": _tiers(report.tests),
        "origins": _ORIGINS,
        "signed": report.signature != UNSIGNED,
    }


def _tiers(
    tests: tuple[TestRecord, ...],
) -> list[tuple[str, str, list[tuple[str, list[TestRecord]]]]]:
    """The tests by tier and by threat model; of each, what holds the worst first."""
    found: list[tuple[str, str, list[tuple[str, list[TestRecord]]]]] = []
    for tier, title in words.TIERS.items():
        own = [test for test in tests if test.tier == tier]
        threats = list(dict.fromkeys(test.threat_model for test in own))
        own.sort(key=lambda test: threats.index(test.threat_model))
        groups = [
            (threat, list(of_it)) for threat, of_it in groupby(own, key=lambda t: t.threat_model)
        ]
        if groups:
            found.append((tier, title, groups))
    return found


def _numeric(table: Table, column: int) -> bool:
    if column == 0:  # names the row
        return False
    values = [row[column] for row in table.rows if column < len(row)]
    numbers = [value for value in values if isinstance(value, int | float)]
    return bool(numbers) and not any(isinstance(value, str) for value in values)


def _slug(test: str) -> str:
    """An id that a page and a picture can have."""
    return re.sub(r"[^A-Za-z0-9]+", "-", test)
