"""From a run and its results to a report: identity, promise, risks and the first page."""

import hashlib
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from audit.report.build import assemble_report, build_report
from audit.report.document import Report, sign_report, verify_report
from audit.report.privacy_statement import best_guess
from audit.report.risks import risks_of
from audit.report.words import at_least, at_most, number, percent
from audit.subject import Subject, open_subject
from audit.suite import SuiteOutcome
from audit.verdicts import NotRun, TestResult, Verdict
from core.errors import AuditError
from privacy.accounting import epsilon_report
from privacy.events import event_from_json
from privacy.signing import SiteKey
from tests.support.audited import simulated_run
from tests.support.federation import FEDERATION
from tests.support.reports import CARDS, ISSUED, auditor_of, federation, rich_outcome, rich_report

KEY = SiteKey.generate()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_run(tmp_path_factory.mktemp("audited"))


@pytest.fixture(scope="module")
def subject(run: Path) -> Subject:
    return open_subject(run)


def built(subject: Subject, outcome: SuiteOutcome | None = None) -> Report:
    outcome = rich_outcome() if outcome is None else outcome
    return build_report(subject, outcome, auditor_of(KEY), issued=ISSUED, cards=CARDS)


def outcome_of(*results: TestResult) -> SuiteOutcome:
    return SuiteOutcome("quick", results, ())


def test_the_same_arguments_give_the_same_report(run: Path, subject: Subject) -> None:
    assert built(subject) == built(open_subject(run))


def test_the_identity_is_the_run_s(subject: Subject) -> None:
    report = built(subject)
    identity, header = report.identity, subject.record.header
    assert identity.run_id == header["run_id"]
    assert identity.task_digest == header["task_digest"]
    assert identity.config_digest == header["config_digest"]
    assert identity.model_digest == subject.record.rounds[-1]["weights_digest"]
    assert identity.audit_commitment == header["audit_commitment"]
    seed = hashlib.sha256(b"cloister/audit-seed/1\0" + bytes.fromhex(identity.audit_seed))
    assert seed.hexdigest() == identity.audit_commitment
    assert {site.site for site in identity.sites} == {"north", "south", "west"}
    for site in identity.sites:
        ledger = subject.sites[site.site].ledger
        assert ledger is not None
        assert site.ledger_head == ledger[-1].head
        assert site.records_at_hand


def test_no_digest_of_private_records_and_no_text_of_them_is_in_it(subject: Subject) -> None:
    text = built(subject).model_dump_json()
    for site in subject.sites.values():
        assert site.split is not None
        for index in range(len(site.split.members)):
            assert site.split.members[index].text not in text


def test_epsilon_is_computed_anew_from_the_whole_ledger(subject: Subject) -> None:
    report = built(subject)
    delta = subject.config.privacy.target_delta
    for site in report.privacy.sites:
        ledger = subject.sites[site.site].ledger
        assert ledger is not None
        debits = [entry for entry in ledger if entry.kind == "reserve"]
        events = [event_from_json(entry.body["event"]) for entry in debits]
        assert site.epsilon == epsilon_report(events, delta).epsilon
        (spending,) = site.spending
        assert spending.releases == len(debits) == 3
        assert spending.steps == 6
        assert spending.noise_multiplier == 1.0
        assert site.origin == "ledger"
    assert report.privacy.private
    assert report.privacy.mode == "local"


def test_without_its_ledger_a_site_is_believed_its_last_reply(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copied / "sites" / "north")
    report = built(open_subject(copied))
    north, south, _ = report.privacy.sites
    assert north.origin == "reply"
    assert north.spending == ()
    assert north.epsilon == pytest.approx(south.epsilon, rel=1e-6)
    assert report.identity.sites[0].ledger_head is not None


def test_a_run_without_privacy_promises_nothing_and_is_not_released(
    tmp_path: Path,
) -> None:
    subject = open_subject(
        simulated_run(
            tmp_path,
            federation=FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"'),
            overrides={"simulation.allow_non_private": "true", "train.max_update_norm": "1.0"},
        )
    )
    report = built(subject)
    assert not report.privacy.private
    assert all(site.epsilon is None and site.best_guess == 1 for site in report.privacy.sites)
    assert report.conclusion.verdict is Verdict.FAIL
    assert report.risks[0].severity == "high"
    assert "Nothing bounds" in report.risks[0].risk
    assert "nothing bounds what can be learned" in report.privacy.odds


def test_tests_are_worst_first_and_what_breaks_most_before_the_rest(subject: Subject) -> None:
    assert [test.result.test for test in built(subject).tests] == [
        "F5",
        "B1",
        "M1",
        "B4",
        "C2",
        "D1",
    ]


def test_every_test_there_is_stands_in_the_report(subject: Subject) -> None:
    report = built(subject)
    reasons = {item.test: item.reason for item in report.not_run}
    assert {test.result.test for test in report.tests} | reasons.keys() == {c.id for c in CARDS}
    assert reasons["M4"].startswith("No pack of texts was given")
    assert reasons["M9"] == "The suite 'quick' does not have it; it runs with --suite full."
    left_out = built(subject, outcome_of())
    assert {"It was left out of this audit."} < {item.reason for item in left_out.not_run}


def test_a_result_of_an_unknown_test_and_two_of_one_are_refused(subject: Subject) -> None:
    result = rich_outcome().results[0]
    with pytest.raises(AuditError, match="two"):
        built(subject, outcome_of(result, result))
    with pytest.raises(AuditError, match="known"):
        built(subject, outcome_of(result.model_copy(update={"test": "X1"})))
    with pytest.raises(AuditError, match="known"):
        built(subject, SuiteOutcome("quick", (), (NotRun(test="X1", reason=""),)))


