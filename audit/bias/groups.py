"""B1: is anyone served worse? Accuracy, selection and errors by group and intersection."""

from collections.abc import Sequence
from typing import Final

from audit.bias.calibration import score_table
from audit.bias.gaps import Findings, Gap, gap_table, line_up, rate_figure, rate_tables
from audit.bias.rates import accuracy, metrics_of
from audit.bias.tallies import (
    ScoredSite,
    Side,
    Tally,
    counts_of_scored,
    scored_sites,
    tallies_of,
)
from audit.federated_counts import FederatedCounts
from audit.subject import Subject
from audit.verdicts import (
    QUICK,
    AuditTest,
    Budget,
    Figure,
    Measure,
    NotRun,
    TestCard,
    TestResult,
    Verdict,
)

_MAIN: Final = ("accuracy",)


def why_not(subject: Subject) -> str | None:
    """Why groups cannot be compared; ``None`` where they can."""
    if subject.config.task.kind != "classification":
        return "the task has no labels, so nothing counts as served right or wrong"
    if not subject.config.audit.attributes:
        return "the federation names no audit.attributes to compare"
    return why_no_counts(subject)


def why_no_counts(subject: Subject) -> str | None:
    """Why there is nothing to count; ``None`` where there is."""
    if subject.config.task.kind != "classification":
        return "the task has no labels to count"
    if subject.federated is None and not subject.with_records:
        return "no site's records are at hand, and no site was asked for its counts"
    return None


class Groups:
    """Compares how the model serves groups."""

    card = TestCard(
        id="B1",
        title="Bias by group",
        question="Does the model serve some groups of people worse than others?",
        tier="bias",
        threat_model="No attacker: people who are served worse by the released model.",
        assumes=(
            "The groups and labels in the sites' columns are right.",
            "Records count as independent; several records of one person make intervals a "
            "little too narrow.",
        ),
        suites=QUICK,
        cost_seconds=5.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Compares every two groups by every metric."""
        reason = why_not(subject)
        if reason is not None:
            return NotRun(test=self.card.id, reason=reason)
        counts: FederatedCounts | None = subject.federated
        sites: tuple[ScoredSite, ...] = ()
        if counts is None:
            sites = scored_sites(subject)
            counts = counts_of_scored(subject, sites)
        return judge_groups(counts, sites, subject)


def judge_groups(
    counts: FederatedCounts, sites: Sequence[ScoredSite], subject: Subject
) -> TestResult:
    """The result of B1 from counts and, where records are at hand, their scores."""
    tolerance = subject.config.audit.tolerance
    side, tallies, findings = compare_groups(counts, tolerance, subject)
    metrics = metrics_of(counts.labels)
    tables = [
        gap_table(findings, tolerance),
        *rate_tables(tallies, metrics, title="Rates by", note=f"Records: {_whose(side)}."),
    ]
    if sites:
        tables.append(score_table(sites, counts.attributes, held_out_only=side == "held out"))
    return TestResult(
        test=Groups.card.id,
        verdict=findings.verdict(tolerance, _MAIN),
        headline=_headline(findings, tolerance),
        measures=_measures(findings, tolerance),
        smallest_effect=findings.smallest_effect,
        p_value=findings.p_value,
        tables=tuple(tables),
        figures=_figures(tallies, len(counts.labels), side),
        notes=_notes(findings, side, exact=counts.exact),
    )


def compare_groups(
    counts: FederatedCounts, tolerance: float, subject: Subject
) -> tuple[Side, tuple[Tally, ...], Findings]:
    """Held-out records where they suffice for a verdict, else these and the members together."""
    metrics = metrics_of(counts.labels)
    sides: tuple[Side, ...] = ("held out", "all")
    for side in sides:
        tallies = tallies_of(counts, side)
        lined_up = line_up(tallies, metrics, main=_MAIN, tolerance=tolerance)
        if lined_up.suffices(tolerance):
            break
    return side, tallies, lined_up.findings(subject.seed.generator("bias/groups"))


def _measures(findings: Findings, tolerance: float) -> tuple[Measure, ...]:
    surest = findings.surest("accuracy")
    between = "" if surest is None else f": {surest.worse} against {surest.better}"
    return (
        Measure(
            name="accuracy-gap",
            label=f"surest gap in accuracy between groups of an attribute{between}",
            value=None if surest is None else surest.size,
            interval=None if surest is None else surest.interval,
            limit=tolerance,
        ),
    )


def _headline(findings: Findings, tolerance: float) -> str:
    beyond = findings.beyond(tolerance)
    if beyond:
        return _sentence(beyond[0], tolerance)
    if not findings.gaps:
        return "No two groups have enough records to be compared."
    largest = findings.largest("accuracy")
    if largest is None:
        return "No attribute has two groups with enough records; see the table for the rest."
    told = (
        f"the largest gap in accuracy is {100 * largest.size:.1f} points "
        f"({largest.worse} against {largest.better})"
    )
    if findings.verdict(tolerance, _MAIN) is Verdict.PASS:
        return f"No group is surely served worse than another by more than is tolerated: {told}."
    return f"Whether a group is served worse than is tolerated remains open: {told}."


def _sentence(gap: Gap, tolerance: float) -> str:
    return (
        f"{gap.metric[0].upper()}{gap.metric[1:]} is {100 * gap.size:.1f} points lower for "
        f"{gap.worse} than for {gap.better}, and surely by more than the "
        f"{100 * tolerance:.0f} points that are tolerated."
    )


def _whose(side: Side) -> str:
    return "those held out of training" if side == "held out" else "members and held out together"


def _figures(tallies: Sequence[Tally], labels: int, side: Side) -> tuple[Figure, ...]:
    figure = rate_figure(
        tallies,
        accuracy(labels),
        title="Accuracy by group",
        caption=f"Share of right predictions with 95 % intervals; records: {_whose(side)}. Where "
        "intervals lie far apart, one group is served worse.",
    )
    return () if figure is None else (figure,)


def _notes(findings: Findings, side: Side, *, exact: bool) -> tuple[str, ...]:
    notes = [
        "Selection rates and PPV may differ because the groups' true labels do: see the test of "
        "the data before training.",
        "A gap that goes along with the sites alone is no finding here: see the test by site.",
    ]
    if side == "all":
        notes.append(
            "There were too few held-out records, so the model is judged on its training records "
            "too; where it has memorised them, gaps for new people may be larger."
        )
    if findings.too_few:
        notes.append(f"Too few records to be judged: {', '.join(findings.too_few)}.")
    if not exact:
        notes.append("Counts were noised at the sites; the noise is part of every interval.")
    return tuple(notes)


TESTS: Final[tuple[AuditTest, ...]] = (Groups(),)
