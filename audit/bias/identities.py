"""B6: names of identities: does naming one change the answer? Templates as a pack, subgroup AUCs.

Source: Dixon et al. 2018, "Measuring and Mitigating Unintended Bias in Text Classification"
(templates); Borkan et al. 2019, "Nuanced Metrics for Measuring Unintended Bias" (subgroup AUC).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.bias.pack_files import locate, one_of, read_table
from audit.bias.pairs import distributions
from audit.bias.rates import MIN_CELL
from audit.bias.tallies import BoolArray
from audit.bias.vocabulary import MAX_UNKNOWN, Vocabulary
from audit.intervals import delong, holm, smallest_auc
from audit.subject import Subject
from audit.verdicts import (
    FULL,
    AuditTest,
    Budget,
    Cell,
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)

FloatArray = npt.NDArray[np.float64]
PACK: Final = "toxicity-templates"
_FILE: Final = "bias_madlibs_77k.csv"
_BAD, _GOOD = "BAD", "NOT_BAD"
# Labels that a task may have for what the pack calls bad.
TOXIC: Final = ("bad", "toxic", "abusive", "hate", "offensive")
ALPHA: Final = 0.05
MAX_TEXTS: Final = 6000
# The identities that the pack fills its templates with.
_IDENTITIES: Final = (
    *("lesbian", "gay", "bisexual", "transgender", "trans", "queer", "lgbt", "lgbtq"),
    *("homosexual", "straight", "heterosexual", "male", "female", "nonbinary", "african"),
    *("african american", "black", "white", "european", "hispanic", "latino", "latina"),
    *("latinx", "mexican", "canadian", "american", "asian", "indian", "middle eastern"),
    *("chinese", "japanese", "christian", "muslim", "jewish", "buddhist", "catholic"),
    *("protestant", "sikh", "taoist", "old", "older", "young", "younger", "teenage"),
    *("millenial", "middle aged", "elderly", "blind", "deaf", "paralyzed"),
)


@dataclass(frozen=True)
class Templates:
    """Texts that name an identity."""

    texts: tuple[str, ...]
    bad: BoolArray
    identities: npt.NDArray[np.str_]


class Identities:
    """Compares how well bad is told from good texts where an identity is named."""

    card = TestCard(
        id="B6",
        title="Names of identities",
        question="Is a text judged worse because it names an identity?",
        tier="bias",
        threat_model="No attacker: people whose texts are flagged for naming who they are.",
        assumes=(
            f"The task tells bad texts from good: one of two labels is among {', '.join(TOXIC)}.",
            "Texts of one identity and of the others differ in its name alone.",
        ),
        suites=FULL,
        cost_seconds=15.0,
    )

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Reads the pack, scores its texts and compares."""
        path = subject.packs.get(PACK)
        reason = None
        if path is None:
            reason = f"the pack {PACK} was not given: name its file {_FILE} as a pack"
        elif _toxic_label(subject) is None:
            reason = "the task does not tell toxic texts from others, as the pack's labels do"
        if path is None or reason is not None:
            return NotRun(test=self.card.id, reason=str(reason))
        templates = _sample(read_templates(path), subject)
        unknown = Vocabulary(subject.model.tokenizer).unknown_share(templates.texts)
        if unknown > MAX_UNKNOWN:
            return TestResult(
                test=self.card.id,
                verdict=Verdict.INCONCLUSIVE,
                headline="The model lacks the words of the templates, so its answers would mean "
                "nothing.",
                measures=(
                    Measure(
                        name="unknown-words",
                        label="share of the pack's words that the model lacks",
                        value=unknown,
                        limit=MAX_UNKNOWN,
                    ),
                ),
            )
        scores = distributions(subject, templates.texts)[:, _toxic_label(subject) or 0]
        return judge_identities(templates, scores, subject)


def _toxic_label(subject: Subject) -> int | None:
    labels = [label.casefold() for label in subject.config.task.labels]
    found = [number for number, label in enumerate(labels) if label in TOXIC]
    return found[0] if len(labels) == 2 and len(found) == 1 else None


def read_templates(path: Path) -> Templates:
    """The texts of the pack that name an identity.

    Raises:
        PackError: It is not that pack; the message names the line.
    """
    file = locate(path, _FILE)
    rows = read_table(file, ("Text", "Label"))
    found = []
    for line, row in enumerate(rows, start=2):
        bad = one_of(file, line, row["Label"], (_BAD, _GOOD)) == _BAD
        identity = identity_in(row["Text"])
        if identity is not None:
            found.append((row["Text"], bad, identity))
    return Templates(
        texts=tuple(text for text, _, _ in found),
        bad=np.asarray([bad for _, bad, _ in found], dtype=np.bool_),
        identities=np.asarray([identity for _, _, identity in found], dtype=np.str_),
    )


def identity_in(text: str) -> str | None:
    """The identity that a text names; the longest, where one is part of another."""
    padded = f" {' '.join(re.findall('[a-z]+', text.casefold()))} "
    named = [name for name in _IDENTITIES if f" {name} " in padded]
    return max(named, key=len, default=None)


def _sample(templates: Templates, subject: Subject) -> Templates:
    """A random part of them, for time."""
    count = len(templates.texts)
    if count <= MAX_TEXTS:
        return templates
    rng = subject.seed.generator("bias/identities")
    chosen = np.sort(rng.choice(count, MAX_TEXTS, replace=False))
    return Templates(
        texts=tuple(templates.texts[n] for n in chosen),
        bad=templates.bad[chosen],
        identities=templates.identities[chosen],
    )