def test_a_failed_test_is_a_risk_and_an_undecided_one_too(subject: Subject) -> None:
    risks = built(subject).risks
    assert [risk.id for risk in risks] == [f"R{n}" for n in range(1, len(risks) + 1)]
    found = [(risk.evidence, risk.severity) for risk in risks]
    assert found[:3] == [(("F5",), "high"), (("B1",), "medium"), (("M1", "B4"), "medium")]
    assert all(risk.decision == "" for risk in risks)


def test_of_several_records_of_a_person_no_promise_is_stated_that_is_none(
    subject: Subject,
) -> None:
    privacy = built(subject).privacy
    few, many = (
        next(
            risk.risk
            for risk in risks_of(
                (),
                privacy.model_copy(
                    update={
                        "sites": (
                            privacy.sites[0].model_copy(update={"epsilon": epsilon, "delta": 1e-5}),
                        )
                    }
                ),
                records_at_hand=False,
            )
            if "several records" in risk.risk
        )
        for epsilon in (1.0, 8.0)
    )
    assert "two records by one of 2 at a delta of 5.44e-5" in few  # 2 e 1e-5
    assert "three by one of 3 at a delta of 0.000222" in few  # 3 e^2 1e-5
    assert "two records by one of 16 at a delta of 0.0597" in many  # 2 e^8 1e-5
    assert "three nothing is promised" in many


def test_undecided_tests_of_a_run_without_privacy_are_backed_by_no_promise(
    subject: Subject,
) -> None:
    report = built(subject)
    undecided = [
        risk.safeguard
        for private in (True, False)
        for risk in risks_of(
            report.tests,
            report.privacy.model_copy(update={"private": private}),
            records_at_hand=False,
        )
        if "could not rule out" in risk.risk
    ]
    assert undecided == [
        "What is promised holds whatever these tests saw.",
        "None: nothing is promised that would hold instead.",
    ]


def test_the_first_page_says_the_worst(subject: Subject) -> None:
    good = rich_outcome().results[0]
    bad = good.model_copy(update={"verdict": Verdict.FAIL, "headline": "There is no noise."})
    failed = built(subject, outcome_of(bad))
    assert failed.conclusion.verdict is Verdict.FAIL
    assert "There is no noise." in failed.conclusion.summary
    assert not failed.released


def test_without_gates_and_with_a_pass_the_first_page_is_calm(subject: Subject) -> None:
    gates = {"conformance": True, "epsilon_proven_within_claim": False}
    config = subject.config
    section = config.audit.gates.model_copy(update=gates)
    audit = config.audit.model_copy(update={"gates": section})
    calm = replace(subject, config=config.model_copy(update={"audit": audit}))
    good = rich_outcome().results[0]
    report = built(calm, outcome_of(good))
    assert report.conclusion.verdict is Verdict.PASS
    assert report.released
    undecided = good.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "test": "D1"})
    open_ = built(calm, outcome_of(good, undecided)).conclusion
    assert open_.verdict is Verdict.INCONCLUSIVE
    assert open_.title == "No test failed, but 1 test came to no verdict"


def test_a_built_report_can_be_signed(subject: Subject) -> None:
    verify_report(sign_report(built(subject), KEY))


def test_assembling_keeps_what_the_controller_wrote() -> None:
    report = rich_report(KEY)
    again = assemble_report(
        rich_outcome(),
        auditor_of(KEY),
        config=federation(),
        identity=report.identity,
        privacy=report.privacy,
        records_at_hand=False,
        issued=ISSUED,
        cards=CARDS,
        legal_basis="Art. 9(2)(j) GDPR",
    )
    assert (again.purpose, again.legal_basis) == ("", "Art. 9(2)(j) GDPR")
    assert len(again.risks) == len(report.risks) - 1


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(0.0, 0.5), (1.0, 0.7310586), (8.0, 0.9996646), (None, 1.0)]
)
def test_the_best_guess_is_the_bound_of_randomised_response(
    epsilon: float | None, expected: float
) -> None:
    assert best_guess(epsilon, 0.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0, 800.0])
def test_delta_adds_to_the_best_guess_and_never_makes_more_than_certain(epsilon: float) -> None:
    assert best_guess(epsilon, 0.0) <= best_guess(epsilon, 1e-2) <= 1.0
    if epsilon < 100:
        exact = (math.exp(epsilon) + 1e-2) / (1 + math.exp(epsilon))
        assert best_guess(epsilon, 1e-2) == pytest.approx(min(exact, 1.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.51234, "0.512"),
        (0.5, "0.500"),
        (7.9965, "8.00"),
        (1200, "1200"),
        (1234.5, "1234"),
        (1e-5, "1e-5"),
        (2.5e7, "2.5e7"),
        (0.0, "0"),
        (-0.0142, "-0.0142"),
        (412.4, "412"),
        (None, "suppressed"),
        (math.inf, "no bound"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_bounds_are_never_rounded_to_the_good_side() -> None:
    assert (at_most(8.401), at_least(1.749)) == ("8.41", "1.74")
    assert (at_most(8.375), at_least(1.75)) == ("8.38", "1.75")
    assert percent(0.9999999) == "99.99999"
    assert percent(1.0) == "100"
    assert percent(0.95) == "95"
