"""The report for a build server: JUnit's XML, without times."""

import re
from collections.abc import Iterable
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from audit.report.document import Omission, Report, TestRecord
from audit.report.words import TIERS
from audit.verdicts import Verdict

# What XML 1.0 has no form for.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: Report) -> bytes:
    """Writes the file.

    FAIL and a gate that did not pass are failures; INCONCLUSIVE and what did not run are skipped,
    with the reason: neither is a success.
    """
    root = Element("testsuites", name=f"cloister audit {report.identity.run_id}")
    for tier in TIERS:
        own = [test for test in report.tests if test.tier == tier]
        if own:
            _suite(root, f"audit.{tier}", [_case(f"audit.{tier}", test) for test in own])
    if report.not_run:
        _suite(root, "audit.not-run", [_omitted(item) for item in report.not_run])
    if report.gates:
        cases = []
        for gate in report.gates:
            case = Element("testcase", classname="audit.gates", name=gate.name)
            if not gate.passed:
                _say(case, "failure", gate.reason, gate.label)
            cases.append(case)
        _suite(root, "audit.gates", cases)
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    indent(root)
    content: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _suite(root: Element, name: str, cases: Iterable[Element]) -> None:
    suite = SubElement(root, "testsuite", name=name)
    suite.extend(cases)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in suite)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in suite)))
    suite.set("errors", "0")


def _case(classname: str, test: TestRecord) -> Element:
    result = test.result
    case = Element("testcase", classname=classname, name=_xml(f"{result.test} {test.title}"))
    if result.verdict is Verdict.FAIL:
        _say(case, "failure", result.headline, test.threat_model)
    elif result.verdict is Verdict.INCONCLUSIVE:
        _say(case, "skipped", f"INCONCLUSIVE: {result.headline}", "")
    return case


def _omitted(item: Omission) -> Element:
    case = Element("testcase", classname="audit.not-run", name=_xml(f"{item.test} {item.title}"))
    _say(case, "skipped", item.reason, "")
    return case


def _say(case: Element, kind: str, message: str, text: str) -> None:
    child = SubElement(case, kind, message=_xml(message))
    if text:
        child.text = _xml(text)


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)
