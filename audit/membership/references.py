"""MI2: attacks that compare the released model with models that the attacker trained."""

from dataclasses import dataclass
from typing import Final

from audit.membership.attacks import WITH_REFERENCES
from audit.membership.direct import why_not
from audit.membership.findings import find
from audit.membership.results import result_of
from audit.membership.targets import targets_of
from audit.membership.training import MAX_ROUNDS, control_of, references_of
from audit.subject import Subject
from audit.verdicts import FULL, AuditTest, Budget, NotRun, TestCard, TestResult, Verdict

CARD: Final = TestCard(
    id="MI2",
    title="Membership inference with reference models",
    question="Can who has the model, and many records like the sites' own, tell whether a given "
    "record was in the training data?",
    tier="records",
    threat_model="The strongest outsider: he holds the released model, knows how it was trained, "
    "and trained models of his own on records of the same sites.",
    assumes=(
        "The held-out records were chosen at random from the same site's records, by the seed "
        "that the run committed to.",
        "Reference models without privacy, each trained on half of members and others alike.",
    ),
    suites=FULL,
    cost_seconds=120.0,
)


@dataclass(frozen=True)
class WithReferences:
    """Loss against references, RMIA and LiRA, from the same reference models."""

    card: TestCard = CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Trains references and a control, then attacks."""
        targets = targets_of(subject)
        if not targets:
            return NotRun(test=CARD.id, reason=why_not(subject))
        references = references_of(subject, targets, budget)
        if references is None:
            return TestResult(
                test=CARD.id,
                verdict=Verdict.INCONCLUSIVE,
                headline="There was no time to train the reference models.",
                notes=("The time limit of the suite cut it; run it with a larger one.",),
            )
        control = control_of(subject, targets, rounds=MAX_ROUNDS)
        found = find(subject, targets, WITH_REFERENCES, control, references)
        return result_of(subject, CARD.id, found)


TESTS: Final[tuple[AuditTest, ...]] = (WithReferences(),)
