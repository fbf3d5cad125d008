"""C9: did every site that trained answer the audit? Who is missing may be who is served worst."""

from typing import Final

from audit.federated_counts import FederatedCounts
from audit.subject import Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Measure,
    NotRun,
    Table,
    TestCard,
    TestResult,
    Verdict,
)


class Answers:
    """The sites of the run against those whose counts are at hand."""

    card = TestCard(
        id="C9",
        title="Who answered",
        question="Are the counts of every site that took part in what is judged here?",
        tier="conformance",
        threat_model="A coordinator that leaves a site's answer out, or a site that gives none.",
        assumes=("Counts are not signed by the sites: who gathers them is believed.",),
        suites=CONFORMANCE,
        cost_seconds=0.1,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        if not isinstance(subject.federated, FederatedCounts):
            return NotRun(test=self.card.id, reason="The sites were not asked for counts.")
        answered = {site.site for site in subject.federated.sites}
        missing = sorted(subject.sites.keys() - answered)
        verdict, headline = Verdict.PASS, "Every site that took part is in the counts."
        if missing:
            verdict = Verdict.INCONCLUSIVE
            headline = (
                f"What is said of groups leaves out {', '.join(missing)}, which gave no counts."
            )
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=headline,
            measures=(
                Measure(
                    name="sites-without-counts",
                    label="Sites that took part and gave no counts",
                    value=float(len(missing)),
                    limit=0.0,
                ),
            ),
            tables=(
                Table(
                    title="Counts by site",
                    columns=("site", "counts"),
                    rows=tuple(
                        (site, "given" if site in answered else "none")
                        for site in sorted(subject.sites)
                    ),
                ),
            ),
        )


TESTS: Final[tuple[AuditTest, ...]] = (Answers(),)
