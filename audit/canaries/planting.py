"""Canaries among a site's records: which are in, and the training that they are in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

from audit.canaries.records import CanaryRecord, Joined
from audit.canaries.reserved import Reserved, reserve, unsuited
from audit.subject import AuditedSite, Subject
from audit.training import train_model
from audit.verdicts import Budget
from core.data.records import RecordSource, Subset
from core.tasks.interface import Example

_FEWEST: Final = 16
# Of what a site's terms cover, the share that canaries may take up.
_SHARE: Final = 0.8
# More of them cost time and hide no canary: what hides it is the noise.
_RECORDS_PER_CANARY: Final = 1


@dataclass(frozen=True)
class Planting:
    """Where canaries go, and which of them."""

    reserved: Reserved
    site: AuditedSite
    included: npt.NDArray[np.bool_]
    """By a fair coin each, from the committed seed."""
    purpose: str

    @property
    def count(self) -> int:
        """Canaries, in and out."""
        return len(self.included)


def planting_at(subject: Subject, count: int, *, purpose: str) -> Planting | str:
    """Reserves at most ``count`` canaries at the site where a record takes part most often.

    Returns:
        The planting, or the reason why there can be none.
    """
    if subject.private and subject.config.privacy.mode != "local":
        return (
            "In this run the sites share the noise of one sum; planted records would have to be "
            "at one site of a whole federation, which this test does not train."
        )
    why = unsuited(subject)
    if why is not None:
        return why
    site = busiest_site(subject)
    if site is None:
        return "No site took part whose constants are known."
    if site.terms is not None:
        count = min(count, int(_SHARE * site.terms.max_examples))
    if count < _FEWEST:
        return f"The site's terms cover too few records to plant {_FEWEST}: nothing could be seen."
    rng = subject.seed.generator(f"canaries/{purpose}/included")
    return Planting(
        reserve(subject, count, purpose=purpose), site, rng.random(count) < 0.5, purpose
    )


def busiest_site(subject: Subject) -> AuditedSite | None:
    """Where a record takes part most often, by public constants alone; ``None`` without sites."""
    if not subject.private:
        sites = subject.with_records or dict(subject.sites)
        return max(sites.values(), key=lambda s: (s.num_examples, s.name), default=None)
    known = [(s.terms.sample_rate, s.name, s) for s in subject.sites.values() if s.terms]
    return max(known, key=lambda found: found[:2])[2] if known else None


def plant(planting: Planting, examples: Sequence[Example]) -> RecordSource:
    """Some of the site's records, as its terms leave room, and the canaries that are in."""
    split, terms = planting.site.split, planting.site.terms
    records: RecordSource = Subset([], ()) if split is None else split.members
    room = _RECORDS_PER_CANARY * planting.count
    if terms is not None:
        room = min(room, terms.max_examples - planting.count)
    chosen = [
        CanaryRecord(text="", example=example)
        for example, inside in zip(examples, planting.included, strict=True)
        if inside
    ]
    # The same records whichever canaries are in: else a canary would put a record out.
    return Joined(Subset(records, range(min(len(records), room))), chosen)


class _TimeUpError(Exception):
    """Ends a training between two rounds."""


def train_planted(
    planting: Planting,
    records: RecordSource,
    *,
    rounds: int,
    budget: Budget,
    after_round: Callable[[nn.Module], object] = lambda model: None,
) -> int:
    """Trains the reserved copy in place, until the rounds or the time are over.

    Returns:
        The rounds that were trained, 1 or more.
    """
    done = 0

    def ended(number: int, model: nn.Module) -> None:
        nonlocal done
        done = number
        after_round(model)
        if budget.spent:
            raise _TimeUpError

    reserved = planting.reserved
    try:
        train_model(
            reserved.subject,
            records,
            name=f"canaries/{planting.purpose}",
            site=planting.site,
            rounds=rounds,
            model=reserved.model,
            after_round=ended,
        )
    except _TimeUpError:
        reserved.model.eval()
    return done
