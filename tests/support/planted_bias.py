"""Counts and records with a bias of known size, or with none."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from audit.bias.permutations import laplace_sums
from audit.federated_counts import FederatedCounts, SiteCounts
from core.audit_seed import AuditSeed
from core.config_sections import AuditSection, TaskSection

ATTRIBUTES = (("age", ("a", "b", "c", "d")),)
LABELS = ("calm", "storm")


class _Config(NamedTuple):
    audit: AuditSection
    task: TaskSection


class Judged(NamedTuple):
    """What the judges of counts look at of a subject."""

    config: _Config
    seed: AuditSeed


def judged(
    seed: int = 0,
    *,
    tolerance: float = 0.1,
    labels: Sequence[str] = LABELS,
    kind: str = "classification",
) -> Judged:
    """A subject with nothing but a seed and a tolerance."""
    task = TaskSection.model_validate(
        {"kind": kind, "labels": tuple(labels) if kind == "classification" else ()}
    )
    config = _Config(AuditSection(tolerance=tolerance), task)
    return Judged(config, AuditSeed(seed.to_bytes(32, "big")))


def group_counts(
    rng: np.random.Generator,
    accuracies: Sequence[Sequence[float]],
    sizes: Sequence[int],
    *,
    scale: float | None = None,
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ATTRIBUTES,
    base_rates: Sequence[float] | None = None,
) -> FederatedCounts:
    """Two labels; predictions right with the group's chance at each site.

    Args:
        rng: Draws the records, and the noise.
        accuracies: Of each site's groups.
        sizes: Of the groups, at each site; all of them held out.
        scale: Of discrete Laplace noise on every cell.
        attributes: One attribute with as many values as there are groups.
        base_rates: Of the second label in each group; one half without.
    """
    sites = []
    rates = [0.5] * len(sizes) if base_rates is None else list(base_rates)
    for number, of_site in enumerate(accuracies):
        cells = np.zeros((2, len(sizes), 2, 2), dtype=np.int64)
        for group, (accuracy, size) in enumerate(zip(of_site, sizes, strict=True)):
            truth = rng.random(size) < rates[group]
            right = rng.random(size) < accuracy
            predicted = np.where(right, truth, ~truth)
            np.add.at(cells[1, group], (truth.astype(int), predicted.astype(int)), 1)
        cells = cells + laplace_sums(1, scale, cells.shape, rng)
        sites.append(SiteCounts(f"site{number}", cells, np.zeros((2, 1), np.int64), scale))
    return FederatedCounts(attributes, LABELS, (0.0, 1.0), tuple(sites))
