"""F3: whose record is it? The site whose update makes a record likeliest.

Source: Hu et al. 2021, "Source inference attacks in federated learning".
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.federation.updates import (
    ALPHA,
    POWER,
    judge,
    notes_on,
    observable,
    one_of_each,
    round_update,
    smallest_mean,
)
from audit.intervals import newcombe, wilson
from audit.subject import AuditedSite, Subject
from audit.training import losses_of
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Interval,
    Measure,
    NotRun,
    SmallestEffect,
    TestCard,
    TestResult,
    Verdict,
)

_RECORDS: Final = 400
_MIN_RECORDS: Final = 10
_HARMFUL: Final = 0.1
_PARTS: Final = ("members", "held_out")


class SourceInference:
    """Each site trains one round; a record is ascribed to the site whose model fits it best."""

    card = TestCard(
        id="F3",
        title="Whose record is it",
        question="Can the coordinator tell which site holds a given record?",
        tier="federation",
        threat_model="The coordinator, curious: sees each site's update of one round and a record.",
        assumes=(
            "Sites differ in style too: what held-out records of a site give away is subtracted.",
            "One record of each person was used.",
        ),
        suites=FULL,
        cost_seconds=25.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        sites = [s for _, s in sorted(subject.with_records.items()) if _enough(s)]
        if len(sites) < 2:
            reason = "It takes two sites with records at hand, trained on and held out."
            return NotRun(test=self.card.id, reason=reason)
        models = []
        for site in sites:
            if budget.spent:
                return _cut(self.card.id)
            name = f"source/{site.name}"
            models.append(round_update(subject, site.members, name=name, site=site)[0])
        rng = subject.seed.generator("federation/source")
        right, asked = dict.fromkeys(_PARTS, 0), dict.fromkeys(_PARTS, 0)
        for part in _PARTS:
            # As many of every site, so that members and others are the same mix of sites.
            chosen = [one_of_each(getattr(site, part), _RECORDS, rng) for site in sites]
            count = min(map(len, chosen))
            for truth, records in enumerate(chosen):
                losses = [losses_of(model, subject, records[:count]) for model in models]
                right[part] += _ascribed(np.stack(losses), truth)
                asked[part] += count
        return self._result(subject, right, asked["members"], asked["held_out"], len(sites))

    def _result(
        self, subject: Subject, right: dict[str, int], seen: int, unseen: int, sites: int
    ) -> TestResult:
        excess = newcombe(right["members"], seen, right["held_out"], unseen)
        visible = observable(subject)
        verdict = judge(excess, _HARMFUL, observable=visible)
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(verdict, excess, visible=visible),
            measures=(
                Measure(
                    name="source-accuracy",
                    label="Records that the site trained on, ascribed to the right site",
                    value=right["members"] / seen,
                    interval=wilson(right["members"], seen),
                ),
                Measure(
                    name="source-accuracy-held-out",
                    label="Records that it held out, ascribed to the right site: style alone",
                    value=right["held_out"] / unseen,
                    interval=wilson(right["held_out"], unseen),
                ),
                Measure(
                    name="source-excess",
                    label="The difference: what training gave away",
                    value=right["members"] / seen - right["held_out"] / unseen,
                    interval=excess,
                    limit=_HARMFUL,
                ),
                Measure(name="source-chance", label="By guessing", value=1 / sites),
            ),
            smallest_effect=SmallestEffect(
                measure="difference of the shares",
                value=smallest_mean(0.5 * math.sqrt(1 / seen + 1 / unseen), _HARMFUL),
                power=POWER,
                alpha=ALPHA,
            ),
            notes=notes_on(subject),
        )


def _enough(site: AuditedSite) -> bool:
    return min(len(site.members), len(site.held_out)) >= _MIN_RECORDS


def _ascribed(losses: npt.NDArray[np.float64], truth: int) -> int:
    """How many of the records, (sites, N), are likeliest under the model of ``truth``."""
    return int((losses.argmin(axis=0) == truth).sum())


def _cut(test: str) -> TestResult:
    return TestResult(
        test=test,
        verdict=Verdict.INCONCLUSIVE,
        headline="There was not enough time to train a round at each site.",
    )


def _headline(verdict: Verdict, excess: Interval, *, visible: bool) -> str:
    if not visible:
        return "Nobody sees a single site's update, so nobody can ascribe records to sites by it."
    if verdict is Verdict.PASS:
        found = "hardly gives" if excess.low > 0 else "was not seen to give"
        return (
            f"Training {found} away which site holds a record, beyond a site's style: surely in "
            f"fewer than {max(excess.high, 0.0):.0%} of the records."
        )
    if verdict is Verdict.FAIL:
        return "The coordinator can tell from the updates which site trained on a given record."
    if excess.low > 0:
        return (
            f"Updates give away which site holds a record, for {excess.low:.0%} to "
            f"{excess.high:.0%} of the records beyond a site's style; whether for more than the "
            f"{_HARMFUL:.0%} that count as harm remains open."
        )
    return "Whether updates tell which site holds a record could not be decided."


TESTS: Final[tuple[AuditTest, ...]] = (SourceInference(),)
