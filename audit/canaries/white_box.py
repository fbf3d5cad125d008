"""D1: what an adversary who sees every noised gradient proves about the claimed epsilon."""

from typing import Final

import torch

from audit.canaries.claim import claim_of, judge, rounds_to_train
from audit.canaries.observed import RowObserver
from audit.canaries.planting import Planting, plant, planting_at, train_planted
from audit.canaries.reserved import Reserved, canary_examples
from audit.subject import Subject
from audit.verdicts import QUICK, Budget, NotRun, TestCard, TestResult
from core.model import Classifier
from core.tasks.interface import Example

CANARIES: Final = 512
_MOST_ROUNDS: Final = 2
# Of the classifier's head, so that a canary's gradient is as large on its row as it can be and
# does not fade while the row moves.
_HEAD: Final = 20.0


class WhiteBoxCanaries:
    """Records whose gradient lives on a row of the embedding that no text reaches."""

    card = TestCard(
        id="D1",
        title="Planted records, seen from within",
        question="Does the training leak more than it claims to one who sees every step?",
        tier="dp",
        threat_model=(
            "The coordinator, or whoever sees what a site sends: knows the weights, chooses those "
            "that a round begins with, and sees the noised gradient of each step."
        ),
        assumes=(
            "The model's copy has a row of the token embedding for each planted record, and the "
            "weights of its head are scaled: the guarantee holds for all weights.",
            "Which records a coin let in follows from the seed that was committed to before the "
            "first round.",
            "No more of the site's own records are trained beside the planted ones than there are "
            "of these: what hides a planted record is the noise, not its company.",
            "One site is trained anew with its public terms; that the ledger charged these very "
            "terms is checked by the tests of conformance.",
        ),
        suites=QUICK,
        cost_seconds=6,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Plants, trains, observes, guesses."""
        planting = planting_at(subject, CANARIES, purpose="white-box")
        if isinstance(planting, str):
            return NotRun(test=self.card.id, reason=planting)
        reserved = planting.reserved
        examples = _sharp(reserved)
        rounds = rounds_to_train(subject, planting.site, planting.count, most=_MOST_ROUNDS)
        plan = reserved.subject.plan(planting.site)
        observer = RowObserver(reserved, examples, plan)
        begin = {name: w.clone() for name, w in reserved.model.state_dict().items()}
        with observer.watching():
            trained = train_planted(
                planting,
                plant(planting, examples),
                rounds=rounds,
                budget=budget,
                # Every round begins with the weights that the adversary likes best.
                after_round=lambda model: model.load_state_dict(begin),
            )
        claim = claim_of(subject, planting.site, trained)
        notes = _cut(planting, trained, rounds)
        return judge(self.card.id, claim, observer.scores, planting.included, notes=notes)


def _sharp(reserved: Reserved) -> list[Example]:
    """Canaries of one kind: the reserved token, and the label that the model expects least."""
    model = reserved.model
    length = 1 if isinstance(model, Classifier) else 2
    examples = canary_examples(reserved, length=length, labels=[0] * len(reserved.rows))
    if not isinstance(model, Classifier):
        return examples
    with torch.no_grad():
        model.head.weight.mul_(_HEAD)
        batch = reserved.subject.blueprint.task.collate(examples).to(reserved.subject.device)
        labels = model(batch.tokens, batch.attention_mask).argmin(dim=1).tolist()
    return canary_examples(reserved, length=length, labels=labels)


def _cut(planting: Planting, trained: int, rounds: int) -> list[str]:
    notes = [f"Trained at {planting.site.name}, where a record takes part most often."]
    if trained < rounds:
        notes.append(f"The time limit cut it: {trained} of {rounds} rounds were trained.")
    return notes


TESTS: Final = (WhiteBoxCanaries(),)
