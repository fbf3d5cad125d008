"""D3: what the sum of all updates shows about a whole site, which record-level privacy spares."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from audit.canaries.claim import Claim, hinted, judge
from audit.canaries.planting import Planting, planting_at
from audit.canaries.records import CanaryRecord
from audit.canaries.reserved import canary_examples
from audit.subject import Subject
from audit.training import train_model
from audit.verdicts import FULL, Budget, NotRun, TestCard, TestResult
from core.tasks.interface import Example

SITES: Final = 64
_RECORDS: Final = 128  # of each site
_STEPS: Final = 4


class CanarySites:
    """Whole sites as canaries: all that such a site holds is its own token."""

    card = TestCard(
        id="D3",
        title="Planted sites, seen in the sum of the updates",
        question="Does the new global model show whether a whole site took part?",
        tier="dp",
        threat_model=(
            "Anyone who has the global model before and after a round, and knows what a site "
            "holds; secure aggregation does not stop it."
        ),
        assumes=(
            "Sites whose records are all of one kind: the easiest to tell.",
            "The new model is the mean of the updates.",
            "The run promises privacy to a record, not to a site; nothing claimed is tested.",
        ),
        suites=FULL,
        cost_seconds=4,
    )

    def __init__(self, sites: int = SITES) -> None:
        self._sites = sites

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Lets the planted sites train, averages, looks at every site's row."""
        planting = planting_at(_short(subject), self._sites, purpose="sites")
        if isinstance(planting, str):
            return NotRun(test=self.card.id, reason=planting)
        rng = subject.seed.generator("canaries/sites/labels")
        kinds = max(len(subject.config.task.labels), 1)
        labels = rng.integers(0, kinds, planting.count).tolist()
        examples = canary_examples(planting.reserved, length=2, labels=labels)
        scores = _scores(planting, examples, budget)
        if scores is None:
            return NotRun(test=self.card.id, reason="There was no time to train the planted sites.")
        claim = Claim(None, subject.config.privacy.target_delta, 1, None)
        found = judge(
            self.card.id,
            claim,
            scores,
            planting.included,
            measure="site-epsilon-proven",
            planted="planted sites",
            notes=(
                f"Each planted site took {_steps(planting)} steps on records of its own.",
                "Whether a site takes part is rarely a secret; what all its records have in "
                "common may be.",
            ),
        )
        return found.model_copy(update={"headline": _headline(found, subject)})


def _headline(found: TestResult, subject: Subject) -> str:
    proven = next(m.value for m in found.measures if m.name == "site-epsilon-proven") or 0.0
    promise = (
        "Privacy is promised to single records, not to a whole site"
        if subject.private
        else "No privacy is promised, neither to records nor to a site"
    )
    attack = next(m for m in found.measures if m.name == "canary-auc")
    if proven > 0:
        least = f"an epsilon of at least {proven:.2f}"
        seen = f"the model shows which planted sites took part ({least})"
    elif hinted(attack):
        seen = (
            "which planted sites took part is told better than by guessing (right in "
            f"{attack.value:.0%} of the pairs), though no epsilon is proven"
        )
    else:
        seen = "which planted sites took part was not seen"
    return f"{promise}: {seen}."


def _short(subject: Subject) -> Subject:
    """The same run with a few steps in a round: what a site shows, it shows at once."""
    train = subject.config.train
    train = replace(train, steps_per_round=min(train.steps_per_round, _STEPS), warmup_steps=0)
    return replace(subject, config=subject.config.model_copy(update={"train": train}))


def _steps(planting: Planting) -> int:
    """Steps of a planted site's round."""
    return planting.reserved.subject.config.train.steps_per_round


def _scores(
    planting: Planting, examples: Sequence[Example], budget: Budget
) -> npt.NDArray[np.float64] | None:
    """How far the mean of the updates moves each row down its own gradient."""
    reserved = planting.reserved
    model, rows = reserved.model, list(reserved.rows)
    begin = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = reserved.subject.blueprint.task.collate(examples).to(reserved.subject.device)
    logits = model(batch.tokens, batch.attention_mask)
    loss = reserved.subject.blueprint.task.loss_per_example(logits.float(), batch).sum()
    own = torch.autograd.grad(loss, _embedding(model))[0][rows].double()
    before = _embedding(model).detach()[rows].double().clone()
    moved = torch.zeros_like(before)
    size = _RECORDS
    if planting.site.terms is not None:
        size = min(size, planting.site.terms.max_examples)
    for number in np.flatnonzero(planting.included).tolist():
        if budget.spent:
            return None
        model.load_state_dict(begin)
        train_model(
            reserved.subject,
            [CanaryRecord(text="", example=examples[number])] * size,
            name=f"canaries/sites/{number}",
            site=planting.site,
            rounds=1,
            model=model,
        )
        moved += _embedding(model).detach()[rows].double() - before
    moved /= max(int(planting.included.sum()), 1)
    scores: npt.NDArray[np.float64] = -(moved * own).sum(dim=1).cpu().numpy()
    return scores


def _embedding(model: nn.Module) -> Tensor:
    """The token embedding of a model that ``planting_at`` reserved rows of."""
    weight: Tensor = model.transformer.token_embedding.weight  # type: ignore[union-attr,assignment]
    return weight


TESTS: Final = (CanarySites(),)
