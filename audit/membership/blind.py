"""Baselines that see the records and no model: where one tells members from others, all is off.

Members and held-out records then differ by themselves, so that no attack's success says anything
about the model (Das et al. 2024, arXiv:2406.16201: "Blind baselines beat membership inference").
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from audit.intervals import AucEstimate
from audit.membership.strata import OVERALL, Stratum, alike, auc_over, permutation_p_values
from audit.membership.targets import BoolArray, Targets
from audit.score_checks import FloatArray

LABELS: Final[Mapping[str, str]] = {
    "length": "length of the text",
    "zlib": "compressed length",
    "words": "its words (logistic regression)",
}


def blind_p_values(
    targets: Mapping[str, Targets], generator: np.random.Generator, *, draws: int
) -> tuple[dict[tuple[str, str], float], dict[str, AucEstimate]]:
    """P-values by baseline and site, as of ``permutation_p_values``, and AUCs over all sites.

    Lengths count in both directions. A baseline whose values are all alike at some site is left
    out there.
    """
    found: dict[tuple[str, str], float] = {}
    aucs: dict[str, AucEstimate] = {}
    for name in LABELS:
        strata = [
            stratum
            for site in sorted(targets)
            for stratum in _strata(name, targets[site], generator)
            if not alike(stratum.scores[name])
        ]
        if not strata:
            continue
        found |= permutation_p_values(
            strata, [name], generator, draws=draws, two_sided=name != "words"
        )
        aucs[name] = auc_over(strata, name, 0.95)
    return found, aucs


def smallest(p_values: Mapping[tuple[str, str], float]) -> tuple[str, str] | None:
    """The name and the site of the smallest p-value; ``None`` where there is none."""
    return min(p_values, key=lambda key: (p_values[key], key[1] != OVERALL, key), default=None)


def _strata(name: str, targets: Targets, generator: np.random.Generator) -> list[Stratum]:
    if name == "words":
        return _by_words(targets, generator)
    texts = targets.texts
    values = [len(text) for text in texts] if name == "length" else targets.zlib_bytes
    scores = np.array(values, dtype=np.float64)
    return [Stratum(targets.site, targets.member, {name: scores})]


def _by_words(targets: Targets, generator: np.random.Generator) -> list[Stratum]:
    """One half of the records, scored by a regression that was fitted to the other half.

    Not by folds in turn: regressions that were fitted to each other's records have scores that
    depend on each other, and a permutation test takes them to be independent.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    fitted = _half(targets.member, generator)
    folded = [text.casefold() for text in targets.texts]
    try:
        words = CountVectorizer(binary=True, analyzer=str.split).fit_transform(folded)
    except ValueError:  # not one word in any text
        return []
    scores = _regression(words[fitted], targets.member[fitted], words[~fitted])
    return [Stratum(targets.site, targets.member[~fitted], {"words": scores})]


def _half(member: BoolArray, generator: np.random.Generator) -> BoolArray:
    """Half of the members and half of the others, at random."""
    half = np.zeros(len(member), dtype=np.bool_)
    for side in (member, ~member):
        count = int(side.sum())
        half[side] = generator.permutation(np.arange(count) % 2) == 0
    return half


def _regression(train: object, member: Sequence[bool] | BoolArray, test: object) -> FloatArray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.1, solver="liblinear", class_weight="balanced")
    return np.asarray(model.fit(train, member).decision_function(test), dtype=np.float64)
