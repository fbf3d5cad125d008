"""C1: does the stated epsilon follow from the ledger, by three accountants that agree?"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from audit.conformance.claims import (
    Debit,
    Statement,
    debits,
    listed,
    statements,
    steps_of_a_round,
    used_rounds,
    without_privacy,
)
from audit.report.words import at_most, number
from audit.subject import AuditedSite, Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Cell,
    Figure,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.config import FederationConfig
from core.messages import DpSgdTerms
from privacy.accountants import merge, pld_epsilon
from privacy.accounting import EpsilonReport, epsilon_report
from privacy.events import DistributedDpSgdEvent, DpSgdEvent, Event, NonPrivateEvent

# Accountants that differ by more are not both right. PRV's table has a mesh of .01, which counts
# where epsilon is small.
AGREEMENT: Final = 0.02
_MESH: Final = 0.02

CARD: Final = TestCard(
    id="C1",
    title="Accounting",
    question="Is the stated epsilon what the ledger's entries cost?",
    tier="conformance",
    threat_model="Who relies on the epsilon that the record or the report states.",
    assumes=("What the ledgers were charged for is what ran; C2 to C7 look at that.",),
    suites=CONFORMANCE,
    cost_seconds=4.0,
)


@dataclass(frozen=True)
class _Site:
    """What was recomputed of one site."""

    name: str
    report: EpsilonReport
    uncut: float | None
    """By PLD as if no batch were ever cut, which is what PRV and RDP look at."""
    said: Statement | None
    from_ledger: bool
    faults: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Accounting:
    """The test."""

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Recomputes each site's epsilon; where the ledger lies elsewhere, from the record."""
        if (early := without_privacy(subject, CARD)) is not None:
            return early
        found = []
        cut = []
        for name, site in sorted(subject.sites.items()):
            if budget.spent:
                cut.append(name)
            elif used_rounds(subject, name) or site.ledger is not None:
                found.append(_recompute(subject, site))
        if not found:
            return NotRun(test=CARD.id, reason="No site of this run was charged for anything.")
        return _result(found, cut)


def _recompute(subject: Subject, site: AuditedSite) -> _Site:
    said = statements(subject, site.name)
    last = said[-1] if said else None
    delta = last.delta if last else subject.config.privacy.target_delta
    if site.ledger is None:
        return _from_record(subject, site, last, delta)
    found = debits(site.ledger, until=last.sequence if last else None)
    own = [debit for debit in found if debit.run_id == subject.run_id]
    events = [debit.event for debit in found]
    report = epsilon_report(events, delta)
    uncut = _uncut(events, report)
    faults = [
        *_predictable(own),
        *_constants(own, subject.config, site),
        *_accountants(report, uncut),
        *_stated(last, report),
    ]
    faults += _earlier(said[:-1], site, report)
    doubts = [report.alarm] if report.alarm and report.prv is None else []
    return _Site(site.name, report, uncut, last, True, tuple(faults), tuple(doubts))


def _from_record(
    subject: Subject, site: AuditedSite, last: Statement | None, delta: float
) -> _Site:
    """What the rounds of the record cost at the least; earlier runs only add to that."""
    rounds = len(used_rounds(subject, site.name))
    doubts = []
    faults: list[str] = []
    event = _event(subject.config, site.terms, rounds * steps_of_a_round(subject))
    events = [] if event is None else [event]
    report = epsilon_report(events, delta)
    uncut = _uncut(events, report)
    if event is None:
        doubts.append("what a round costs does not follow from the record alone")
    elif last is None:
        faults.append("the record states no epsilon for a site that it used")
    elif last.private and _gap(last.epsilon, report.epsilon) < 0:
        faults.append(
            f"the record states epsilon {last.epsilon:.4g}, its {rounds} rounds cost at least "
            f"{report.epsilon:.4g}"
        )
    if event is not None:
        faults += _accountants(report, uncut)
    return _Site(site.name, report, uncut, last, False, tuple(faults), tuple(doubts))


def _event(config: FederationConfig, terms: DpSgdTerms | None, steps: int) -> DpSgdEvent | None:
    if terms is None or config.privacy.mode != "local" or steps == 0:
        return None
    return DpSgdEvent(
        noise_multiplier=terms.noise_multiplier,
        sample_rate=terms.sample_rate,
        max_batch_size=terms.max_batch_size,
        max_examples=terms.max_examples,
        steps=steps,
        max_grad_norm=config.privacy.max_grad_norm,
    )