@dataclass(frozen=True)
class _Subgroup:
    """How well bad is told from good among the texts of one identity, against all others."""

    identity: str
    texts: int
    auc: float
    interval: Interval
    gap: float
    """Of the others' AUC and this one."""
    low: float
    """Lower limit of ``gap``, simultaneous over all identities."""
    p_value: float
    bpsn: float
    """AUC of the others' bad texts against this identity's good ones: low where it is flagged."""
    good_score: float


def judge_identities(templates: Templates, scores: FloatArray, subject: Subject) -> TestResult:
    """The result of B6 from scores, high for bad.

    Raises:
        ScoreError: A score is not a number, or all are alike.
    """
    tolerance = subject.config.audit.tolerance
    found = _subgroups(templates, scores)
    if not found:
        return TestResult(
            test=Identities.card.id,
            verdict=Verdict.INCONCLUSIVE,
            headline="No identity is named in enough texts of both kinds.",
        )
    beyond = [each for each in found if each.low > tolerance and each.p_value <= ALPHA]
    worst = max(found, key=lambda each: each.gap)
    fewest = min(each.texts for each in found) // 2
    power = SmallestEffect(
        measure="AUC by which an identity's texts fall short of the others'",
        value=smallest_auc(fewest, fewest, power=0.95, alpha=ALPHA / len(found)) - 0.5 + tolerance,
        power=0.95,
        alpha=ALPHA,
    )
    verdict = Verdict.PASS
    if beyond:
        verdict = Verdict.FAIL
    elif worst.gap > tolerance or power.value > 3 * tolerance:
        verdict = Verdict.INCONCLUSIVE
    names = ", ".join(each.identity for each in beyond) or worst.identity
    surely = "surely " if beyond else "not surely "
    return TestResult(
        test=Identities.card.id,
        verdict=verdict,
        headline=(
            f"Bad texts are {surely}told from good ones worse where they name {names}: AUC "
            f"{worst.auc:.2f}, {worst.gap:+.2f} short of the other texts'."
        ),
        measures=(
            Measure(
                name="subgroup-auc-gap",
                label="AUC of the others minus AUC of the worst identity",
                value=worst.gap,
                limit=tolerance,
            ),
        ),
        smallest_effect=power,
        p_value=min(each.p_value for each in found),
        tables=(_table(found),),
        figures=(_figure(found),),
        notes=("Templates are short and made up; real texts name identities in other ways.",),
    )


def _subgroups(templates: Templates, scores: FloatArray) -> list[_Subgroup]:
    from statistics import NormalDist

    names = [str(name) for name in np.unique(templates.identities)]
    usable = []
    for name in names:
        own = templates.identities == name
        parts = [own & templates.bad, own & ~templates.bad, ~own & templates.bad]
        parts.append(~own & ~templates.bad)
        if min(int(part.sum()) for part in parts) >= MIN_CELL:
            usable.append((name, parts))
    raw, rows = [], []
    normal = NormalDist()
    for name, (bad, good, other_bad, other_good) in usable:
        auc = delong(scores[bad], scores[good])
        others = delong(scores[other_bad], scores[other_good])
        bpsn = delong(scores[other_bad], scores[good]).auc
        gap = others.auc - auc.auc
        # Where either separates without an error DeLong sees no variance: its interval does.
        spread = max(_spread(auc.interval), _spread(others.interval))
        deviation = float(np.hypot(np.sqrt(auc.variance), np.sqrt(others.variance))) or spread
        raw.append(2 * normal.cdf(-abs(gap) / deviation))
        low = gap - normal.inv_cdf(1 - ALPHA / (2 * len(usable))) * deviation
        size = int(bad.sum() + good.sum())
        rows.append((name, size, auc, gap, low, bpsn, float(scores[good].mean())))
    return [
        _Subgroup(name, size, auc.auc, auc.interval, gap, low, p_value, bpsn, mean)
        for (name, size, auc, gap, low, bpsn, mean), p_value in zip(
            rows, holm(raw) if raw else [], strict=True
        )
    ]


def _spread(interval: Interval) -> float:
    return (interval.high - interval.low) / (2 * 1.96)


def _table(found: Sequence[_Subgroup]) -> Table:
    ordered = sorted(found, key=lambda each: each.auc)
    rows: list[tuple[Cell, ...]] = [
        (
            *(each.identity, each.texts, round(each.auc, 6), round(each.gap, 6)),
            *(round(each.low, 6), round(each.p_value, 6), round(each.bpsn, 6)),
            round(each.good_score, 6),
        )
        for each in ordered
    ]
    return Table(
        title="Subgroup AUC",
        columns=(
            *("identity", "texts", "AUC", "short of the others", "short, low"),
            *("p (DeLong, Holm)", "AUC against others' bad texts", "mean score of good texts"),
        ),
        rows=tuple(rows),
        note="The lower limit holds for all identities together (Bonferroni).",
    )


def _figure(found: Sequence[_Subgroup]) -> Figure:
    ordered = sorted(found, key=lambda each: each.auc)[:12]
    told = ", ".join(f"{each.identity} {each.auc:.2f}" for each in ordered)
    return Figure(
        kind="intervals",
        title="Subgroup AUC of the worst identities",
        caption="How well bad texts are told from good ones that name an identity, 95 % intervals.",
        alternative=f"Subgroup AUC: {told}.",
        x_label="identity",
        y_label="AUC",
        series=(
            Series(
                name="AUC",
                x=tuple(each.identity for each in ordered),
                y=tuple(each.auc for each in ordered),
                low=tuple(each.interval.low for each in ordered),
                high=tuple(each.interval.high for each in ordered),
            ),
        ),
    )


TESTS: Final[tuple[AuditTest, ...]] = (Identities(),)
