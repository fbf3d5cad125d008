"""Sites on worker threads, with the side of the grid that the service uses."""

import threading
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message

from coordinator.grids.in_process import InProcessGrid
from core.array_codec import Manifest
from core.errors import RunError
from tests.support.sites import Sites


class ServiceGrid(InProcessGrid):
    """``names`` are nodes 1, 2, ... in their order; ``away`` ones are never there."""

    def __init__(self, sites: Sites, names: Sequence[str]) -> None:
        nodes = {number: {"site": name} for number, name in enumerate(names, start=1)}
        super().__init__(sites.app(), nodes, workers=1)
        self.names = dict(enumerate(names, start=1))
        self.away: set[int] = set()
        self.begun: list[Mapping[int, str]] = []
        self.ended = 0
        self.looked = 0
        self.settled: list[tuple[tuple[str, ...], str, int]] = []
        self.numbers: list[int] = []
        self.waiting = threading.Event()
        self._interrupted = ""

    def begin_run(self, nodes: Mapping[int, str], reply_manifest: Manifest) -> None:
        """Notes it, and forgets an interruption."""
        self.begun.append(dict(nodes))
        self.numbers.append(self.run.run_id)
        self._interrupted = ""

    def end_run(self) -> None:
        """Notes it."""
        self.ended += 1

    def interrupt(self, reason: str) -> None:
        """The next look at the sites ends the run."""
        self._interrupted = reason

    def sites(self) -> Mapping[str, float]:
        """The sessions that are open."""
        self.looked += 1
        return {name: 0.0 for node, name in self.names.items() if node not in self.away}

    def settle(self, sites: Iterable[str], run_id: str, server_round: int) -> None:
        """Notes it."""
        self.settled.append((tuple(sites), run_id, server_round))

    def get_node_ids(self) -> Iterable[int]:
        """Those that are there."""
        if self._interrupted:
            raise RunError(f"the run was interrupted: {self._interrupted}")
        there = [node for node in super().get_node_ids() if node not in self.away]
        if not there:
            self.waiting.set()
        return there

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As in a simulation."""
        if self._interrupted:
            raise RunError(f"the run was interrupted: {self._interrupted}")
        return super().send_and_receive(messages, timeout=timeout)
