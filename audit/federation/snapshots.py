"""F6: successive global models, which every site receives: does their difference tell members?"""

import math
from typing import Final

import numpy as np
from torch import nn

from audit.federation.updates import ALPHA, POWER, judge, one_of_each
from audit.intervals import AucEstimate, delong, smallest_auc
from audit.subject import Subject
from audit.training import losses_of
from audit.verdicts import (
    QUICK,
    AuditTest,
    Budget,
    Measure,
    NotRun,
    SmallestEffect,
    TestCard,
    TestResult,
    Verdict,
)
from core.checkpoints import checkpoint_folder, load_checkpoint
from core.parameters import load_arrays

_HARMFUL: Final = 0.6
_RECORDS: Final = 1500
_MIN_RECORDS: Final = 20


class Snapshots:
    """By how much a record's loss fell in the last round: members against held-out records."""

    card = TestCard(
        id="F6",
        title="Two models in a row",
        question="Does the difference of two successive global models tell who was trained on?",
        tier="federation",
        threat_model="A site, curious: receives every round's global model.",
        assumes=("The checkpoints of the last two rounds lie in the run's folder, in the clear.",),
        suites=QUICK,
        cost_seconds=6.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        last = subject.config.federation.num_rounds
        folders = [checkpoint_folder(subject.folder / "checkpoints", n) for n in (last - 1, last)]
        if not all(folder.exists() for folder in folders):
            return NotRun(test=self.card.id, reason="The last two checkpoints are not at hand.")
        sites = [s for _, s in sorted(subject.with_records.items()) if len(s.held_out)]
        if not sites:
            return NotRun(
                test=self.card.id,
                reason="No records were held out: set audit.holdout_fraction.",
            )
        models: list[nn.Module] = []
        for folder in folders:
            models.append(subject.initial_model())
            load_arrays(models[-1], load_checkpoint(folder).arrays["model"])
        rng = subject.seed.generator("federation/snapshots")
        falls = {"members": [np.empty(0)], "held_out": [np.empty(0)]}
        # One share of all sites: else members and others would be different mixes of sites.
        share = min(_RECORDS / max(len(site.members) for site in sites), 1.0)
        for site in sites:
            for part, found in falls.items():
                source = getattr(site, part)
                records = one_of_each(source, math.ceil(share * len(source)), rng)
                found.append(
                    losses_of(models[0], subject, records) - losses_of(models[1], subject, records)
                )
        members, others = (np.concatenate(part) for part in falls.values())
        if min(len(members), len(others)) < _MIN_RECORDS:
            return NotRun(test=self.card.id, reason="Too few records were held out.")
        auc = delong(members, others)
        verdict = judge(auc.interval, _HARMFUL, observable=True)
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(verdict, auc),
            measures=(
                Measure(
                    name="snapshot-auc",
                    label="Area under the curve: fall of the loss, members against held out",
                    value=auc.auc,
                    interval=auc.interval,
                    limit=_HARMFUL,
                ),
            ),
            smallest_effect=SmallestEffect(
                measure="area under the curve",
                value=smallest_auc(len(members), len(others), POWER, ALPHA, beyond=_HARMFUL),
                power=POWER,
                alpha=ALPHA,
            ),
            notes=(
                "One record of each person was used. Only the last two models were compared: who "
                "has kept all of them may see more.",
            ),
        )


def _headline(verdict: Verdict, found: AucEstimate) -> str:
    if verdict is Verdict.PASS and found.interval.low > 0.5:
        return (
            "Two models in a row tell a site a little of whose records were trained on: right in "
            f"{found.auc:.0%} of the pairs of a member and an outsider, where guessing gives 50%."
        )
    if verdict is Verdict.PASS:
        return "Two models in a row were not seen to tell a site whose records were trained on."
    if verdict is Verdict.FAIL:
        return "A site that keeps two models in a row can tell whose records were trained on."
    if found.interval.low > 0.5:
        return (
            "Two models in a row tell a site something of whose records were trained on (right in "
            f"{found.interval.low:.0%} to {found.interval.high:.0%} of the pairs); whether enough "
            "to do harm remains open."
        )
    return "Whether two models in a row tell members apart could not be decided."


TESTS: Final[tuple[AuditTest, ...]] = (Snapshots(),)
