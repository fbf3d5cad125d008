"""Models that the audit trains beside the released one: controls, and reference models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import nn

from audit.membership.attacks import References
from audit.membership.observations import Observation, observe
from audit.membership.targets import Joined, Targets
from audit.subject import Subject
from audit.training import train_model
from audit.verdicts import Budget
from core.data.records import RecordSource, Subset

MAX_ROUNDS: Final = 6
QUICK_ROUNDS: Final = 3
NUM_REFERENCES: Final = 8
"""In pairs that saw opposite halves, so that half of them saw each record."""


@dataclass(frozen=True)
class Control:
    """A model for each site that saw none of the site's records, neither members nor others."""

    name: str
    """What it is, in words."""
    models: Mapping[str, nn.Module]


def control_of(subject: Subject, targets: Mapping[str, Targets], *, rounds: int) -> Control:
    """Trains controls, without privacy: on the members of other sites, or on public records.

    The sites form two halves, and each half's model is the other half's control, so that two
    models do for any number of sites.

    Args:
        subject: Brings the model's shape and all constants.
        targets: Of each site.
        rounds: At most so many.
    """
    rounds = min(rounds, subject.config.federation.num_rounds)
    if len(targets) > 1:
        models: dict[str, nn.Module] = {}
        for number, half in enumerate(halves := _halves(targets)):
            data = Joined([_members(targets[name]) for name in half])
            model = train_model(subject, data, name=f"membership/control-{number}", rounds=rounds)
            models |= dict.fromkeys(halves[1 - number], model)
        return Control("a model trained on other sites' records", models)
    public = subject.public_records()
    if public is not None and len(public):
        model = train_model(subject, public, name="membership/control", rounds=rounds)
        return Control("a model trained on public records", dict.fromkeys(targets, model))
    return Control(
        "the model before the first round", dict.fromkeys(targets, subject.initial_model())
    )


def references_of(
    subject: Subject, targets: Mapping[str, Targets], budget: Budget
) -> dict[str, References] | None:
    """Trains the attacker's reference models, without privacy, and asks them about all targets.

    **Guarantees**: Which half of the records a model sees follows from the audit's seed alone,
    never from who is a member; half of the models saw each record.

    Returns:
        By site; ``None`` where there was no time for all of the models.
    """
    names = sorted(targets)
    pool = Joined([targets[name].records for name in names])
    saw = np.zeros((NUM_REFERENCES, len(pool)), dtype=np.bool_)
    seen = []
    for number in range(NUM_REFERENCES):
        if budget.spent:
            return None
        saw[number] = _half(subject, number // 2, len(pool)) ^ bool(number % 2)
        model = train_model(
            subject,
            Subset(pool, np.flatnonzero(saw[number]).tolist()),
            name=f"membership/reference-{number}",
            rounds=min(MAX_ROUNDS, subject.config.federation.num_rounds),
        )
        seen.append(observe(model, subject, pool))
    return _by_site(names, [len(targets[name]) for name in names], seen, saw)


def _half(subject: Subject, pair: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    order = subject.seed.generator(f"membership/half-{pair}").permutation(count)
    return np.asarray(order < count / 2, dtype=np.bool_)


def _by_site(
    names: Sequence[str],
    sizes: Sequence[int],
    seen: Sequence[Observation],
    saw: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
) -> dict[str, References]:
    found = {}
    start = 0
    for name, size in zip(names, sizes, strict=True):
        part = slice(start, start + size)
        found[name] = References(tuple(one.at(part) for one in seen), saw[:, part])
        start += size
    return found


def _halves(targets: Mapping[str, Targets]) -> tuple[list[str], list[str]]:
    """Two halves of about as many records each."""
    halves: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    for name in sorted(targets, key=lambda site: (-len(targets[site]), site)):
        smaller = int(sizes[1] < sizes[0])
        halves[smaller].append(name)
        sizes[smaller] += len(targets[name])
    return halves


def _members(targets: Targets) -> RecordSource:
    return Subset(targets.records, np.flatnonzero(targets.member).tolist())
