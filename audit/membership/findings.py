"""From scores to findings: each attack at each site, beside its control and blind baselines."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from audit.intervals import AucEstimate, holm
from audit.membership.attacks import Attack, Evidence, References
from audit.membership.blind import LABELS, blind_p_values, smallest
from audit.membership.observations import Observation, observe
from audit.membership.strata import (
    OVERALL,
    Difference,
    Stratum,
    alike,
    auc_over,
    exceeds,
    permutation_p_values,
)
from audit.membership.targets import Targets
from audit.membership.training import Control
from audit.subject import Subject

ALPHA: Final = 0.05
ALARM: Final = 0.01
"""Below this, after correction, a baseline or the control raises the alarm."""
MIN_DRAWS: Final = 1999
BEYOND_ALARM: Final = 5
BEYOND_ALPHA: Final = 40
"""Draws beyond a p-value at the threshold: so many that the draw of permutations moves it by a
sixth, and a verdict that another seed would turn is rare."""


@dataclass(frozen=True)
class Row:
    """One attack at one site, or over all of them."""

    attack: Attack
    site: str
    """``OVERALL`` for all."""
    estimate: AucEstimate
    """Its interval holds for all attacks together."""
    p_value: float
    """After Holm's correction over all attacks and sites."""
    control: AucEstimate | None
    """The same attack on the control; ``None`` where that says the same of every record."""
    beyond_control: Difference

    @property
    def leaks(self) -> bool:
        """Surely better than chance, and better than on a model that knows neither side."""
        beyond_chance = self.p_value <= ALPHA and self.estimate.interval.low > 0.5
        return beyond_chance and self.beyond_control.p_value <= ALPHA


@dataclass(frozen=True)
class Alarm:
    """Something without knowledge of the members told them from the others."""

    what: str
    site: str
    p_value: float


@dataclass(frozen=True)
class Findings:
    """All that was found."""

    rows: tuple[Row, ...]
    control: str
    """What the control is."""
    baselines: Mapping[str, AucEstimate]
    baseline_p: float
    """The smallest, after Holm's correction."""
    alarm: Alarm | None
    strata: tuple[Stratum, ...]
    """Scores on the released model, by attack."""
    control_strata: tuple[Stratum, ...]

    @property
    def overall(self) -> tuple[Row, ...]:
        """Over all sites."""
        return tuple(row for row in self.rows if row.site == OVERALL)

    @property
    def best(self) -> Row:
        """The attack with the largest AUC over all sites."""
        return max(self.overall, key=lambda row: row.estimate.auc)

    @property
    def worst(self) -> Row:
        """The attack and the site with the largest AUC; over all where there is one site."""
        sites = [row for row in self.rows if row.site != OVERALL]
        return max(sites, key=lambda row: row.estimate.auc) if sites else self.best

    @property
    def leaks(self) -> tuple[Row, ...]:
        """What was proven, the largest first."""
        found = [row for row in self.rows if row.leaks]
        return tuple(sorted(found, key=lambda row: (row.site != OVERALL, -row.estimate.auc)))


def find(
    subject: Subject,
    targets: Mapping[str, Targets],
    attacks: Sequence[Attack],
    control: Control,
    references: Mapping[str, References] | None = None,
) -> Findings:
    """Attacks the released model and the control, and tries without any model.

    Raises:
        ScoreError: Scores are NaN, or all alike.
    """
    task = subject.config.task.kind
    chosen = [attack for attack in attacks if task in attack.tasks]
    names = [attack.name for attack in chosen]
    generator = subject.seed.generator(f"membership/permutations/{'-'.join(names)}")

    def attacked(observed: Callable[[str, Targets], Observation]) -> tuple[Stratum, ...]:
        return tuple(
            _stratum(one, chosen, observed(site, one), (references or {}).get(site))
            for site, one in sorted(targets.items())
        )

    released = attacked(lambda site, one: observe(subject.model.model, subject, one.records))
    controls = attacked(lambda site, one: observe(control.models[site], subject, one.records))
    groups = len(targets) + 1 if len(targets) > 1 else 1
    draws = draws_for(len(names) * groups, ALPHA, BEYOND_ALPHA)
    p_values = _corrected(permutation_p_values(released, names, generator, draws=draws))
    sure = draws_for(len(names) * groups, ALARM, BEYOND_ALARM)
    used = [name for name in names if not any(alike(s.scores[name]) for s in controls)]
    control_p = _corrected(
        permutation_p_values(controls, used, generator, draws=sure, two_sided=True) if used else {}
    )
    blind, baselines = blind_p_values(
        targets, generator, draws=draws_for(3 * groups, ALARM, BEYOND_ALARM)
    )
    blind_p = _corrected(blind)
    return Findings(
        rows=tuple(
            _row(attack, site, released, controls, p_values[attack.name, site], p_values)
            for site in sorted({site for _, site in p_values})
            for attack in chosen
        ),
        control=control.name,
        baselines=baselines,
        baseline_p=min(blind_p.values(), default=1.0),
        alarm=_alarm(blind_p, control_p, control.name),
        strata=released,
        control_strata=controls,
    )


def _stratum(
    targets: Targets,
    attacks: Sequence[Attack],
    observed: Observation,
    references: References | None,
) -> Stratum:
    evidence = Evidence(observed, targets.zlib_bytes, references)
    scores = {attack.name: attack.score(evidence) for attack in attacks}
    return Stratum(targets.site, targets.member, scores)


def _row(
    attack: Attack,
    site: str,
    released: Sequence[Stratum],
    controls: Sequence[Stratum],
    p_value: float,
    p_values: Mapping[tuple[str, str], float],
) -> Row:
    rows = len({name for name, _ in p_values})
    sites = len({place for _, place in p_values if place != OVERALL})
    confidence = 1 - ALPHA / (rows if site == OVERALL else rows * sites)
    here = [stratum for stratum in released if site in (OVERALL, stratum.site)]
    there = [stratum for stratum in controls if site in (OVERALL, stratum.site)]
    says = not any(alike(stratum.scores[attack.name]) for stratum in there)
    return Row(
        attack=attack,
        site=site,
        estimate=auc_over(here, attack.name, confidence),
        p_value=p_value,
        control=auc_over(there, attack.name, confidence) if says else None,
        beyond_control=exceeds(here, attack.name, there),
    )


def _alarm(
    blind_p: Mapping[tuple[str, str], float],
    control_p: Mapping[tuple[str, str], float],
    control: str,
) -> Alarm | None:
    first, second = smallest(blind_p), smallest(control_p)
    if first is not None and blind_p[first] <= ALARM:
        return Alarm(f"{LABELS[first[0]]}, without any model", first[1], blind_p[first])
    if second is not None and control_p[second] <= ALARM:
        return Alarm(control, second[1], control_p[second])
    return None


def _corrected(p_values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    if not p_values:
        return {}
    keys = sorted(p_values)
    return dict(zip(keys, holm([p_values[key] for key in keys]), strict=True))


def draws_for(tests: int, alpha: float, beyond: int) -> int:
    """So many that of a p-value of alpha, after correction, ``beyond`` draws are beyond it."""
    return max(MIN_DRAWS, math.ceil(beyond * tests / alpha) - 1)
