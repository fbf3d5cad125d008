"""F1: which words a small site has, read off the rows of the embedding in its update."""

from typing import Final

import numpy as np

from audit.federation.updates import (
    ALPHA,
    EMBEDDING,
    POWER,
    judge,
    notes_on,
    observable,
    round_update,
    sampled,
)
from audit.intervals import AucEstimate, delong, smallest_auc
from audit.subject import Subject
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Measure,
    NotRun,
    SmallestEffect,
    TestCard,
    TestResult,
    Verdict,
)

_RECORDS: Final = 16
_HARMFUL: Final = 0.6
_MIN_TOKENS: Final = 10


class EmbeddingRows:
    """One round on a few records; a token's score is how far its row moved."""

    card = TestCard(
        id="F1",
        title="Words in an update",
        question="Can whoever receives a site's update tell which words its texts use?",
        tier="federation",
        threat_model="The coordinator, curious: sees one site's update as it is sent.",
        assumes=(
            f"The site holds {_RECORDS} records and trains one round from the initial weights.",
            "Words that many records share are not what record-level privacy protects.",
        ),
        suites=FULL,
        cost_seconds=5.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        sites = subject.with_records
        if not sites:
            return NotRun(test=self.card.id, reason="No site's records are at hand.")
        site = min(sites.values(), key=lambda s: s.name)
        if len(site.members) < _RECORDS:
            return NotRun(test=self.card.id, reason=f"{site.name} has too few records.")
        rng = subject.seed.generator("federation/embedding-rows")
        records = sampled(site.members, _RECORDS, rng)
        _, update = round_update(
            subject, records, name="embedding-rows", site=site, from_start=True
        )
        if EMBEDDING not in update:
            return NotRun(test=self.card.id, reason="The embedding is not trained.")
        moved = np.linalg.norm(update[EMBEDDING].astype(np.float64), axis=1)
        present = np.zeros(len(moved), dtype=bool)
        for record in records:
            present[list(subject.blueprint.task.encode(record).tokens)] = True
        if not _MIN_TOKENS <= int(present.sum()) <= len(present) - _MIN_TOKENS:
            return NotRun(test=self.card.id, reason="Nearly all tokens occur, or nearly none.")
        found = delong(moved[present], moved[~present])
        seen = observable(subject)
        verdict = judge(found.interval, _HARMFUL, observable=seen)
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(verdict, found, seen=seen, private=subject.private),
            measures=(
                Measure(
                    name="embedding-row-auc",
                    label="Area under the curve: words that occur against words that do not",
                    value=found.auc,
                    interval=found.interval,
                    limit=_HARMFUL,
                ),
            ),
            smallest_effect=SmallestEffect(
                measure="area under the curve",
                value=smallest_auc(
                    int(present.sum()), int((~present).sum()), POWER, ALPHA, beyond=_HARMFUL
                ),
                power=POWER,
                alpha=ALPHA,
            ),
            notes=(
                "The interval is of the words of one update: another round draws other noise.",
                *notes_on(subject),
            ),
        )


def _headline(verdict: Verdict, found: AucEstimate, *, seen: bool, private: bool) -> str:
    if not seen:
        return "Nobody but the site sees its update, so nobody can look for its words there."
    if verdict is Verdict.PASS and found.interval.low > 0.5:
        return (
            "The update of a small site tells a little of which words its texts use: a used word "
            f"stands out from an unused one in {found.auc:.0%} of the pairs, where guessing "
            "gives 50%."
        )
    if verdict is Verdict.PASS:
        return "The update of a small site was not seen to tell which words its texts use."
    if verdict is Verdict.FAIL:
        noise = "in spite of the noise " if private else ""
        return f"Whoever receives a small site's update can tell {noise}which words its texts use."
    if found.interval.low > 0.5:
        return (
            "The update of a small site tells something of its words (right in "
            f"{found.interval.low:.0%} to {found.interval.high:.0%} of the pairs); whether enough "
            "to do harm remains open."
        )
    return "Whether the update of a small site tells its words could not be decided."


TESTS: Final[tuple[AuditTest, ...]] = (EmbeddingRows(),)
