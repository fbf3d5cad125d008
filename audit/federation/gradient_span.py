"""F2: tokens of a record, recovered from its gradient as it is sent.

The gradients of the first attention's projections are sums of outer products with its inputs, one
for each token: which tokens' inputs lie in their row space can be tried one by one.

Source: Petrov et al. 2024, "DAGER", section 4.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from audit.federation.updates import (
    ALPHA,
    POWER,
    gradient_as_sent,
    judge,
    notes_on,
    observable,
    one_of_each,
    smallest_mean,
    start_model,
)
from audit.intervals import clopper_pearson, cluster_bootstrap
from audit.subject import Subject
from audit.verdicts import (
    QUICK,
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
from core.data.records import Record
from core.parameters import trainable
from privacy.dp_sgd import DpSgdPlan

PROJECTIONS: Final = tuple(
    f"transformer.blocks.0.attention.{name}.weight" for name in ("query", "key", "value")
)
_RECORDS: Final = 12
_HARMFUL: Final = 0.5
_FLOOR: Final = 1e-6  # of the largest singular value, in fp32


class GradientSpan:
    """For each of a few records, the tokens whose inputs lie nearest to the gradient's span."""

    card = TestCard(
        id="F2",
        title="Text in a gradient",
        question="Can the tokens of a record be read out of the gradient that a site sends?",
        tier="federation",
        threat_model="The coordinator, curious: sees the update of one step on one record.",
        assumes=(
            "The worst case: the record is alone in its batch and its length is known.",
            "The attacked projection is trained, and the record has fewer tokens than it is wide.",
        ),
        suites=QUICK,
        cost_seconds=3.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """See the card."""
        sites = subject.with_records
        if not sites:
            return NotRun(test=self.card.id, reason="No site's records are at hand.")
        site = min(sites.values(), key=lambda s: s.name)
        model = start_model(subject)
        if not set(PROJECTIONS) <= trainable(model).keys():
            return NotRun(test=self.card.id, reason="The first attention is not trained as it is.")
        candidates = _inputs(model, subject)
        rng = subject.seed.generator("federation/gradient-span")
        counts = []
        for number, record in enumerate(one_of_each(site.members, _RECORDS, rng)):
            if budget.spent:
                break
            found = _recovered(subject, record, f"span/{number}", candidates, subject.plan(site))
            if found is not None:
                counts.append(found)
        if not counts and budget.spent:
            return TestResult(
                test=self.card.id,
                verdict=Verdict.INCONCLUSIVE,
                headline="There was not enough time to attack a gradient.",
            )
        if not counts:
            return NotRun(test=self.card.id, reason="No record is short enough for this attack.")
        return self._result(subject, np.array(counts, dtype=np.float64), len(candidates))

    def _result(
        self, subject: Subject, counts: npt.NDArray[np.float64], vocabulary: int
    ) -> TestResult:
        tokens = counts[:, 1]
        share, chance = _share(counts), float((tokens**2).sum() / tokens.sum()) / vocabulary
        interval = recovered_share(counts, subject.seed.generator("federation/gradient-span/draws"))
        seen = observable(subject)
        verdict = judge(interval, _HARMFUL, observable=seen)
        return TestResult(
            test=self.card.id,
            verdict=verdict,
            headline=_headline(verdict, share, chance, seen=seen),
            measures=(
                Measure(
                    name="tokens-recovered",
                    label="Share of a record's tokens that are recovered from its gradient",
                    value=share,
                    interval=interval,
                    limit=_HARMFUL,
                ),
                Measure(name="tokens-by-chance", label="Share by guessing", value=chance),
            ),
            smallest_effect=SmallestEffect(
                measure="share of a record's tokens that are recovered",
                # No shares of records spread more than those that are none or all.
                value=smallest_mean(0.5 / math.sqrt(len(counts)), _HARMFUL),
                power=POWER,
                alpha=ALPHA,
            ),
            notes=(
                f"Of {len(counts)} records; the interval takes the tokens of one record together.",
                *notes_on(subject),
            ),
        )


def _share(counts: npt.NDArray[np.float64]) -> float:
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def recovered_share(counts: npt.NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Where the share of recovered tokens lies; ``counts``: recovered and all, of each record.

    Tokens of a record come out together or not at all, so that whole records are drawn. Where no
    record differs from another, what bounds the share is their number.
    """
    shares = counts[:, 0] / counts[:, 1]
    if shares.min() < shares.max():
        return cluster_bootstrap(counts, np.arange(len(counts)), _share, rng)
    low = clopper_pearson(math.floor(shares[0] * len(shares)), len(shares))
    high = clopper_pearson(math.ceil(shares[0] * len(shares)), len(shares))
    method = "Clopper-Pearson (records)"
    return low.model_copy(update={"high": high.high, "method": method})


def _headline(verdict: Verdict, share: float, chance: float, *, seen: bool) -> str:
    if not seen:
        return "Nobody but the site sees its gradients, so nobody can read texts out of them."
    if verdict is Verdict.PASS:
        return (
            f"Of the words of a record, {share:.0%} are read out of its gradient as it is sent; "
            f"guessing finds {chance:.0%}."
        )
    if verdict is Verdict.FAIL:
        return "Whoever receives an update on one record can read most of its words out of it."
    return "Whether words can be read out of a gradient could not be decided."


@torch.no_grad()
def _inputs(model: nn.Module, subject: Subject) -> npt.NDArray[np.float64]:
    """What each token gives the first attention at each position: (V, T, C)."""
    config = subject.blueprint.config
    length = 1 if config.position != "learned" else config.max_seq_len
    caught: list[torch.Tensor] = []
    query = model.get_submodule(PROJECTIONS[0].removesuffix(".weight"))
    hook = query.register_forward_pre_hook(lambda _, given: caught.append(given[0].cpu()))
    try:
        tokens = torch.arange(config.vocab_size, device=subject.device)[:, None].repeat(1, length)
        for part in torch.split(tokens, 256):
            model(part, torch.ones_like(part, dtype=torch.bool))
    finally:
        hook.remove()
    inputs: npt.NDArray[np.float64] = torch.cat(caught).double().numpy()
    return inputs


def _scaled(gradient: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """So that no projection's gradient drowns another's."""
    exact = gradient.astype(np.float64)
    return exact / max(float(np.linalg.norm(exact)), 1e-300)


def _recovered(
    subject: Subject,
    record: Record,
    name: str,
    candidates: npt.NDArray[np.float64],
    plan: DpSgdPlan | None,
) -> tuple[int, int] | None:
    """How many of a record's different tokens are among as many best candidates."""
    true = set(subject.blueprint.task.encode(record).tokens)
    update = gradient_as_sent(subject, record, name=name, plan=plan)
    gradient = np.concatenate([_scaled(update[name]) for name in PROJECTIONS])
    if not true or len(true) >= min(gradient.shape):
        return None
    _, values, rows = np.linalg.svd(gradient, full_matrices=False)
    if values[0] == 0:
        return 0, len(true)
    rank = min(len(true), int((values > _FLOOR * values[0]).sum()))
    basis = rows[:rank]
    inside = np.linalg.norm(candidates @ basis.T, axis=2)
    distance = 1 - (inside / np.linalg.norm(candidates, axis=2).clip(min=1e-12)).max(axis=1)
    best = np.argsort(distance, kind="stable")[: len(true)]
    return len(true & set(best.tolist())), len(true)


TESTS: Final[tuple[AuditTest, ...]] = (GradientSpan(),)