def _predictable(own: Sequence[Debit]) -> list[str]:
    """A run whose noise anyone can compute again, whatever its configuration says."""
    if any(isinstance(debit.event, NonPrivateEvent) for debit in own):
        return ["the run trained without privacy, or with noise that can be predicted"]
    return []


def _constants(own: Sequence[Debit], config: FederationConfig, site: AuditedSite) -> list[str]:
    """Whether each debit is for the mechanism that terms and configuration describe."""
    terms = site.terms
    if terms is None:
        return ["the run has no terms for this site"] if own else []
    kind: type[Event] = DpSgdEvent if config.privacy.mode == "local" else DistributedDpSgdEvent
    faults = []
    for debit in own:
        event = debit.event
        if isinstance(event, NonPrivateEvent):
            continue
        if not isinstance(event, kind) or not isinstance(event, DpSgdEvent | DistributedDpSgdEvent):
            faults.append(f"entry {debit.sequence} is of kind {event.kind}, not {kind.kind}")
            continue
        steps = config.train.steps_per_round if kind is DpSgdEvent else 1
        pairs: dict[str, tuple[float, float]] = {
            "noise_multiplier": (event.noise_multiplier, terms.noise_multiplier),
            "sample_rate": (event.sample_rate, terms.sample_rate),
            "max_batch_size": (event.max_batch_size, terms.max_batch_size),
            "max_examples": (event.max_examples, terms.max_examples),
            "max_grad_norm": (event.max_grad_norm, config.privacy.max_grad_norm),
            "steps": (event.steps, steps),
        }
        faults += [
            f"entry {debit.sequence} has {name} {number(charged)}, the run's terms {number(agreed)}"
            for name, (charged, agreed) in pairs.items()
            if charged != agreed
        ]
    return faults + _rate(config, site, terms)


def _rate(config: FederationConfig, site: AuditedSite, terms: DpSgdTerms) -> list[str]:
    """The rate must be at least what the public sizes say that a step needs."""
    public = config.train.global_batch_size / site.num_examples
    if config.privacy.mode == "local" and terms.sample_rate < min(1.0, public) * (1 - 1e-9):
        return [f"the sampling rate {terms.sample_rate:g} is below batch / records, {public:g}"]
    return []


def _uncut(events: Sequence[Event], report: EpsilonReport) -> float | None:
    if report.prv is None:
        return None
    return pld_epsilon(merge(events).gaussian_only, report.delta, truncated=False)


def _accountants(report: EpsilonReport, uncut: float | None) -> list[str]:
    """All three over the same steps, and the number that counts not below them."""
    faults = []
    if report.alarm is not None and (report.prv is not None or report.alarm.startswith("PLD")):
        faults.append(report.alarm)
    if uncut is not None and report.prv is not None and report.rdp is not None:
        allowed = max(_MESH, AGREEMENT * uncut)
        if abs(report.prv - uncut) > allowed or report.prv - report.epsilon > allowed:
            faults.append(f"PLD gives epsilon {uncut:.4f}, PRV {report.prv:.4f}")
        if report.rdp < report.prv - _MESH:
            faults.append(f"RDP gives epsilon {report.rdp:.4f}, below PRV's {report.prv:.4f}")
    return faults


def _gap(said: float | None, computed: float) -> float:
    """How far a statement is from what was computed; 0 where it is near enough."""
    if said is None or not math.isfinite(computed):
        return 0.0 if said is None and not math.isfinite(computed) else -math.inf
    gap = said - computed
    return 0.0 if abs(gap) <= max(0.005, 0.001 * computed) else gap


def _stated(said: Statement | None, report: EpsilonReport) -> list[str]:
    if said is None:
        return []
    if said.private != report.private:
        which = "private" if said.private else "not private"
        return [f"{said.where} calls the site {which}, its ledger says otherwise"]
    if _gap(said.epsilon, report.epsilon) != 0:
        stated = "none" if said.epsilon is None else f"{said.epsilon:.4f}"
        return [f"{said.where} states epsilon {stated}, the ledger costs {report.epsilon:.4f}"]
    return []


def _earlier(said: Sequence[Statement], site: AuditedSite, report: EpsilonReport) -> list[str]:
    """The first round's statement again in full; the others may only grow, up to the last."""
    faults = []
    if said and said[0].sequence is not None and site.ledger is not None:
        events = [debit.event for debit in debits(site.ledger, until=said[0].sequence)]
        faults += _stated(said[0], epsilon_report(events, said[0].delta))
    epsilons = [one.epsilon for one in said if one.epsilon is not None]
    if any(later < earlier for earlier, later in itertools.pairwise(epsilons)):
        faults.append("the stated epsilon falls from one round to the next")
    if epsilons and max(epsilons) > report.epsilon + max(0.005, 0.001 * report.epsilon):
        faults.append("a round states more than the ledger costs at the end")
    return faults


