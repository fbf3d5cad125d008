"""The seam between the round loop and the ways to gather updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from coordinator.state import RunState
from coordinator.strategies import Contribution
from core.aggregation_messages import Transcript
from core.messages import TrainReply
from core.run_record import RejectedReply, SiteRefusal

ATTEMPT_ENDED: Final = "attempt-ended"
"""Code of a dropped reply: what came of the site was right, and the attempt as a whole was not."""
MAY_ASK_AGAIN: Final = ("no-reply", "client-error", ATTEMPT_ENDED)
"""Codes of dropped replies whose sites another attempt may ask."""


@dataclass(frozen=True)
class Question:
    """One attempt at one round."""

    names: Sequence[str]
    """Whom it asks."""
    nodes: Mapping[str, int]
    """The node of each site that is there."""
    server_round: int
    attempt: int
    state: RunState
    """The round before."""


@dataclass(frozen=True)
class Answers:
    """What one attempt brought."""

    replies: Mapping[str, TrainReply]
    """The replies of the sites whose updates are in ``contributions``, by site."""
    contributions: Sequence[Contribution]
    """What the strategy sees: an update of each site, or one that stands for all of them."""
    refusals: Sequence[SiteRefusal]
    rejected: Sequence[RejectedReply]
    transcript: Transcript | None = None
    """What was opened, where that was a sum."""


class Aggregator(Protocol):
    """A way to gather updates. Secret sharing between two servers or homomorphic encryption would
    be another one."""

    def ask(self, question: Question) -> Answers:
        """Asks the sites, and waits until the deadline.

        Guarantees:
            Every site that is asked ends in exactly one of the three: its update counts, it
            refused, or its reply was dropped by name.
        """
