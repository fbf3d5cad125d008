"""What the service needs of its grid besides Flower's side."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from coordinator.flower import Run
from core.array_codec import Manifest


class ServiceGrid(Protocol):
    """What a run, or an audit, needs of the grid besides Flower's side."""

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""

    def begin_run(self, nodes: Mapping[int, str], reply_manifest: Manifest) -> None:
        """Sets whom the run may ask, and what their replies look like."""

    def end_run(self) -> None:
        """Abandons what is unanswered."""

    def interrupt(self, reason: str) -> None:
        """Ends the run's waiting."""

    def sites(self) -> Mapping[str, float]:
        """The sites with an open session."""

    def settle(self, sites: Sequence[str], run_id: str, server_round: int) -> None:
        """Tells sites what they need not keep."""
