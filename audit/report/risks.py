"""Residual risks: rows for a data-protection impact assessment."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from audit.report.document import PrivacyStatement, Risk, TestRecord
from audit.report.words import at_most
from audit.verdicts import Tier, Verdict

_SAFEGUARDS: Final[dict[Tier, str]] = {
    "conformance": "The promise itself: it does not hold where its mechanism does not.",
    "dp": "The promise of differential privacy, as far as it was kept.",
    "records": "The noise of the training, and few passes over each record.",
    "federation": "Noise at the sites, secure aggregation where it is on, bounds on updates.",
    "bias": "None in the training; thresholds or weights by group can be chosen afterwards.",
}


def risks_of(
    tests: Sequence[TestRecord], privacy: PrivacyStatement, *, records_at_hand: bool
) -> tuple[Risk, ...]:
    """What remains after all that was done, the worst first.

    Args:
        tests: What was found, worst first.
        privacy: What was promised.
        records_at_hand: Whether tests looked at records themselves.
    """
    rows = [
        *_unprotected(privacy),
        *_found(tests),
        *_undecided(tests, privacy),
        *_standing(tests, privacy, records_at_hand),
    ]
    return tuple(row.model_copy(update={"id": f"R{n}"}) for n, row in enumerate(rows, start=1))


def _unprotected(privacy: PrivacyStatement) -> Iterator[Risk]:
    names = [site.site for site in privacy.sites if not site.private]
    if names:
        yield Risk(
            id="",
            risk=f"Nothing bounds what the model holds of any one record of {', '.join(names)}.",
            adversary="Anyone who has the model or saw the updates.",
            severity="high",
            evidence=(),
            safeguard="None: trained without differential privacy.",
            open="Train again with privacy, or treat the model as personal data.",
        )


def _found(tests: Sequence[TestRecord]) -> Iterator[Risk]:
    for test in tests:
        if test.result.verdict is Verdict.FAIL:
            yield Risk(
                id="",
                risk=test.result.headline,
                adversary=test.threat_model,
                severity="medium" if test.tier == "bias" else "high",
                evidence=(test.result.test,),
                safeguard=_SAFEGUARDS[test.tier],
                open="Remove the cause, or accept it by name.",
            )


def _undecided(tests: Sequence[TestRecord], privacy: PrivacyStatement) -> Iterator[Risk]:
    ids = tuple(test.result.test for test in tests if test.result.verdict is Verdict.INCONCLUSIVE)
    if ids:
        yield Risk(
            id="",
            risk="Harm that these tests could not rule out, or that no promise covers, may be "
            "there: " + ", ".join(ids) + ".",
            adversary="As the tests say.",
            severity="medium",
            evidence=ids,
            safeguard="What is promised holds whatever these tests saw."
            if privacy.private
            else "None: nothing is promised that would hold instead.",
            open="Read what each of them found; test with more records or more time, or accept "
            "what is not known.",
        )


def _standing(
    tests: Sequence[TestRecord], privacy: PrivacyStatement, records_at_hand: bool
) -> Iterator[Risk]:
    claims = [site.epsilon for site in privacy.sites if site.epsilon is not None]
    if claims:
        worst, delta = max((s.epsilon, s.delta) for s in privacy.sites if s.epsilon is not None)
        yield Risk(
            id="",
            risk="A person with several records is protected less than by the epsilon of "
            f"{at_most(worst)} that protects one: with two records {_group(2, worst, delta)}, with "
            f"three {_group(3, worst, delta)}.",
            adversary="Anyone who has the model or saw the updates.",
            severity="medium",
            evidence=(),
            safeguard="The unit of privacy is one record, not one person.",
            open="Find out how many records one person has; merge them where they are many.",
        )
    yield Risk(
        id="",
        risk="What is true of a whole site, such as how common an illness is there, may be read "
        "off the model.",
        adversary="Anyone who has the model.",
        severity="low",
        evidence=tuple(t.result.test for t in tests if t.tier == "federation"),
        safeguard="None: privacy of records does not promise to hide it, and learning needs it.",
        open="Decide whether such facts of a site are sensitive.",
    )
    if records_at_hand:
        yield Risk(
            id="",
            risk="The figures of this report were computed from records themselves and carry no "
            "noise of their own.",
            adversary="Anyone who reads this report.",
            severity="low",
            evidence=(),
            safeguard="They are sums over many records; small cells are suppressed.",
            open="Share the report as widely as its figures deserve, and no wider.",
        )
    if any(row_has_gap(test) for test in tests):
        yield Risk(
            id="",
            risk="Groups that are too small to be judged may be served worse.",
            adversary="People of these groups.",
            severity="medium",
            evidence=tuple(test.result.test for test in tests if row_has_gap(test)),
            safeguard="Their cells are suppressed, to protect who is in them.",
            open="Gather more records of these groups, or ask them.",
        )


def _group(records: int, epsilon: float, delta: float) -> str:
    """What is left of a promise for so many records of one person.

    Source: Dwork, Roth 2014, "The Algorithmic Foundations of Differential Privacy", after
        Theorem 2.2, for approximate privacy: k exp((k - 1) epsilon) delta.
    """
    logarithm = math.log(records) + (records - 1) * epsilon + math.log(delta)
    if logarithm >= 0:
        return "nothing is promised, as delta would reach 1"
    return f"by one of {at_most(records * epsilon)} at a delta of {at_most(math.exp(logarithm))}"


def row_has_gap(test: TestRecord) -> bool:
    """Whether a table of the test has suppressed cells."""
    return test.tier == "bias" and any(
        value is None for table in test.result.tables for row in table.rows for value in row
    )
