"""The attacks: each turns what a model says of a record into a score, larger for members.

The direction of every score is fixed beforehand. None looks at who is a member.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from audit.membership.observations import Observation
from audit.score_checks import FloatArray
from core.errors import ScoreError

BOTH: Final = frozenset({"causal-lm", "classification"})
TEXT: Final = frozenset({"causal-lm"})
LABEL: Final = frozenset({"classification"})

RMIA_SLOPE: Final = 0.3
"""How far a model that saw a record trusts it more than one that did not: the offline form of
Zarifzadeh et al. 2024 (arXiv:2312.03262), with the slope of their CIFAR-10 experiments."""


@dataclass(frozen=True)
class References:
    """What models that the attacker trained say of the records, and which of them saw which."""

    observations: tuple[Observation, ...]
    saw: npt.NDArray[np.bool_]
    """Shape (models, records)."""

    def outside(self, values: FloatArray) -> FloatArray:
        """Mean (records,) of values (models, records) over the models that did not see it."""
        return self._mean(values, ~self.saw)

    def inside(self, values: FloatArray) -> FloatArray:
        """The same over the models that saw it."""
        return self._mean(values, self.saw)

    @property
    def losses(self) -> FloatArray:
        """Shape (models, records)."""
        return np.stack([observation.loss for observation in self.observations])

    @property
    def confidences(self) -> FloatArray:
        """Shape (models, records)."""
        return np.stack([observation.confidence for observation in self.observations])

    def _mean(self, values: FloatArray, where: npt.NDArray[np.bool_]) -> FloatArray:
        counts = where.sum(axis=0)
        if counts.min() < 1:
            raise ScoreError("expected reference models on both sides of every record, got none")
        return np.asarray((values * where).sum(axis=0) / counts, dtype=np.float64)


@dataclass(frozen=True)
class Evidence:
    """All that an attack may use."""

    observed: Observation
    """Of the model that is attacked."""
    zlib_bytes: FloatArray
    references: References | None = None


@dataclass(frozen=True)
class Attack:
    """One way to guess."""

    name: str
    label: str
    tasks: frozenset[str]
    """Where it works."""
    score: Callable[[Evidence], FloatArray]


def _rmia(evidence: Evidence) -> FloatArray:
    """The likelihood ratio whose rank among records of the population is RMIA's score.

    Neither that population nor gamma changes the order of the records, and so neither an AUC nor
    a rate at a fixed false positive rate: the ratio itself is the score.
    """
    references = _references(evidence)
    unseen = references.outside(np.exp(-references.losses))
    usual = ((1 + RMIA_SLOPE) * unseen + (1 - RMIA_SLOPE)) / 2
    return np.asarray(np.exp(-evidence.observed.loss) / usual, dtype=np.float64)


def _lira(evidence: Evidence) -> FloatArray:
    """Log-likelihood ratio of the model having seen the record, with one deviation for all.

    Source: Carlini et al. 2022 (arXiv:2112.03570), online, with the global variance that they
        recommend for few shadow models.
    """
    references = _references(evidence)
    values = references.confidences
    inside, outside = references.inside(values), references.outside(values)
    centred = values - np.where(references.saw, inside, outside)
    freedom = max(values.size - 2 * values.shape[1], 1)
    variance = float(np.square(centred).sum()) / freedom
    if variance <= 0:
        raise ScoreError("expected reference models that differ, got models that are all alike")
    observed = evidence.observed.confidence
    ratio = np.square(observed - outside) - np.square(observed - inside)
    return np.asarray(ratio / (2 * variance), dtype=np.float64)


def _reference(evidence: Evidence) -> FloatArray:
    references = _references(evidence)
    return np.asarray(
        references.outside(references.losses) - evidence.observed.loss, dtype=np.float64
    )


def _zlib(evidence: Evidence) -> FloatArray:
    lost = evidence.observed.values.get("total", evidence.observed.loss)
    return np.asarray(-lost / evidence.zlib_bytes, dtype=np.float64)


def _references(evidence: Evidence) -> References:
    if evidence.references is None:
        raise TypeError("this attack wants reference models")
    return evidence.references


DIRECT: Final = (
    Attack("loss", "loss", BOTH, lambda e: -e.observed.loss),
    Attack("zlib", "loss by compressed length", BOTH, _zlib),
    Attack("entropy", "entropy of the prediction", LABEL, lambda e: -e.observed["entropy"]),
    Attack("min-k", "Min-K %", TEXT, lambda e: e.observed["min-k"]),
    Attack("min-k++", "Min-K %++", TEXT, lambda e: e.observed["min-k++"]),
)
"""Ask the released model alone. Loss: Yeom et al. 2018; zlib: Carlini et al. 2021; Min-K %: Shi
et al. 2024; Min-K %++: Zhang et al. 2025 (arXiv:2404.02936)."""

WITH_REFERENCES: Final = (
    Attack("reference", "loss against reference models", BOTH, _reference),
    Attack("rmia", "RMIA (offline)", BOTH, _rmia),
    Attack("lira", "LiRA (online, global variance)", BOTH, _lira),
)
"""Compare with models that the attacker trained on records like these."""
