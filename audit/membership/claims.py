"""What differential privacy promises against guessing who is a member."""

import math
from dataclasses import dataclass

from audit.subject import Subject


@dataclass(frozen=True)
class Claim:
    """The epsilon and delta that a run claims for one record."""

    epsilon: float
    delta: float

    @property
    def largest_auc(self) -> float:
        """See ``largest_auc``."""
        return largest_auc(self.epsilon, self.delta)


def claim_of(subject: Subject) -> Claim | None:
    """What the run claims; ``None`` without privacy.

    Where the noise was chosen instead of an epsilon, what the sites' ledgers came to.
    """
    privacy = subject.config.privacy
    if not subject.private:
        return None
    if privacy.target_epsilon is not None:
        return Claim(privacy.target_epsilon, privacy.target_delta)
    spent = [line["spent"] for line in subject.record.rounds]
    found = [site["epsilon"] for sites in spent for site in sites.values() if site["private"]]
    known = [epsilon for epsilon in found if epsilon is not None]
    return Claim(max(known), privacy.target_delta) if known else None


def largest_auc(epsilon: float, delta: float) -> float:
    """The largest AUC of any attack on one record of an (epsilon, delta)-DP mechanism.

    The true positive rate is at most ``min(e^eps f + delta, 1 - e^-eps (1 - delta - f))`` at a
    false positive rate f: two straight lines, and what lies beneath them.

    Source: Kairouz, Oh, Viswanath 2015, "The composition theorem for differential privacy".
    """
    ratio = math.exp(-epsilon)
    # The lines meet where f = 1 - t; then the second climbs to 1 at f = 1 - delta.
    meets = (1 - delta) * ratio / (1 + ratio)
    rate = 1 - meets
    first = meets * (delta + rate) / 2
    second = (1 - delta - meets) * (rate + 1) / 2
    return min(first + second + delta, 1.0)
