"""What every grid does alike: it belongs to a run and makes that run's messages."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from coordinator.flower import Run, empty_run, instruction


class GridOfRun(Grid):
    """The half of Flower's ``Grid`` that sends nothing.

    Args:
        run_id: Flower's number of the run.
    """

    def __init__(self, run_id: int = 0) -> None:
        self._run = empty_run(run_id)

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node; its id is given when it is pushed."""
        return instruction(
            content,
            run_id=self._run.run_id,
            message_id="",
            dst_node_id=dst_node_id,
            message_type=message_type,
            group_id=group_id,
            ttl=ttl,
        )
