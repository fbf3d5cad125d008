"""Gates: what passes, what fails, and that what cannot be decided fails."""

from typing import Any

import pytest

from audit.gates import Gate, gates_of
from audit.verdicts import CONFORMANCE, Interval, Measure, TestCard, TestResult, Verdict
from core.errors import AuditError
from tests.support.reports import federation


def card(test: str, tier: Any) -> TestCard:
    return TestCard(
        id=test,
        title="a test",
        question="?",
        tier=tier,
        threat_model="anyone",
        assumes=(),
        suites=CONFORMANCE,
        cost_seconds=1.0,
    )


CARDS = (card("C1", "conformance"), card("C2", "conformance"), card("D1", "dp"), card("D2", "dp"))


def result(test: str, verdict: Verdict, *measures: Measure) -> TestResult:
    return TestResult(test=test, verdict=verdict, headline="A sentence.", measures=measures)


def measure(
    name: str,
    value: float | None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    limit: float | None = None,
    interval: bool = True,
) -> Measure:
    found = Interval(low=low, high=high, confidence=0.95, method="made up") if interval else None
    return Measure(name=name, label=name, value=value, interval=found, limit=limit)


def gate(name: str, *results: TestResult, **gates: Any) -> Gate:
    found = {item.name: item for item in gates_of(federation(gates), results, cards=CARDS)}
    return found[name]


def test_every_gate_of_the_configuration_is_there_once() -> None:
    gates = {"max_membership_auc": 0.6, "max_gap": 0.1}
    names = [item.name for item in gates_of(federation(gates), (), cards=CARDS)]
    assert names == ["conformance", "epsilon_proven_within_claim", "max_membership_auc", "max_gap"]
    off = {"conformance": False, "epsilon_proven_within_claim": False}
    assert gates_of(federation(off), (), cards=CARDS) == ()


def test_without_any_result_no_gate_passes() -> None:
    gates = gates_of(federation({"max_membership_auc": 0.6, "max_gap": 0.1}), (), cards=CARDS)
    assert not any(item.passed for item in gates)
    assert all(item.measured is None and "Not decided" in item.reason for item in gates)


def test_conformance_fails_with_any_fail_and_by_itself_passes_on_a_pass() -> None:
    good, bad = result("C1", Verdict.PASS), result("C2", Verdict.FAIL)
    assert gate("conformance", good).passed
    failed = gate("conformance", good, bad)
    assert not failed.passed
    assert "C2" in failed.reason


def test_conformance_is_not_decided_where_a_test_came_to_no_verdict() -> None:
    undecided = result("C1", Verdict.INCONCLUSIVE)
    assert not gate("conformance", undecided).passed
    assert not gate("conformance", undecided, result("D1", Verdict.PASS)).passed
    told = gate("conformance", undecided, result("C2", Verdict.PASS))
    assert not told.passed
    assert "C1" in told.reason


def test_a_result_of_an_unknown_test_is_refused() -> None:
    with pytest.raises(AuditError, match="known, got X9"):
        gates_of(federation(), (result("X9", Verdict.PASS),), cards=CARDS)


@pytest.mark.parametrize(("bound", "passes"), [(7.9, True), (8.0, True), (8.0001, False)])
def test_the_proven_epsilon_is_held_against_the_claim(bound: float, passes: bool) -> None:
    found = gate(
        "epsilon_proven_within_claim",
        result("D1", Verdict.PASS, measure("epsilon-proven", bound, limit=8.0)),
    )
    assert found.passed is passes
    assert (found.measured, found.limit) == (bound, 8.0)


def test_the_bound_that_breaks_its_claim_decides_among_several() -> None:
    found = gate(
        "epsilon_proven_within_claim",
        result("D1", Verdict.PASS, measure("epsilon-proven", 7.0, limit=8.0)),
        result("D2", Verdict.FAIL, measure("epsilon-proven", 3.0, limit=2.0)),
    )
    assert not found.passed
    assert found.measured == 3.0


@pytest.mark.parametrize(("value", "limit"), [(None, 8.0), (3.0, None)])
def test_a_bound_or_a_claim_that_is_missing_is_not_decided(
    value: float | None, limit: float | None
) -> None:
    known = measure("epsilon-proven", 1.0, limit=8.0)
    found = gate(
        "epsilon_proven_within_claim",
        result("D1", Verdict.PASS, known, measure("epsilon-proven", value, limit=limit)),
    )
    assert not found.passed
    assert found.measured is None


@pytest.mark.parametrize(("high", "passes"), [(0.59, True), (0.6, True), (0.61, False)])
def test_the_upper_limit_of_the_best_attack_decides(high: float, passes: bool) -> None:
    weaker = measure("membership-auc", 0.5, low=0.45, high=0.55)
    best = measure("membership-auc", 0.55, low=0.5, high=high)
    found = gate(
        "max_membership_auc", result("D1", Verdict.PASS, weaker, best), max_membership_auc=0.6
    )
    assert found.passed is passes
    assert found.measured == high


@pytest.mark.parametrize(("low", "passes"), [(0.09, True), (0.11, False)])
def test_the_lower_limit_of_the_largest_gap_decides(low: float, passes: bool) -> None:
    found = gate(
        "max_gap",
        result("D1", Verdict.PASS, measure("accuracy-gap", 0.2, low=low, high=0.3)),
        max_gap=0.1,
    )
    assert found.passed is passes
    assert found.measured == low


@pytest.mark.parametrize("name", ["membership-auc", "accuracy-gap"])
def test_a_measure_without_an_interval_is_not_decided(name: str) -> None:
    kind = "max_membership_auc" if name == "membership-auc" else "max_gap"
    bare = result("D1", Verdict.PASS, measure(name, 0.5, interval=False), measure(name, 0.5))
    found = gate(kind, bare, **{kind: 0.9})
    assert not found.passed
    assert found.measured is None


def test_a_test_that_was_cut_leaves_the_gates_of_its_tier_undecided() -> None:
    cards = (*CARDS, card("M1", "records"), card("M2", "records"), card("B1", "bias"))
    results = (
        result("D1", Verdict.PASS, measure("epsilon-proven", 1.0, limit=8.0)),
        result("M1", Verdict.PASS, measure("membership-auc", 0.5, high=0.55)),
        result("B1", Verdict.PASS, measure("accuracy-gap", 0.0, low=0.0)),
        result("D2", Verdict.INCONCLUSIVE),
        result("M2", Verdict.INCONCLUSIVE),
    )
    config = federation({"max_membership_auc": 0.6, "max_gap": 0.1, "conformance": False})

    def passed(*cut: str) -> list[str]:
        gates = gates_of(config, results, cards=cards, cut=cut)
        assert all(gate.passed or "Not decided" in gate.reason for gate in gates)
        return [gate.name for gate in gates if gate.passed]

    assert passed() == ["epsilon_proven_within_claim", "max_membership_auc", "max_gap"]
    assert passed("M2") == ["epsilon_proven_within_claim", "max_gap"]
    assert passed("D2") == ["max_membership_auc", "max_gap"]
    with pytest.raises(AuditError, match="X9"):
        passed("X9")
