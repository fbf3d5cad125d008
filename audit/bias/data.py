"""B7: the data before training: who is there, at which site, and with which labels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from audit.bias.gaps import Findings, gap_table, line_up, rate_figure, rate_tables
from audit.bias.groups import why_not
from audit.bias.rates import MIN_CELL, Metric, Sums, label_shares
from audit.bias.tallies import Tally, label_counts, tallies_of
from audit.federated_counts import FederatedCounts
from audit.subject import Subject
from audit.verdicts import (
    QUICK,
    AuditTest,
    Budget,
    Cell,
    Figure,
    Measure,
    NotRun,
    Table,
    TestCard,
    TestResult,
    Verdict,
)


class Data:
    """Looks at labels and groups at each site; the model plays no part."""

    card = TestCard(
        id="B7",
        title="Groups in the data",
        question="Were groups missing, rare or labelled differently before any training?",
        tier="bias",
        threat_model="No attacker: what the data would teach any model.",
        assumes=(
            "The groups and labels in the sites' columns are right.",
            "Records count as independent.",
        ),
        suites=QUICK,
        cost_seconds=2.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Compares the labels of every two groups, of all sites and within each."""
        reason = why_not(subject)
        if reason is not None:
            return NotRun(test=self.card.id, reason=reason)
        counts: FederatedCounts | None = subject.federated
        return judge_data(label_counts(subject) if counts is None else counts, subject)


def judge_data(counts: FederatedCounts, subject: Subject) -> TestResult:
    """The result of B7 from counts."""
    tolerance = subject.config.audit.tolerance
    metrics = label_shares(counts.labels)
    main = tuple(metric.name for metric in metrics)
    tallies = tallies_of(counts, "all")
    single = [tally for tally in tallies if tally.single]
    within = (
        [] if len(counts.sites) < 2 else [_at(t, n) for t in single for n in range(len(t.sites))]
    )
    lined_up = line_up([*tallies, *within], metrics, main=main, tolerance=tolerance)
    findings = lined_up.findings(subject.seed.generator("bias/data"))
    rare = _rare(single, metrics[0])
    verdict = findings.verdict(tolerance, main)
    if verdict is Verdict.PASS and rare:
        verdict = Verdict.INCONCLUSIVE
    title = "Labels by"
    return TestResult(
        test=Data.card.id,
        verdict=verdict,
        headline=_headline(findings, verdict, rare, tolerance),
        measures=_measures(findings, tolerance),
        smallest_effect=findings.smallest_effect,
        p_value=findings.p_value,
        tables=(
            *(_presence_table(tally, metrics[0]) for tally in single),
            gap_table(findings, tolerance),
            *rate_tables(tallies, metrics, title=title, note="Members and held out together."),
        ),
        figures=_figures(single, metrics),
        notes=_notes(rare, exact=counts.exact),
    )


def _at(tally: Tally, site: int) -> Tally:
    """The same at one site alone."""
    chosen = slice(site, site + 1)
    return replace(
        tally,
        name=f"{tally.name} x {tally.sites[site]}",
        cells=tally.cells[chosen],
        sites=tally.sites[chosen],
        variances=tally.variances[chosen],
        scales=tally.scales[chosen],
    )


def _rare(tallies: Sequence[Tally], everyone: Metric) -> list[str]:
    """Groups with too few records at some site."""
    found = []
    for tally in tallies:
        sums = Sums.of(tally, everyone)
        for site, name in enumerate(tally.sites):
            for group, value in enumerate(tally.groups):
                rate = sums.rate(tally, group, [site])
                if rate is None or not rate.judged:
                    found.append(f"{tally.name} {value} at {name}")
    return found


def _presence_table(tally: Tally, everyone: Metric) -> Table:
    sums = Sums.of(tally, everyone)
    rows: list[tuple[Cell, ...]] = []
    for site, name in enumerate(tally.sites):
        rates = [sums.rate(tally, group, [site]) for group in range(len(tally.groups))]
        sizes = [r.trials if r is not None and r.trials >= MIN_CELL else None for r in rates]
        total = max(int(sums.whole[site].sum()), 1)
        shares = [None if size is None else round(size / total, 6) for size in sizes]
        rows.append((name, *(cell for both in zip(sizes, shares, strict=True) for cell in both)))
    columns = [part for value in tally.groups for part in (f"{value}, records", f"{value}, share")]
    return Table(
        title=f"Who is there, by {tally.name}",
        columns=("site", *columns),
        rows=tuple(rows),
        note=f"Fewer than {MIN_CELL} records are suppressed.",
    )


def _measures(findings: Findings, tolerance: float) -> tuple[Measure, ...]:
    largest = max(findings.gaps, key=lambda gap: gap.interval.low, default=None)
    if largest is None:
        return ()
    return (
        Measure(
            name="label-gap",
            label=f"surest gap between groups: {largest.metric}, {largest.tally}",
            value=largest.size,
            interval=largest.interval,
            limit=tolerance,
        ),
    )


def _headline(findings: Findings, verdict: Verdict, rare: Sequence[str], tolerance: float) -> str:
    beyond = findings.beyond(tolerance)
    points = f"{100 * tolerance:.0f} points"
    if beyond:
        gap = beyond[0]
        return (
            f"The data itself differ: the {gap.metric} is {100 * gap.size:.1f} points lower for "
            f"{gap.worse} than for {gap.better} ({gap.tally}), surely by more than the "
            f"{points} that are tolerated."
        )
    largest = max(findings.gaps, key=lambda gap: gap.size, default=None)
    if largest is None:
        return "No two groups have enough records for their labels to be compared."
    if verdict is Verdict.PASS:
        return (
            "No group is missing at any site, and no label is surely rarer in one group by more "
            f"than the {points} that are tolerated."
        )
    few = f"; too rare at some site to be judged there: {', '.join(rare[:5])}" if rare else ""
    if largest.size > tolerance:
        return (
            f"Whether labels differ by more than is tolerated remains open: the {largest.metric} "
            f"is {100 * largest.size:.1f} points lower for {largest.worse} than for "
            f"{largest.better} ({largest.tally}), but not surely by more than {points}{few}."
        )
    if rare:
        return f"Some groups are too rare at some site to be judged there: {', '.join(rare[:5])}."
    return f"There are too few records to rule out labels that differ by more than {points}."


def _figures(tallies: Sequence[Tally], metrics: Sequence[Metric]) -> tuple[Figure, ...]:
    figure = rate_figure(
        tallies,
        metrics[0],
        title=f"{metrics[0].name[0].upper()}{metrics[0].name[1:]} by group",
        caption="Share of records with this label, 95 % intervals; the tables hold the others.",
    )
    return () if figure is None else (figure,)


def _notes(rare: Sequence[str], *, exact: bool) -> tuple[str, ...]:
    notes = [
        "Groups may truly differ in what they have; this test says that they do, not that it is "
        "wrong. A model may carry such a difference on, and selection rates will show it.",
        "Permutations keep each site's own mix of labels.",
    ]
    if rare:
        notes.append(f"Fewer than {MIN_CELL} records: {', '.join(rare)}.")
    if not exact:
        notes.append("Counts were noised at the sites; the noise is part of every interval.")
    return tuple(notes)


TESTS: Final[tuple[AuditTest, ...]] = (Data(),)
