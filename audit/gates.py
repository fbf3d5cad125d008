"""What must hold before a model counts as released. A gate that cannot be decided fails."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import Field

from audit.suite import all_tests
from audit.verdicts import Measure, TestCard, TestResult, Tier, Verdict
from core.config import FederationConfig
from core.config_sections import GatesSection, Section
from core.errors import AuditError

MEMBERSHIP_AUC = "membership-auc"
ACCURACY_GAP = "accuracy-gap"
EPSILON_PROVEN = "epsilon-proven"


class Gate(Section):
    """One gate and what it said."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """As the configuration names it."""
    label: str
    """For people."""
    limit: float | None = None
    """What is allowed; ``None`` where the gate has no number."""
    measured: float | None = None
    """What is held against the limit; ``None`` where nothing could be."""
    passed: bool
    """Whether it holds; false where that cannot be decided."""
    reason: str
    """Why, in a sentence."""


def gates_of(
    config: FederationConfig,
    results: Sequence[TestResult],
    *,
    cards: Iterable[TestCard] | None = None,
    cut: Collection[str] = (),
) -> tuple[Gate, ...]:
    """The gates that the federation agreed on, held against what the tests found; see ``held``.

    Args:
        config: Has the gates.
        results: Of all tests that ran.
        cards: The cards of these tests; ``None`` for those of all tests there are.
        cut: Ids of tests that had no time or could not be carried out.

    Raises:
        AuditError: A result is of a test that no card is of.
    """
    tiers = {card.id: card.tier for card in (_all_cards() if cards is None else cards)}
    return held(config.audit.gates, results, tiers, cut=cut)


def held(
    section: GatesSection,
    results: Sequence[TestResult],
    tiers: Mapping[str, Tier],
    *,
    cut: Collection[str] = (),
) -> tuple[Gate, ...]:
    """Gates, held against what the tests found.

    **Guarantees**: Every gate that the section has is there, once. One passes only where a test
    measured what it asks for, with an interval where it asks for a confidence limit, and no test
    that may measure it was cut: nobody passes a gate by leaving no time for the stronger attack.

    Args:
        section: The gates.
        results: Of all tests that ran.
        tiers: Of each test, by its id.
        cut: Ids of tests that had no time or could not be carried out.

    Raises:
        AuditError: A result is of a test without a tier.
    """
    unknown = sorted(({result.test for result in results} | set(cut)) - tiers.keys())
    if unknown:
        raise AuditError(f"expected results of tests that are known, got {', '.join(unknown)}")
    gates = []
    if section.conformance:
        gates.append(_conformance(results, tiers))
    if section.epsilon_proven_within_claim:
        gates.append(_unless_cut(_epsilon(results), "dp", tiers, cut))
    if section.max_membership_auc is not None:
        membership = _membership(results, section.max_membership_auc)
        gates.append(_unless_cut(membership, "records", tiers, cut))
    if section.max_gap is not None:
        gates.append(_unless_cut(_gap(results, section.max_gap), "bias", tiers, cut))
    return tuple(gates)


def _unless_cut(gate: Gate, tier: Tier, tiers: Mapping[str, Tier], cut: Collection[str]) -> Gate:
    missing = sorted(test for test in cut if tiers[test] == tier)
    if not gate.passed or not missing:
        return gate
    reason = f"Not decided: {', '.join(missing)} had no time or could not be carried out."
    return gate.model_copy(update={"passed": False, "reason": reason})


def _conformance(results: Sequence[TestResult], tiers: Mapping[str, Tier]) -> Gate:
    found = [result for result in results if tiers[result.test] == "conformance"]
    failed = [result.test for result in found if result.verdict is Verdict.FAIL]
    passed = [result.test for result in found if result.verdict is Verdict.PASS]
    undecided = [result.test for result in found if result.verdict is Verdict.INCONCLUSIVE]
    if failed:
        reason = f"Failed: {', '.join(failed)}."
    elif not passed:
        reason = "Not decided: no test of conformance came to a verdict."
    elif undecided:
        reason = f"Not decided: {', '.join(undecided)} came to no verdict."
    else:
        reason = f"None of {len(passed)} failed."
    return Gate(
        name="conformance",
        label="No test of conformance failed",
        limit=0.0,
        measured=float(len(failed)) if failed or passed else None,
        passed=bool(passed) and not failed and not undecided,
        reason=reason,
    )


def _epsilon(results: Sequence[TestResult]) -> Gate:
    label = "No attack proved more than the claimed epsilon"
    found = _named(results, EPSILON_PROVEN)
    bounds = [(measure.value, measure.limit) for _, measure in found]
    decided = [(bound, claim) for bound, claim in bounds if bound is not None and claim is not None]
    if not decided or len(decided) < len(bounds):
        reason = (
            "Not decided: no test proved a lower bound."
            if not bounds
            else "Not decided: a bound could not be computed, or there is no claim to compare with."
        )
        return Gate(name="epsilon_proven_within_claim", label=label, passed=False, reason=reason)
    bound, claim = max(decided, key=lambda pair: pair[0] - pair[1])
    passed = bound <= claim
    return Gate(
        name="epsilon_proven_within_claim",
        label=label,
        limit=claim,
        measured=bound,
        passed=passed,
        reason="The proven bound lies within the claim."
        if passed
        else "An attack proved that the claim does not hold.",
    )


def _membership(results: Sequence[TestResult], limit: float) -> Gate:
    ends = [
        None if measure.interval is None else measure.interval.high
        for _, measure in _named(results, MEMBERSHIP_AUC)
    ]
    return _against(
        "max_membership_auc",
        "Upper confidence limit of the best membership attack's AUC",
        ends,
        limit,
    )


def _gap(results: Sequence[TestResult], limit: float) -> Gate:
    ends = [
        None if measure.interval is None else measure.interval.low
        for _, measure in _named(results, ACCURACY_GAP)
    ]
    return _against(
        "max_gap",
        "Lower confidence limit of the largest gap in accuracy between groups",
        ends,
        limit,
    )


def _against(name: str, label: str, ends: Sequence[float | None], limit: float) -> Gate:
    known = [end for end in ends if end is not None]
    if not known or len(known) < len(ends):
        reason = "Not decided: no test measured it with an interval."
        return Gate(name=name, label=label, limit=limit, passed=False, reason=reason)
    worst = max(known)
    passed = worst <= limit
    return Gate(
        name=name,
        label=label,
        limit=limit,
        measured=worst,
        passed=passed,
        reason="At most the limit." if passed else "Above the limit.",
    )


def _named(results: Sequence[TestResult], name: str) -> list[tuple[TestResult, Measure]]:
    return [(result, item) for result in results for item in result.measures if item.name == name]


def _all_cards() -> list[TestCard]:
    return [test.card for test in all_tests()]
