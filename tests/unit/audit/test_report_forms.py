"""HTML, Markdown and JUnit say what the JSON says, and nothing in them is anybody's markup."""

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from audit.report.document import Report, report_bytes
from audit.report.html import render_html
from audit.report.junit import render_junit
from audit.report.markdown import MAX_LINES, render_markdown
from audit.report.writing import report_files
from privacy.signing import SiteKey
from tests.support.reports import EVIL, rich_report


@pytest.fixture(scope="module")
def report() -> Report:
    key = SiteKey.generate()
    return rich_report(key, previous=rich_report(key, auc=0.61))


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


class Reader(HTMLParser):
    """Reads the numbers and verdicts back out of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tests: dict[str, dict[str, Any]] = {}
        self.gates: dict[str, bool] = {}
        self.conclusion = ""
        self.tags: dict[str, int] = {}
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._test: dict[str, Any] | None = None
        self._measure: dict[str, Any] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes.extend(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value is not None]
        if "data-test" in given:
            self._test = {"verdict": given["data-verdict"], "measures": [], "numbers": []}
            self.tests[str(given["data-test"])] = self._test
        if "data-gate" in given:
            self.gates[str(given["data-gate"])] = given["data-passed"] == "true"
        if "data-conclusion" in given:
            self.conclusion = str(given["data-conclusion"])
        if self._test is not None and "data-measure" in given:
            self._measure = {"name": given["data-measure"], "value": None, "limit": None}
            self._test["measures"].append(self._measure)
        if self._test is not None and tag == "data":
            value = json.loads(str(given["value"]))
            if self._measure is None:
                self._test["numbers"].append(value)
            else:
                self._measure["limit" if given.get("class") == "limit" else "value"] = value

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self._measure = None
        if tag == "article":
            self._test = None


def expected(report: Report) -> dict[str, dict[str, Any]]:
    """The same, from the JSON."""
    found = {}
    for test in json.loads(report_bytes(report))["tests"]:
        result = test["result"]
        cells = [cell for table in result["tables"] for row in table["rows"] for cell in row[1:]]
        p_value = [] if result["p-value"] is None else [result["p-value"]]
        found[result["test"]] = {
            "verdict": result["verdict"],
            "measures": [
                {name: item[name] for name in ("name", "value", "limit")}
                for item in result["measures"]
            ],
            "numbers": [cell for cell in cells if isinstance(cell, int | float)] + p_value,
        }
    return found


def test_the_page_shows_every_number_and_verdict_of_the_json(report: Report, page: str) -> None:
    read = Reader(page)
    assert read.tests == expected(report)
    assert read.gates == {gate.name: gate.passed for gate in report.gates}
    assert read.conclusion == report.conclusion.verdict


def test_a_page_of_another_number_is_not_this_report_s(report: Report) -> None:
    other = rich_report(SiteKey.generate(), auc=0.5230001)
    assert Reader(render_html(other)).tests != expected(report)


def test_intervals_headlines_and_notes_stand_on_the_page(report: Report, page: str) -> None:
    from markupsafe import escape

    for test in report.tests:
        words = [test.result.headline, *test.result.notes, *test.assumes, test.threat_model]
        assert all(str(escape(word)) in page for word in words)
    assert "0.481 to 0.565 (95 %, DeLong)" in page


def test_words_from_elsewhere_stay_words(report: Report, page: str) -> None:
    read = Reader(page)
    assert not {"script", "img", "iframe", "link", "object", "form", "audio", "video"} & set(
        read.tags
    )
    assert not [name for name, _ in read.attributes if name.startswith("on") or name == "src"]
    assert "<script>alert(1)</script>" not in page
    targets = [value or "" for name, value in read.attributes if name in ("href", "xlink:href")]
    assert targets
    assert all(value.startswith("#") for value in targets)
    assert "\\<script\\>" in render_markdown(report)


def test_ids_are_unique_and_every_link_within_the_page_leads_somewhere(page: str) -> None:
    read = Reader(page)
    assert len(set(read.ids)) == len(read.ids)
    targets = {value for name, value in read.attributes if name == "href"}
    assert {str(value)[1:] for value in targets} <= set(read.ids)


def test_every_table_has_a_caption_and_every_figure_words(page: str) -> None:
    read = Reader(page)
    assert read.tags["table"] == read.tags["caption"] > 8
    assert read.tags["figure"] == read.tags["figcaption"] == read.tags["desc"] == 5
    assert read.tags["h1"] == 1


def test_what_nobody_filled_in_is_visibly_empty(report: Report, page: str) -> None:
    assert "the controller has not stated a legal basis" in page
    assert "the controller has not stated a purpose" not in page
    assert "Legal basis: (empty)" in render_markdown(report)


def test_suppressed_cells_are_marked(page: str) -> None:
    assert page.count('<span class="suppressed">suppressed</span>') == 8 + 3


def test_equal_reports_are_equal_bytes_in_every_form() -> None:
    key = SiteKey.generate()
    assert report_files(rich_report(key)) == report_files(rich_report(key))


def test_markdown_stays_on_one_page(report: Report) -> None:
    many = report.model_copy(
        update={
            "tests": report.tests * 20,
            "privacy": report.privacy.model_copy(update={"sites": report.privacy.sites * 50}),
        }
    )
    for item in (report, many):
        assert len(render_markdown(item).splitlines()) <= MAX_LINES
    assert "and 106 more" in render_markdown(many)
    assert "and 142 more" in render_markdown(many)


def test_markdown_names_the_worst_first(report: Report) -> None:
    text = render_markdown(report)
    assert text.index("| F5 |") < text.index("| M1 |") < text.index("| C2 |")
    for gate in report.gates:
        assert re.search(rf"\| {re.escape(gate.label)} \| ", text)


def test_junit_counts_failures_and_never_a_success_without_a_verdict(report: Report) -> None:
    root = ElementTree.fromstring(render_junit(report))  # noqa: S314  # our own
    failed = {
        case.get("name", "").split()[0]
        for case in root.iter("testcase")
        if case.find("failure") is not None
    }
    skipped = {
        case.get("name", "").split()[0]
        for case in root.iter("testcase")
        if case.find("skipped") is not None
    }
    assert failed == {"F5", "B1", "max_gap"}
    assert skipped == {"M1", "B4", "M4", "M9"}
    assert (root.get("failures"), root.get("skipped"), root.get("tests")) == ("3", "4", "12")
    assert all("time" not in element.attrib for element in root.iter())


def test_junit_has_no_character_that_xml_has_not(report: Report) -> None:
    test = report.tests[0]
    broken = test.model_copy(
        update={"result": test.result.model_copy(update={"headline": "a\x00b\x1b" + EVIL})}
    )
    root = ElementTree.fromstring(  # noqa: S314  # our own
        render_junit(report.model_copy(update={"tests": (broken,)}))
    )
    assert next(f.get("message") for f in root.iter("failure")) == "a?b?" + EVIL
