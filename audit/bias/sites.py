"""B2: is some site served worse? The worst, the tenth percentile, and each against the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from audit.bias.gaps import ALPHA, DRAWS_PER_TEST, FEWEST_DRAWS, MATTERS, rate_tables
from audit.bias.groups import why_no_counts
from audit.bias.permutations import Strata, dependence
from audit.bias.rates import (
    MIN_CELL,
    Metric,
    Rate,
    Sums,
    accuracy,
    detectable,
    difference,
    error_rates,
    metrics_of,
)
from audit.bias.tallies import (
    Side,
    Tally,
    counts_of_scored,
    scored_sites,
    tally_of_sites,
)
from audit.federated_counts import FederatedCounts
from audit.intervals import holm
from audit.subject import Subject
from audit.verdicts import (
    QUICK,
    AuditTest,
    Budget,
    Cell,
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)


@dataclass(frozen=True)
class _Against:
    """One site against all others, in one metric."""

    site: str
    metric: str
    own: Rate
    rest: Rate
    interval: Interval
    """Of ``rest - own`` in accuracy and TPR, ``own - rest`` in FPR: above 0 is worse."""
    p_value: float

    def surely_worse(self, tolerance: float) -> bool:
        return self.interval.low > tolerance and self.p_value <= ALPHA


class Sites:
    """Compares how the model serves sites."""

    card = TestCard(
        id="B2",
        title="Bias by site",
        question="Does the model serve some organisation's people worse than the others'?",
        tier="bias",
        threat_model="No attacker: a site that gives its data and gets a worse model for it.",
        assumes=(
            "The labels at the sites are right.",
            "Records count as independent; several records of one person make intervals a "
            "little too narrow.",
        ),
        suites=QUICK,
        cost_seconds=5.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Compares each site with all others."""
        reason = why_no_counts(subject)
        if reason is not None:
            return NotRun(test=self.card.id, reason=reason)
        counts: FederatedCounts | None = subject.federated
        if counts is None:
            counts = counts_of_scored(subject, scored_sites(subject))
        if len(counts.sites) < 2:
            return NotRun(test=self.card.id, reason="one site alone has none to compare with")
        return judge_sites(counts, subject)


def judge_sites(counts: FederatedCounts, subject: Subject) -> TestResult:
    """The result of B2 from counts."""
    tolerance = subject.config.audit.tolerance
    side, tally, compared = _compare(counts, subject)
    worse = sorted(
        (each for each in compared if each.surely_worse(tolerance)),
        key=lambda each: -each.interval.low,
    )
    missing = _too_few(tally, len(counts.labels))
    power = _power(compared, tolerance)
    verdict = Verdict.PASS
    if worse:
        verdict = Verdict.FAIL
    elif (
        missing or power is None or power.value > MATTERS * tolerance or _open(compared, tolerance)
    ):
        verdict = Verdict.INCONCLUSIVE
    named = list(dict.fromkeys(each.site for each in worse))
    return TestResult(
        test=Sites.card.id,
        verdict=verdict,
        headline=_headline(verdict, named, compared, tolerance),
        measures=_measures(tally, len(counts.labels)),
        smallest_effect=power,
        p_value=min((each.p_value for each in compared), default=None),
        tables=(
            _site_table(compared, tally, len(counts.labels), tolerance),
            *rate_tables(
                [_by_site(tally)],
                metrics_of(counts.labels),
                title="Rates by site",
                note="Selection rates and PPV follow what a site sees; they decide nothing here.",
            ),
        ),
        figures=_figures(tally, len(counts.labels)),
        notes=_notes(side, missing, exact=counts.exact),
    )


