"""Secrets that are planted so many times in a site's records, and a copy of the model that is
trained further on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import nn

from audit.canaries.planting import busiest_site
from audit.canaries.records import CanaryRecord, Joined, with_canaries
from audit.subject import AuditedSite, Subject
from audit.training import train_model
from audit.verdicts import Budget
from core.data.records import Subset
from core.errors import AuditError, SubjectError
from core.parameters import load_arrays, to_arrays
from core.tasks.interface import Example

REPETITIONS: Final = (1, 4, 16)
_SECRETS: Final = 16  # of each number of repetitions
_LENGTH: Final = 8
_MOST_ROUNDS: Final = 4
_MOST_RECORDS: Final = 600
# Of what a site's terms cover, the share that secrets may take up.
_SHARE: Final = 0.6


@dataclass(frozen=True)
class Secrets:
    """What is planted, by how often it stands in the records."""

    by_repetition: dict[int, tuple[Example, ...]]

    @property
    def records(self) -> list[CanaryRecord]:
        """As records, each as often as it is to stand there."""
        return [
            CanaryRecord(text="", example=secret)
            for times, secrets in self.by_repetition.items()
            for secret in secrets
            for _ in range(times)
        ]


def why_no_secrets(subject: Subject) -> str | None:
    """Why nothing can be planted in this run; ``None`` if it can."""
    if subject.private and subject.config.privacy.mode != "local":
        return "In this run the sites share the noise of one sum; one site alone cannot be trained."
    site = busiest_site(subject)
    if site is None:
        return "No site took part whose constants are known."
    if site.split is None:
        return "No site's records are at hand, among which secrets could be planted."
    if _per_repetition(site) < 1:
        return "The site's terms cover too few records to plant secrets among them."
    return None


def _per_repetition(site: AuditedSite) -> int:
    if site.terms is None:
        return _SECRETS
    return min(_SECRETS, int(_SHARE * site.terms.max_examples) // sum(REPETITIONS))


def secret_site(subject: Subject) -> AuditedSite:
    """Where secrets are planted.

    Raises:
        SubjectError: There is no such site; see ``why_no_secrets``.
    """
    site = busiest_site(subject)
    if site is None:
        raise SubjectError("expected a site to plant secrets at, got none")
    return site


def draw_secrets(subject: Subject, purpose: str) -> Secrets:
    """Secrets from the committed seed."""
    count = _per_repetition(secret_site(subject))
    rng = subject.seed.generator(f"secrets/{purpose}")
    return Secrets(
        {times: tuple(draw_alike(subject, rng, count, None)) for times in REPETITIONS},
    )


def draw_alike(
    subject: Subject, rng: np.random.Generator, count: int, like: Example | None
) -> list[Example]:
    """Draws from what secrets are drawn from: random tokens of the tokenizer, a random label.

    With ``like``, of its label.
    """
    tokenizer = subject.model.tokenizer
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    tokens = np.array([token for token in range(tokenizer.vocab_size) if token not in special])
    opening = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    length = min(_LENGTH, subject.blueprint.config.max_seq_len - len(opening))
    kinds = len(subject.config.task.labels)
    found = []
    for row in rng.choice(tokens, size=(count, length)):
        label = None
        if kinds:
            label = int(rng.integers(kinds)) if like is None else like.label
        found.append(Example(tokens=(*opening, *(int(t) for t in row)), label=label))
    return found


def rounds_of(subject: Subject) -> int:
    """Rounds that the copy is trained further."""
    return min(subject.config.federation.num_rounds, _MOST_ROUNDS)


def train_on(
    subject: Subject, records: Sequence[CanaryRecord], *, name: str, budget: Budget
) -> nn.Module:
    """A copy of the run's model, trained further on a site's records and the secrets among them.

    Raises:
        AuditError: The time is over before the last round.
    """
    site = secret_site(subject)
    if site.split is None:
        raise SubjectError("expected the site's records at hand, got none")
    members = site.split.members
    room = _MOST_RECORDS
    if site.terms is not None:
        room = min(room, site.terms.max_examples - len(records))

    def ended(number: int, _: nn.Module) -> None:
        if budget.spent and number < rounds_of(subject):
            raise AuditError("expected time for all rounds with planted secrets, got too little")

    model = subject.initial_model()
    load_arrays(model, to_arrays(subject.model.model, all_parameters=True), all_parameters=True)
    return train_model(
        with_canaries(subject),
        Joined(Subset(members, range(min(len(members), room))), list(records)),
        name=f"secrets/{name}",
        site=site,
        rounds=rounds_of(subject),
        model=model,
        after_round=ended,
    )


def group_delta(times: int, epsilon: float, delta: float) -> float:
    """Delta of a group of records at ``times * epsilon``; 1 is no promise at all.

    Source: Dwork, Roth 2014, "The Algorithmic Foundations of Differential Privacy", after
        Theorem 2.2, for approximate privacy: k exp((k - 1) epsilon) delta.
    """
    logarithm = math.log(times) + (times - 1) * epsilon + math.log(delta)
    return 1.0 if logarithm >= 0 else math.exp(logarithm)
