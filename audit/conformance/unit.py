"""C8: whom the epsilon protects, and what it comes to over records, sites and runs together."""

import math
from dataclasses import dataclass
from typing import Final

from audit.conformance.claims import Debit, debits, statements
from audit.report.words import at_most
from audit.subject import AuditedSite, Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Cell,
    Measure,
    NotRun,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.errors import AccountingError, PrivacyError
from privacy.accounting import life_epsilon
from privacy.events import DistributedDpSgdEvent, DpSgdEvent, Event
from privacy.group_privacy import group_epsilon

_GROUPS: Final = (1, 2, 3, 5)

CARD: Final = TestCard(
    id="C8",
    title="Unit and composition",
    question="Whom does the epsilon protect, and what is it over several records, sites and runs?",
    tier="conformance",
    threat_model="Who takes the epsilon of one record for that of a person.",
    assumes=("Sites that are not named together hold the records of different people.",),
    suites=CONFORMANCE,
    cost_seconds=3.0,
)


@dataclass(frozen=True)
class _Site:
    """What one ledger comes to."""

    name: str
    delta: float
    own: tuple[Event, ...]
    life: tuple[Event, ...]
    own_epsilon: float
    life_epsilon: float
    said: float | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class UnitAndComposition:
    """The test."""

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Composes what the ledgers hold: by groups of records, over sites, over runs."""
        here = [site for _, site in sorted(subject.sites.items()) if site.ledger is not None]
        if not here:
            return NotRun(test=CARD.id, reason="The ledgers lie at the sites, not here.")
        found = [_compose(subject, site) for site in here if not budget.spent]
        if len(found) < len(here):
            return _no_time()
        return _result(subject, found, budget)


def _compose(subject: Subject, site: AuditedSite) -> _Site:
    said = statements(subject, site.name)
    last = said[-1] if said else None
    delta = last.delta if last else subject.config.privacy.target_delta
    found = debits(site.ledger or (), until=last.sequence if last else None)
    own = tuple(debit.event for debit in found if debit.run_id == subject.run_id)
    life = tuple(debit.event for debit in found)
    epsilons = life_epsilon(own, delta), life_epsilon(life, delta)
    stated = None if last is None else last.epsilon
    faults = [*_units(subject, found), *_mixed(subject, life), *_forgets(stated, epsilons)]
    return _Site(site.name, delta, own, life, *epsilons, stated, tuple(faults))


def _units(subject: Subject, found: tuple[Debit, ...]) -> list[str]:
    unit = subject.config.privacy.unit
    others = {
        debit.event.unit
        for debit in found
        if isinstance(debit.event, DpSgdEvent | DistributedDpSgdEvent)
    } - {unit}
    return [f"the ledger counts by {other}, the run states {unit}" for other in sorted(others)]


def _mixed(subject: Subject, life: tuple[Event, ...]) -> list[str]:
    kinds = {event.private for event in life}
    if len(kinds) > 1:
        return ["the ledger mixes private training with training that nothing protects"]
    if kinds and subject.private not in kinds:
        return (
            ["the run states privacy, its ledger has none"]
            if subject.private
            else ["the run states no privacy, its ledger has private entries"]
        )
    return []


def _forgets(stated: float | None, epsilons: tuple[float, float]) -> list[str]:
    """The claim must be of the records' whole life, not of this run alone."""
    own, life = epsilons
    if stated is None or not math.isfinite(life) or stated >= life - max(0.005, 0.001 * life):
        return []
    if stated >= own - max(0.005, 0.001 * own):
        return [f"epsilon {stated:.4g} ignores earlier runs, with which it is {life:.4g}"]
    return [f"epsilon {stated:.4g} is stated where all entries cost {life:.4g}"]


def _finite(events: tuple[Event, ...], delta: float) -> float | None:
    try:
        epsilon = life_epsilon(events, delta)
    except (AccountingError, PrivacyError):
        return None
    return epsilon if math.isfinite(epsilon) else None