def _compare(counts: FederatedCounts, subject: Subject) -> tuple[Side, Tally, tuple[_Against, ...]]:
    tolerance = subject.config.audit.tolerance
    metrics = (accuracy(len(counts.labels)), *error_rates(counts.labels))
    sides: tuple[Side, ...] = ("held out", "all")
    for side in sides:
        tally = tally_of_sites(counts, side)
        paired = [pair for metric in metrics for pair in _pairs(tally, metric)]
        main = [p for p in paired if p[0].name == "accuracy"]
        power = max((_detects(p, len(paired), tolerance) for p in main), default=1.0)
        if len(main) == len(tally.sites) and power <= MATTERS * tolerance:
            break
    rng = subject.seed.generator("bias/sites")
    draws = max(FEWEST_DRAWS, DRAWS_PER_TEST * len(paired))
    raw = [_p_value(tally, metric, site, rng, draws) for metric, site, _, _ in paired]
    p_values = holm(raw) if raw else []
    confidence = 1 - ALPHA / max(len(paired), 1)
    found = []
    for (metric, site, own, rest), p_value in zip(paired, p_values, strict=True):
        low, high = (rest, own) if metric.name.startswith("FPR") else (own, rest)
        interval = difference(high, low, confidence)
        found.append(_Against(tally.sites[site], metric.name, own, rest, interval, p_value))
    return side, tally, tuple(found)


_Pair = tuple[Metric, int, Rate, Rate]


def _pairs(tally: Tally, metric: Metric) -> list[_Pair]:
    sums = Sums.of(tally, metric)
    sites = range(len(tally.sites))
    found = []
    for site in sites:
        own = sums.rate(tally, 0, [site])
        rest = sums.rate(tally, 0, [other for other in sites if other != site])
        if own is not None and rest is not None and own.judged and rest.judged:
            found.append((metric, site, own, rest))
    return found


def _detects(pair: _Pair, pairs: int, tolerance: float) -> float:
    return detectable(pair[2], pair[3], alpha=ALPHA / pairs, tolerance=tolerance)


def _p_value(
    tally: Tally, metric: Metric, site: int, rng: np.random.Generator, draws: int
) -> float:
    """Of the site being one like the others: which site a record lies at is permuted."""
    strata = Strata.site_against_rest(Sums.of(tally, metric), tally, site)
    return dependence(strata, rng, draws)


def _open(compared: Sequence[_Against], tolerance: float) -> bool:
    """Whether some site's accuracy may be worse by more than the tolerance."""
    main = [each for each in compared if each.metric == "accuracy"]
    return any(each.rest.value - each.own.value > tolerance for each in main)


def _too_few(tally: Tally, labels: int) -> list[str]:
    sums = Sums.of(tally, accuracy(labels))
    rates = [sums.rate(tally, 0, [site]) for site in range(len(tally.sites))]
    judged = [rate is not None and rate.judged for rate in rates]
    return [site for site, enough in zip(tally.sites, judged, strict=True) if not enough]


def _power(compared: Sequence[_Against], tolerance: float) -> SmallestEffect | None:
    alpha = ALPHA / max(len(compared), 1)
    main = [each for each in compared if each.metric == "accuracy"]
    found = [detectable(e.own, e.rest, alpha=alpha, tolerance=tolerance) for e in main]
    if not found:
        return None
    return SmallestEffect(
        measure="gap in accuracy between a site and all others",
        value=max(found),
        power=0.95,
        alpha=ALPHA,
    )


def _headline(
    verdict: Verdict, named: Sequence[str], compared: Sequence[_Against], tolerance: float
) -> str:
    points = f"{100 * tolerance:.0f} points"
    if named:
        many = "sites are" if len(named) > 1 else "site is"
        return (
            f"{len(named)} {many} surely served worse than the others by more than the {points} "
            f"that are tolerated: {', '.join(named)}."
        )
    main = [each for each in compared if each.metric == "accuracy"]
    if not main:
        return "No site has enough records to be compared with the others."
    worst = max(main, key=lambda each: each.rest.value - each.own.value)
    gap = max(100 * (worst.rest.value - worst.own.value), 0.0)
    told = f"the worst, {worst.site}, is {gap:.1f} points below the others in accuracy"
    if verdict is Verdict.PASS:
        return f"No site is surely served worse than the others by more than {points}: {told}."
    return f"Whether a site is served worse than is tolerated remains open: {told}."


def _accuracies(tally: Tally, labels: int) -> dict[str, Rate]:
    sums = Sums.of(tally, accuracy(labels))
    found = {site: sums.rate(tally, 0, [number]) for number, site in enumerate(tally.sites)}
    return {site: rate for site, rate in found.items() if rate is not None and rate.judged}


