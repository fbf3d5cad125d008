"""How the round loop reports its progress, without knowing who listens."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from core.run_record import RoundResult


class RoundEvents(Protocol):
    """Called from the round loop's thread; must return quickly."""

    def run_started(self, server_round: int, num_rounds: int) -> None:
        """The run begins, or goes on after ``server_round`` finished rounds."""

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        """These sites are asked."""

    def round_finished(self, result: RoundResult) -> None:
        """A round is checkpointed and recorded; round 0 is the model before training."""

    def run_finished(
        self, summary: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """All rounds are done; the final trained weights."""


class SilentEvents:
    """Listens to nothing."""

    def run_started(self, server_round: int, num_rounds: int) -> None:
        """Ignored."""

    def attempt_started(self, server_round: int, attempt: int, sites: Sequence[str]) -> None:
        """Ignored."""

    def round_finished(self, result: RoundResult) -> None:
        """Ignored."""

    def run_finished(
        self, summary: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Ignored."""