def _result(found: list[_Site], cut: list[str]) -> TestResult:
    bad = [site for site in found if site.faults]
    doubts = [site for site in found if site.doubts]
    verdict = Verdict.INCONCLUSIVE if doubts or cut else Verdict.PASS
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if bad else verdict,
        headline=_headline(found, bad, doubts, cut),
        measures=tuple(_measure(site) for site in found),
        smallest_effect=SmallestEffect(
            measure="gap between stated and recomputed epsilon", value=0.005, power=0.99, alpha=1e-3
        ),
        tables=(_table(found), _faults(found)),
        figures=(_figure(found),),
        notes=_notes(found),
    )


def _headline(found: list[_Site], bad: list[_Site], doubts: list[_Site], cut: list[str]) -> str:
    if bad:
        more = (
            f" (and {sum(len(s.faults) for s in bad) - 1} more)" if len(bad[0].faults) > 1 else ""
        )
        return f"The accounting of {bad[0].name} does not hold: {bad[0].faults[0]}{more}."
    worst = max(found, key=lambda site: site.report.epsilon)
    if doubts:
        return f"Epsilon could not be checked in full at {listed([s.name for s in doubts])}."
    if cut:
        return f"No time was left to recompute the epsilon of {listed(cut)}."
    if not all(site.from_ledger for site in found):
        return (
            "The stated epsilons are not below what the record's rounds cost; the ledgers "
            "themselves lie at the sites."
        )
    return (
        f"The stated epsilons follow from the ledgers, by three accountants that agree; the "
        f"largest is {at_most(worst.report.epsilon)} ({worst.name}, delta "
        f"{number(worst.report.delta)})."
    )


def _measure(site: _Site) -> Measure:
    epsilon = site.report.epsilon
    said = None if site.said is None else site.said.epsilon
    return Measure(
        name=f"epsilon-{site.name}".replace("_", "-"),
        label=f"Epsilon of {site.name}, recomputed",
        value=epsilon if math.isfinite(epsilon) else None,
        limit=said,
    )


def _table(found: list[_Site]) -> Table:
    def row(site: _Site) -> tuple[Cell, ...]:
        report = site.report
        epsilon = report.epsilon if math.isfinite(report.epsilon) else None
        said = None if site.said is None else site.said.epsilon
        return site.name, report.delta, said, epsilon, site.uncut, report.prv, report.rdp

    return Table(
        title="Epsilon by site over its ledger's whole life",
        columns=("site", "delta", "stated", "PLD", "PLD, uncut", "PRV", "RDP"),
        rows=tuple(row(site) for site in found),
        note=f"For adding or removing one record ({found[0].report.neighbouring}). Uncut: as if no "
        "batch were ever cut to its largest size, as PRV and RDP take it.",
    )


def _faults(found: list[_Site]) -> Table:
    return Table(
        title="What does not hold",
        columns=("site", "finding"),
        rows=tuple((site.name, fault) for site in found for fault in site.faults[:20]),
    )


def _figure(found: list[_Site]) -> Figure:
    names = tuple(site.name for site in found)

    def of(values: list[float | None]) -> tuple[float, ...]:
        return tuple(0.0 if v is None or not math.isfinite(v) else v for v in values)

    return Figure(
        kind="bars",
        title="Epsilon by three accountants",
        caption="PLD is what counts; PRV must agree with it but for batches that are cut.",
        alternative="; ".join(f"{s.name} {s.report.epsilon:.3f}" for s in found),
        x_label="site",
        y_label="epsilon",
        series=(
            Series(name="PLD", x=names, y=of([site.report.epsilon for site in found])),
            Series(name="PRV", x=names, y=of([site.report.prv for site in found])),
            Series(name="RDP", x=names, y=of([site.report.rdp for site in found])),
        ),
    )


def _notes(found: list[_Site]) -> tuple[str, ...]:
    notes = [
        "Epsilon is for one record more or less; replacing one record, or a person with several "
        "records, costs more (C8).",
    ]
    away = [site.name for site in found if not site.from_ledger]
    if away:
        notes.append(
            f"The ledger of {listed(away)} is not at hand: earlier runs and failed rounds are in "
            "what the site states, and cannot be recomputed here."
        )
    notes += [f"{site.name}: {doubt}" for site in found for doubt in site.doubts]
    return tuple(notes)


TESTS: Final[tuple[AuditTest, ...]] = (Accounting(),)