def _result(subject: Subject, found: list[_Site], budget: Budget) -> TestResult:
    bad = [site for site in found if site.faults]
    worst = max(found, key=lambda site: site.life_epsilon)
    groups = {} if not subject.private else _groups(worst, budget)
    everywhere = _everywhere(found) if subject.private else None
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if bad else Verdict.PASS,
        headline=_headline(subject, bad, worst, groups),
        measures=_measures(worst, groups, everywhere),
        smallest_effect=SmallestEffect(
            measure="epsilon of earlier runs that a claim leaves out",
            value=0.005,
            power=0.99,
            alpha=1e-3,
        ),
        tables=(_runs(found), _table_of_groups(worst, groups)),
        notes=(
            f"The unit is one {subject.config.privacy.unit}. A person with several records is "
            "protected as the group of them.",
            "Over sites with different people the largest epsilon counts, not their sum; for "
            "somebody whose records lie at all sites it is the one stated for that.",
            "Searching for hyperparameters on the same records is a run as well: it counts only "
            "if it went through the ledger.",
        ),
    )


def _groups(site: _Site, budget: Budget) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for size in _GROUPS:
        if not budget.spent:
            found[size] = _group(site, size)
    return found


def _group(site: _Site, size: int) -> float | None:
    if size == 1:
        return site.life_epsilon if math.isfinite(site.life_epsilon) else None
    try:
        return group_epsilon(site.life, size, site.delta)
    except AccountingError:
        return None


def _everywhere(found: list[_Site]) -> float | None:
    """Of a record that lies at every site."""
    return _finite(tuple(event for site in found for event in site.life), found[0].delta)


def _headline(
    subject: Subject, bad: list[_Site], worst: _Site, groups: dict[int, float | None]
) -> str:
    if bad:
        return f"The claim of {bad[0].name} is not what its ledger holds: {bad[0].faults[0]}."
    if not subject.private:
        return "The run states no privacy, and its ledgers say the same."
    two = groups.get(2)
    pair = "is not protected in any useful way" if two is None else f"has {at_most(two)}"
    return (
        f"Epsilon {at_most(worst.life_epsilon)} protects one {subject.config.privacy.unit}; a "
        f"person with two of them {pair}."
    )


def _measures(
    worst: _Site, groups: dict[int, float | None], everywhere: float | None
) -> tuple[Measure, ...]:
    whole = worst.life_epsilon if math.isfinite(worst.life_epsilon) else None
    return (
        Measure(
            name="epsilon-whole-life",
            label=f"Epsilon of one record over all runs ({worst.name})",
            value=whole,
            limit=worst.said,
        ),
        Measure(name="epsilon-two-records", label="Of two records", value=groups.get(2)),
        Measure(
            name="epsilon-all-sites",
            label="Of a record that lies at every site",
            value=everywhere,
        ),
    )


def _runs(found: list[_Site]) -> Table:
    def shown(value: float) -> Cell:
        return value if math.isfinite(value) else None

    return Table(
        title="This run and the ledger's whole life",
        columns=("site", "delta", "this run", "whole life", "stated", "debits before"),
        rows=tuple(
            (
                site.name,
                site.delta,
                shown(site.own_epsilon),
                shown(site.life_epsilon),
                site.said,
                len(site.life) - len(site.own),
            )
            for site in found
        ),
        note="Empty: nothing bounds it.",
    )


def _table_of_groups(worst: _Site, groups: dict[int, float | None]) -> Table:
    return Table(
        title=f"A person with several records ({worst.name})",
        columns=("records", "epsilon", "delta"),
        rows=tuple((size, epsilon, worst.delta) for size, epsilon in groups.items()),
        note="An upper bound; empty where none is known.",
    )


def _no_time() -> TestResult:
    return TestResult(
        test=CARD.id,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left to compose the ledgers.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


TESTS: Final[tuple[AuditTest, ...]] = (UnitAndComposition(),)
