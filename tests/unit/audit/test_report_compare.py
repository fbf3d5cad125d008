"""What changed between two reports is named, and what did not is not."""

import pytest

from audit.report.compare import compare
from audit.report.document import Report, report_bytes
from audit.verdicts import Interval, Verdict
from core.digests import sha256_hex
from privacy.signing import SiteKey
from tests.support.reports import rich_report


@pytest.fixture(scope="module")
def before() -> Report:
    return rich_report(SiteKey.generate())


def changed(report: Report, test: str, **fields: object) -> Report:
    """The report with another result of one test."""
    tests = tuple(
        item
        if item.result.test != test
        else item.model_copy(update={"result": item.result.model_copy(update=fields)})
        for item in report.tests
    )
    return report.model_copy(update={"tests": tests})


def test_equal_reports_have_no_changes(before: Report) -> None:
    found = compare(before, before)
    assert (found.verdicts, found.measures, found.others) == ((), (), ())
    assert found.previous_digest == sha256_hex(report_bytes(before))
    assert (found.previous_run, found.previous_issued) == (before.identity.run_id, before.issued)


def test_a_changed_verdict_is_named(before: Report) -> None:
    (found,) = compare(before, changed(before, "F5", verdict=Verdict.PASS)).verdicts
    assert (found.test, found.before, found.after) == ("F5", Verdict.FAIL, Verdict.PASS)


def test_a_changed_measure_is_named_and_whether_the_intervals_meet(before: Report) -> None:
    (near,) = compare(before, rich_report(SiteKey.generate(), auc=0.53)).measures
    assert (near.test, near.measure, near.before, near.after) == (
        "M1",
        "membership-auc",
        0.523,
        0.53,
    )
    assert not near.apart
    old = next(test.result for test in before.tests if test.result.test == "M1").measures
    apart = old[0].model_copy(
        update={
            "value": 0.9,
            "interval": Interval(low=0.85, high=0.93, confidence=0.95, method="DeLong"),
        }
    )
    after = changed(before, "M1", measures=(apart, *old[1:]))
    assert [item.apart for item in compare(before, after).measures] == [True]
    assert [item.apart for item in compare(after, before).measures] == [True]


def test_a_test_that_came_or_went_is_named_with_its_measures(before: Report) -> None:
    fewer = before.model_copy(update={"tests": before.tests[1:]})
    gone = compare(before, fewer)
    (verdict,) = gone.verdicts
    assert (verdict.test, verdict.before, verdict.after) == ("F5", Verdict.FAIL, None)
    (measure,) = gone.measures
    assert (measure.before, measure.after) == (0.2504, None)
    (came,) = compare(fewer, before).verdicts
    assert (came.before, came.after) == (None, Verdict.FAIL)


def test_measures_of_one_name_are_told_apart(before: Report) -> None:
    measures = next(test.result for test in before.tests if test.result.test == "M1").measures
    twice = changed(before, "M1", measures=(measures[0], measures[0], *measures[1:]))
    (found,) = compare(before, twice).measures
    assert (found.measure, found.before, found.after) == ("membership-auc/2", None, 0.523)


def test_gates_epsilon_and_digests_are_compared(before: Report) -> None:
    gates = tuple(gate.model_copy(update={"passed": True}) for gate in before.gates)
    sites = tuple(
        site.model_copy(update={"private": False, "epsilon": None})
        for site in before.privacy.sites[:1]
    )
    after = before.model_copy(
        update={
            "gates": gates,
            "privacy": before.privacy.model_copy(
                update={"sites": (*sites, *before.privacy.sites[1:])}
            ),
            "identity": before.identity.model_copy(update={"model_digest": "a" * 64}),
        }
    )
    found = {item.what: (item.before, item.after) for item in compare(before, after).others}
    assert found == {
        "model": ("3" * 64, "a" * 64),
        "gate max_gap": ("not passed", "passed"),
        "epsilon of lakeside": ("8.00", "no bound"),
    }


def test_the_report_after_another_says_what_changed() -> None:
    key = SiteKey.generate()
    report = rich_report(key, previous=rich_report(key, auc=0.61))
    assert report.changes is not None
    assert [item.measure for item in report.changes.measures] == ["membership-auc"]
    assert report.changes.others == ()
