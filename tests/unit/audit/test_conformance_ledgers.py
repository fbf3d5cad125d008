"""C1, C7 and C8 on real ledgers and records that fit them, or do not in one place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audit.conformance.accounting import Accounting
from audit.conformance.steps import ChargedSteps
from audit.conformance.unit import UnitAndComposition
from audit.subject import Subject
from audit.verdicts import Budget, NotRun, TestResult, Verdict
from privacy.accounting import life_epsilon
from tests.support.audit_subjects import (
    DELTA,
    Played,
    dp_sgd,
    made_up_subject,
    played,
    rounds_of,
    with_ledger,
    with_spent,
)
from tests.support.federation import FEDERATION, SITES

OTHER_RUN = "fedcba9876543210"


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return made_up_subject(tmp_path)


def outcome(test: Any, subject: Subject) -> TestResult:
    found = test.run(subject, Budget(600))
    assert isinstance(found, TestResult)
    return found


def verdict(test: Any, subject: Subject) -> Verdict:
    return outcome(test, subject).verdict


def replayed(subject: Subject, change: Callable[[list[Played]], list[Played]]) -> Subject:
    """With the ledger of one site after other rounds."""
    script = {name: rounds_of(subject, name) for name in SITES}
    return played(subject, {**script, "north": change(script["north"])})


@pytest.mark.parametrize("test", [Accounting(), ChargedSteps(), UnitAndComposition()])
def test_what_fits_passes(test: Any, subject: Subject) -> None:
    result = outcome(test, subject)
    assert result.verdict is Verdict.PASS, result.headline


def test_the_accountants_and_the_record_agree(subject: Subject) -> None:
    table = outcome(Accounting(), subject).tables[0]
    for _, _, stated, pld, uncut, prv, rdp in table.rows:
        assert stated == pld
        assert isinstance(uncut, float)
        assert isinstance(prv, float)
        assert isinstance(rdp, float)
        assert abs(prv - uncut) < 0.02 * uncut
        assert rdp >= prv


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.9),
        ("sample_rate", 0.1),
        ("max_batch_size", 15),
        ("max_examples", 45),
        ("max_grad_norm", 0.5),
        ("steps", 1),
    ],
)
def test_a_charge_for_another_mechanism_is_found(
    field: str, value: float, subject: Subject
) -> None:
    terms = subject.sites["north"].terms
    assert terms is not None
    event = dp_sgd(subject, terms, **{field: value})
    changed = replayed(
        subject, lambda rounds: [replace(r, event=event, executed=event.steps) for r in rounds]
    )
    result = outcome(Accounting(), changed)
    assert result.verdict is Verdict.FAIL
    assert any(field in str(row) for row in result.tables[1].rows)


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.02])
def test_a_stated_epsilon_that_does_not_follow_is_found(factor: float, subject: Subject) -> None:
    said = subject.record.rounds[-1]["spent"]["north"]["epsilon"]
    assert verdict(Accounting(), with_spent(subject, "north", epsilon=said * factor)) is (
        Verdict.FAIL
    )


def test_terms_with_a_rate_below_the_public_one_are_found(subject: Subject) -> None:
    terms = subject.sites["north"].terms
    assert terms is not None
    low = terms.model_copy(update={"sample_rate": 0.1})
    event = dp_sgd(subject, low)
    changed = with_ledger(subject, "north", terms=low)
    changed = replayed(changed, lambda rounds: [replace(r, event=event) for r in rounds])
    assert verdict(Accounting(), changed) is Verdict.FAIL


def test_without_ledgers_the_record_must_state_what_its_rounds_cost(subject: Subject) -> None:
    away = subject
    for name in SITES:
        away = with_ledger(away, name, ledger=None)
    assert verdict(Accounting(), away) is Verdict.PASS
    assert verdict(Accounting(), with_spent(away, "north", epsilon=1.0)) is Verdict.FAIL
    assert verdict(Accounting(), with_spent(away, "north", epsilon=30.0)) is Verdict.PASS
    assert isinstance(ChargedSteps().run(away, Budget(60)), NotRun)
    assert isinstance(UnitAndComposition().run(away, Budget(60)), NotRun)


def test_a_run_without_privacy_is_not_accounted_unless_it_claims_some(tmp_path: Path) -> None:
    federation = FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"')
    subject = made_up_subject(tmp_path, federation=federation)
    assert isinstance(Accounting().run(subject, Budget(60)), NotRun)
    claiming = with_spent(subject, "north", private=True, epsilon=1.0)
    assert verdict(Accounting(), claiming) is Verdict.FAIL
    assert verdict(ChargedSteps(), subject) is Verdict.PASS
    assert verdict(UnitAndComposition(), subject) is Verdict.PASS


def test_a_round_without_a_charge_is_found(subject: Subject) -> None:
    changed = replayed(subject, lambda rounds: [rounds[0], rounds[2]])
    result = outcome(ChargedSteps(), changed)
    assert result.verdict is Verdict.FAIL
    assert "round 2" in result.headline


def test_fewer_steps_than_charged_in_a_round_that_counts_are_found(subject: Subject) -> None:
    changed = replayed(subject, lambda rounds: [*rounds[:2], replace(rounds[2], executed=1)])
    assert verdict(ChargedSteps(), changed) is Verdict.FAIL


def test_more_steps_than_charged_are_found(subject: Subject) -> None:
    """The ledger itself refuses to write that, so that its entry is forged here."""
    entries = list(subject.sites["north"].ledger or ())
    body = {**entries[-1].body, "executed_steps": 3}
    entries[-1] = replace(entries[-1], body=body)
    changed = with_ledger(subject, "north", ledger=tuple(entries))
    assert verdict(ChargedSteps(), changed) is Verdict.FAIL


def test_an_update_of_a_round_that_was_not_completed_is_found(subject: Subject) -> None:
    for last in ({"executed": None}, {"outcome": "failed"}):
        changed = replayed(
            subject, lambda rounds, last=last: [*rounds[:2], replace(rounds[2], **last)]
        )
        assert verdict(ChargedSteps(), changed) is Verdict.FAIL


def test_failed_attempts_stay_charged(subject: Subject) -> None:
    def twice(rounds: list[Played]) -> list[Played]:
        failed = replace(rounds[1], executed=None)
        return [rounds[0], failed, replace(rounds[1], attempt=2), rounds[2]]

    changed = replayed(subject, twice)
    result = outcome(ChargedSteps(), changed)
    assert result.verdict is Verdict.PASS
    assert result.tables[0].rows[0] == ("north", 3, 8, 6, 1)
    before = subject.record.rounds[-1]["spent"]["north"]["epsilon"]
    assert changed.record.rounds[-1]["spent"]["north"]["epsilon"] > before
    assert verdict(Accounting(), changed) is Verdict.PASS


def test_a_budget_that_starts_again_is_found(subject: Subject) -> None:
    """After a restart there is a new ledger, which knows of the last round only."""
    fresh = replayed(subject, lambda rounds: rounds[2:])
    forgetful = with_ledger(subject, "north", ledger=fresh.sites["north"].ledger)
    assert verdict(ChargedSteps(), forgetful) is Verdict.FAIL
    assert verdict(Accounting(), forgetful) is Verdict.FAIL


def test_a_record_whose_spent_budget_falls_is_found_without_a_ledger(subject: Subject) -> None:
    away = with_ledger(subject, "north", ledger=None)
    lines = [dict(line) for line in away.record.lines]
    lines[2] = {**lines[2], "spent": {**lines[2]["spent"], "north": lines[0]["spent"]["north"]}}
    away = replace(away, record=replace(away.record, lines=lines))
    assert verdict(ChargedSteps(), away) is Verdict.FAIL


def test_a_site_that_refused_every_round_is_not_missed(subject: Subject) -> None:
    absent = with_ledger(subject, "north", ledger=None)
    assert verdict(ChargedSteps(), absent) is Verdict.INCONCLUSIVE
    lines = [
        {
            **line,
            "used": [name for name in line["used"] if name != "north"],
            **{key: without_north(line[key]) for key in ("spent", "ledger_heads")},
        }
        for line in absent.record.lines
    ]
    refused = replace(absent, record=replace(absent.record, lines=lines))
    assert verdict(ChargedSteps(), refused) is Verdict.PASS


def without_north(by_site: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_site.items() if name != "north"}


def test_a_claim_must_count_earlier_runs(subject: Subject) -> None:
    def after_another(rounds: list[Played]) -> list[Played]:
        return [*(replace(one, run_id=OTHER_RUN) for one in rounds), *rounds]

    changed = replayed(subject, after_another)
    own = subject.record.rounds[-1]["spent"]["north"]["epsilon"]
    result = outcome(UnitAndComposition(), changed)
    assert result.verdict is Verdict.PASS
    assert result.tables[0].rows[0][:4] == (
        "north",
        DELTA,
        pytest.approx(own),
        changed.record.rounds[-1]["spent"]["north"]["epsilon"],
    )
    forgetful = outcome(UnitAndComposition(), with_spent(changed, "north", epsilon=own))
    assert forgetful.verdict is Verdict.FAIL
    assert "earlier runs" in forgetful.headline


def test_a_private_claim_over_a_ledger_without_privacy_is_found(
    subject: Subject, tmp_path: Path
) -> None:
    federation = FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"')
    open_run = made_up_subject(tmp_path / "open", federation=federation)
    changed = with_ledger(subject, "north", ledger=open_run.sites["north"].ledger)
    assert verdict(UnitAndComposition(), changed) is Verdict.FAIL


def test_epsilon_over_sites_and_groups_is_composed(subject: Subject) -> None:
    result = outcome(UnitAndComposition(), subject)
    found = {measure.name: measure.value for measure in result.measures}
    terms = subject.sites["north"].terms
    assert terms is not None
    events = [dp_sgd(subject, terms)] * 9
    everywhere = found["epsilon-all-sites"]
    assert everywhere == pytest.approx(life_epsilon(events, DELTA))
    assert found["epsilon-whole-life"] == pytest.approx(life_epsilon(events[:3], DELTA))
    # Batches of the tiny run are cut too often for a bound on two records.
    assert [row[1] for row in result.tables[1].rows[:2]] == [found["epsilon-whole-life"], None]