def _measures(tally: Tally, labels: int) -> tuple[Measure, ...]:
    rates = _accuracies(tally, labels)
    if not rates:
        return ()
    values = [rate.value for rate in rates.values()]
    site, worst = min(rates.items(), key=lambda item: item[1].value)
    return (
        Measure(
            name="worst-site-accuracy",
            label=f"accuracy at the worst site ({site})",
            value=worst.value,
            interval=worst.interval(1 - ALPHA / len(rates)),
        ),
        Measure(
            name="site-accuracy-p10",
            label="accuracy that nine of ten sites exceed (10th percentile)",
            value=float(np.quantile(values, 0.1)),
        ),
        Measure(
            name="site-accuracy-range",
            label="best minus worst site's accuracy",
            value=max(values) - min(values),
        ),
    )


def _site_table(compared: Sequence[_Against], tally: Tally, labels: int, tolerance: float) -> Table:
    sums = Sums.of(tally, accuracy(labels))
    everyone = sums.rate(tally, 0)
    rows: list[tuple[Cell, ...]] = []
    for site, name in enumerate(tally.sites):
        own = next((e for e in compared if e.site == name and e.metric == "accuracy"), None)
        others = [other for other in range(len(tally.sites)) if other != site]
        rest = sums.rate(tally, 0, others)
        if own is None or rest is None or everyone is None:
            rows.append((name, *(None,) * 7))
            continue
        bad = [e.metric for e in compared if e.site == name and e.surely_worse(tolerance)]
        without = rest.value - everyone.value
        limits = own.interval.low, own.interval.high
        figures = (own.own.value, own.rest.value, *limits, own.p_value, without)
        rows.append((name, *(round(f, 6) for f in figures), ", ".join(bad) or "none"))
    return Table(
        title="Each site against all others",
        columns=(
            *("site", "accuracy", "accuracy of the others", "gap, low", "gap, high", "p (Holm)"),
            *("accuracy without this site, change", "surely worse in"),
        ),
        rows=tuple(rows),
        note=(
            "Limits hold for all sites and metrics together (95 %, Bonferroni). Sites of fewer "
            f"than {MIN_CELL} records are suppressed."
        ),
    )


def _by_site(tally: Tally) -> Tally:
    """The sites as groups of one table."""
    return Tally(
        name="",
        groups=tally.sites,
        cells=tally.cells.swapaxes(0, 1),
        merged=tally.merged,
        sites=("all",),
        variances=(max(tally.variances),),
        scales=(None,),
    )


def _figures(tally: Tally, labels: int) -> tuple[Figure, ...]:
    rates = _accuracies(tally, labels)
    if not rates:
        return ()
    limits = [rate.interval() for rate in rates.values()]
    told = ", ".join(f"{site} {rate.value:.3f}" for site, rate in rates.items())
    return (
        Figure(
            kind="intervals",
            title="Accuracy by site",
            caption="Share of right predictions at each site with 95 % intervals.",
            alternative=f"Accuracy by site: {told}.",
            x_label="site",
            y_label="accuracy",
            series=(
                Series(
                    name="accuracy",
                    x=tuple(rates),
                    y=tuple(rate.value for rate in rates.values()),
                    low=tuple(limit.low for limit in limits),
                    high=tuple(limit.high for limit in limits),
                ),
            ),
        ),
    )


def _notes(side: Side, missing: Sequence[str], *, exact: bool) -> tuple[str, ...]:
    notes = [
        "A site may do worse because its records are harder, not because the model neglects it.",
        "Judged by accuracy, TPR and FPR.",
    ]
    if side == "all":
        notes.append(
            "There were too few held-out records, so the model is judged on its training records "
            "too; where it has memorised them, gaps for new people may be larger."
        )
    if missing:
        notes.append(f"Too few records to be judged: {', '.join(missing)}.")
    if not exact:
        notes.append("Counts were noised at the sites; the noise is part of every interval.")
    return tuple(notes)


TESTS: Final[tuple[AuditTest, ...]] = (Sites(),)
