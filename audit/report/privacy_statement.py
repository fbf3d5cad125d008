"""The statement of differential privacy: what was promised, to whom, and what it means."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from audit.gates import EPSILON_PROVEN
from audit.report.document import PrivacyStatement, SitePrivacy, Spending
from audit.report.words import at_least, at_most, number, percent
from audit.subject import AuditedSite, Subject
from audit.verdicts import Figure, Series, TestResult
from core.messages import SpentBudget
from core.run_record import RunRecord
from privacy.accounting import NEIGHBOURING, epsilon_report
from privacy.events import DpSgdEvent, Event, constants_of, event_from_json
from privacy.ledger_entries import Entry

_MAX_EXPONENT = 700.0  # of exp() in double precision
_LITTLE, _MODERATE = 0.75, 0.95


def privacy_statement(subject: Subject, results: Sequence[TestResult]) -> PrivacyStatement:
    """The statement, with every epsilon computed anew from the ledgers that are at hand.

    Raises:
        CloisterError: A ledger's events cannot be accounted for.
    """
    delta = subject.config.privacy.target_delta
    sites = tuple(_site(site, subject.record, delta) for _, site in sorted(subject.sites.items()))
    section = subject.config.secure_aggregation
    return PrivacyStatement(
        mode=subject.config.privacy.mode,
        private=bool(sites) and all(site.private for site in sites),
        unit=subject.config.privacy.unit,
        neighbouring=NEIGHBOURING,
        secure_aggregation=section is not None,
        trust=_trust(subject),
        odds=_odds(sites),
        sites=sites,
        figure=epsilon_figure(sites, results),
    )


def best_guess(epsilon: float | None, delta: float) -> float:
    """How often a guess whether one record was used can be right, where a coin is half the time.

    Returns:
        (exp(epsilon) + delta) / (1 + exp(epsilon)); 1 without a bound.

    Source: Kairouz, Oh and Viswanath, The Composition Theorem for Differential Privacy, 2015.
    """
    if epsilon is None:
        return 1.0
    ratio = math.exp(-min(epsilon, _MAX_EXPONENT))
    return min(1.0, (1.0 + delta * ratio) / (1.0 + ratio))


def last_reply(record: RunRecord, site: str) -> SpentBudget | None:
    """What a site said of its ledger in the last round that took its update."""
    for line in reversed(record.rounds):
        if site in line["spent"]:
            return SpentBudget(**line["spent"][site])
    return None


def _site(site: AuditedSite, record: RunRecord, delta: float) -> SitePrivacy:
    if site.ledger is not None:
        return _from_ledger(site.name, site.ledger, delta)
    reply = last_reply(record, site.name)
    private = reply is not None and reply.private and reply.epsilon is not None
    if reply is None or not private:
        return SitePrivacy(
            site=site.name,
            private=False,
            epsilon=None,
            delta=delta,
            origin="none" if reply is None else "reply",
            best_guess=1.0,
            spending=(),
        )
    return SitePrivacy(
        site=site.name,
        private=True,
        epsilon=reply.epsilon,
        delta=reply.delta,
        origin="reply",
        best_guess=best_guess(reply.epsilon, reply.delta),
        spending=(),
    )


def _from_ledger(name: str, ledger: Sequence[Entry], delta: float) -> SitePrivacy:
    debits = [
        (str(entry.body["run_id"]), event_from_json(entry.body["event"]))
        for entry in ledger
        if entry.kind == "reserve"
    ]
    found = epsilon_report([event for _, event in debits], delta)
    epsilon = found.epsilon if math.isfinite(found.epsilon) else None
    return SitePrivacy(
        site=name,
        private=found.private and epsilon is not None,
        epsilon=epsilon,
        delta=delta,
        origin="ledger",
        rdp=found.rdp,
        prv=found.prv,
        alarm=found.alarm,
        best_guess=best_guess(epsilon, delta),
        spending=_spending(debits),
    )


@dataclass(frozen=True)
class _Kind:
    """Debits that differ in their steps only."""

    run_id: str
    event: Event


def _spending(debits: Iterable[tuple[str, Event]]) -> tuple[Spending, ...]:
    groups: dict[_Kind, list[Event]] = {}
    for run_id, event in debits:
        constants = constants_of(event)
        if isinstance(constants, DpSgdEvent):
            constants = replace(constants, steps=1)
        groups.setdefault(_Kind(run_id, constants), []).append(event)
    return tuple(_row(kind, events) for kind, events in groups.items())


def _row(kind: _Kind, events: Sequence[Event]) -> Spending:
    steps = [event.steps for event in events]
    constant: dict[str, Any] = {
        name: getattr(kind.event, name, None)
        for name in ("noise_multiplier", "max_grad_norm", "sample_rate", "scale")
    }
    return Spending(
        run_id=kind.run_id,
        kind=kind.event.kind,
        private=kind.event.private,
        releases=len(events),
        steps=None if None in steps else sum(count for count in steps if count is not None),
        **constant,
    )


def _trust(subject: Subject) -> str:
    section = subject.config.secure_aggregation
    mode = subject.config.privacy.mode
    if mode == "none":
        return "There is no promise to rely on: this run added no noise."
    if mode == "distributed" and section is not None:
        return (
            "Each site adds a share of the noise, and only the sum of all sites is opened. The "
            f"promise holds as long as at most {section.colluding_sites} of the sites work "
            "together with the coordinator."
        )
    if mode == "distributed":
        return "Each site adds a share of the noise to what it sends."
    words = (
        "Each site adds all of its noise before anything leaves it. The promise holds even where "
        "the coordinator and all other sites work together against the site."
    )
    if section is not None:
        words += " Besides, the coordinator opens only the sum of the sites' updates."
    return words


def _odds(sites: Sequence[SitePrivacy]) -> str:
    open_sites = [site.site for site in sites if not site.private]
    if open_sites or not sites:
        return (
            f"For {', '.join(open_sites) or 'all sites'} nothing bounds what can be learned: "
            "someone who wants to know whether one record was used may find out for certain."
        )
    worst = max(sites, key=lambda site: (site.best_guess, site.site))
    words = (
        "Someone who knows everything except whether one certain record was used, and would be "
        "right half of the time by tossing a coin, can be right at most "
        f"{percent(worst.best_guess)} times in 100 after seeing everything that was released "
        f"(site {worst.site}, epsilon {at_most(worst.epsilon or 0.0)}). "
    )
    if worst.best_guess <= _LITTLE:
        return words + "This is a strong promise."
    if worst.best_guess <= _MODERATE:
        return words + "This is a moderate promise."
    return words + (
        "By itself this promise excludes little; what attacks could do in fact is measured below."
    )


def epsilon_figure(sites: Sequence[SitePrivacy], results: Sequence[TestResult]) -> Figure | None:
    """Claimed against proven epsilon on one axis; ``None`` where one of them is missing."""
    claims = [(site.site, site.epsilon) for site in sites if site.epsilon is not None]
    bounds = [
        (f"proven by {result.test}", item.value)
        for result in results
        for item in result.measures
        if item.name == EPSILON_PROVEN and item.value is not None
    ]
    if not claims or not bounds:
        return None
    claimed = Series(
        name="claimed: at most",
        x=tuple(name for name, _ in claims),
        y=tuple(epsilon for _, epsilon in claims),
        low=(0.0,) * len(claims),
        high=tuple(epsilon for _, epsilon in claims),
    )
    proven = Series(
        name="proven by attack: at least",
        x=tuple(name for name, _ in bounds),
        y=tuple(epsilon for _, epsilon in bounds),
        low=(0.0,) * len(bounds),
        high=tuple(epsilon for _, epsilon in bounds),
    )
    largest, best = max(claimed.y), max(proven.y)
    relation = "below" if best <= largest else "ABOVE"
    return Figure(
        kind="intervals",
        title="Claimed against proven epsilon",
        caption=f"The claim must lie to the right of what attacks proved. The best attack proved "
        f"at least {at_least(best)}, {relation} the largest claim of {at_most(largest)}.",
        alternative="Points on one axis of epsilon. Claimed: "
        + ", ".join(f"{name} {number(value)}" for name, value in claims)
        + ". Proven: "
        + ", ".join(f"{name} {number(value)}" for name, value in bounds)
        + ".",
        x_label="",
        y_label="epsilon",
        series=(claimed, proven),
        reference=largest,
        reference_label="largest claim",
    )
