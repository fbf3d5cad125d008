"""D2: what an adversary who has the released model alone proves about the claimed epsilon."""

from typing import Final

from audit.canaries.claim import claim_of, judge, rounds_to_train
from audit.canaries.planting import plant, planting_at, train_planted
from audit.canaries.records import losses_of
from audit.canaries.reserved import canary_examples
from audit.subject import Subject
from audit.verdicts import FULL, Budget, NotRun, TestCard, TestResult

CANARIES: Final = 256
_MOST_ROUNDS: Final = 4
# Of one token again and again: what models remember best (AUC 1.00 without privacy, where one
# occurrence gives .77 and random letters .59).
_LENGTH: Final = 8


class BlackBoxCanaries:
    """Records of one repeated token that no text has, told by the loss of the trained model."""

    card = TestCard(
        id="D2",
        title="Planted records, seen in the released model",
        question="Does the trained model alone show which planted records were in?",
        tier="dp",
        threat_model="Anyone who can ask the trained model for its loss on a record.",
        assumes=(
            "The model's copy has a row of the token embedding for each planted record.",
            "Which records a coin let in follows from the seed that was committed to before the "
            "first round.",
            "No more of the site's own records are trained beside the planted ones than there are "
            "of these; among more of them the released model alone may show less.",
            "One site is trained anew with its public terms.",
        ),
        suites=FULL,
        cost_seconds=3,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Plants, trains, looks at the losses, guesses."""
        planting = planting_at(subject, CANARIES, purpose="black-box")
        if isinstance(planting, str):
            return NotRun(test=self.card.id, reason=planting)
        kinds = max(len(subject.config.task.labels), 1)
        rng = subject.seed.generator("canaries/black-box/labels")
        labels = rng.integers(0, kinds, planting.count).tolist()
        examples = canary_examples(planting.reserved, length=_LENGTH, labels=labels)
        rounds = rounds_to_train(subject, planting.site, planting.count, most=_MOST_ROUNDS)
        trained = train_planted(planting, plant(planting, examples), rounds=rounds, budget=budget)
        reserved = planting.reserved
        scores = -losses_of(reserved.model, reserved.subject, examples).numpy()
        claim = claim_of(subject, planting.site, trained)
        notes = [
            f"Trained at {planting.site.name}, where a record takes part most often.",
            "Who sees the released model alone sees less than the claim allows for: the proven "
            "epsilon is expected to stay far below.",
        ]
        if trained < rounds:
            notes.append(f"The time limit cut it: {trained} of {rounds} rounds were trained.")
        return judge(self.card.id, claim, scores, planting.included, notes=notes)


TESTS: Final = (BlackBoxCanaries(),)
