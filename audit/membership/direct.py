"""MI1: attacks that ask the released model and nothing else."""

from dataclasses import dataclass
from typing import Final

from audit.membership.attacks import DIRECT
from audit.membership.findings import find
from audit.membership.histograms import result_of_histograms
from audit.membership.results import result_of
from audit.membership.targets import MIN_PER_SIDE, targets_of
from audit.membership.training import QUICK_ROUNDS, control_of
from audit.subject import Subject
from audit.verdicts import QUICK, AuditTest, Budget, NotRun, TestCard, TestResult

CARD: Final = TestCard(
    id="MI1",
    title="Membership inference from the released model",
    question="Can who has the model tell whether a given record was in the training data?",
    tier="records",
    threat_model="Anyone who holds the released model, and the record whose membership he guesses.",
    assumes=(
        "The held-out records were chosen at random from the same site's records, by the seed "
        "that the run committed to.",
    ),
    suites=QUICK,
    cost_seconds=12.0,
)


def why_not(subject: Subject) -> str:
    """Why there is nothing to compare, and what to do."""
    if subject.config.audit.holdout_fraction == 0:
        return (
            "No records were held out of training: set audit.holdout_fraction before the next run."
        )
    if not subject.with_records:
        return "The records lie at their sites, and no site gave a histogram of its losses."
    return (
        f"No site has {MIN_PER_SIDE} members and {MIN_PER_SIDE} held-out records that are nobody "
        "else's, one of each person: set a larger audit.holdout_fraction."
    )


@dataclass(frozen=True)
class WithoutReferences:
    """Loss, zlib, entropy, Min-K % and Min-K %++, as the task has them."""

    card: TestCard = CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Attacks the released model beside a control and blind baselines.

        Where the records are not at hand, but histograms of their losses, it compares those.
        """
        targets = targets_of(subject)
        if targets:
            control = control_of(subject, targets, rounds=QUICK_ROUNDS)
            return result_of(subject, CARD.id, find(subject, targets, DIRECT, control))
        if subject.federated is not None and subject.config.audit.holdout_fraction > 0:
            return result_of_histograms(subject, CARD.id, subject.federated)
        return NotRun(test=CARD.id, reason=why_not(subject))


TESTS: Final[tuple[AuditTest, ...]] = (WithoutReferences(),)
