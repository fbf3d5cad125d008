"""Each site's update as it is: what the site's own noise protects, if anything does."""

from collections.abc import Mapping

from flwr.app import MessageType
from flwr.serverapp import Grid

from coordinator.aggregation.interface import Answers, Question
from coordinator.orders import Desk
from coordinator.payload import to_record
from coordinator.strategies import Contribution
from coordinator.validation import ReplyRules, sort_replies
from core.config import StrategySection
from core.config_sections import MemberSection


class ClearUpdates:
    """The coordinator sees every update, and validates it.

    Args:
        grid: Reaches the sites.
        desk: Writes the orders.
        members: The roster, by node id.
        section: Deadline and limits.
    """

    def __init__(
        self, grid: Grid, desk: Desk, members: Mapping[int, MemberSection], section: StrategySection
    ) -> None:
        self._grid, self._desk, self._members, self._section = grid, desk, members, section

    def ask(self, question: Question) -> Answers:
        """See ``Aggregator``."""
        state = question.state
        tasks = {
            question.nodes[name]: self._desk.task(
                self._members[question.nodes[name]],
                server_round=question.server_round,
                attempt=question.attempt,
                arrays_digest=state.result.weights_digest,
                witness=state.witnesses.get(name),
            )
            for name in question.names
        }
        record = to_record(state.arrays)
        timeout = self._section.round_timeout_seconds
        # One by one: the first sites work while the last messages are written.
        messages = (
            self._grid.create_message(
                self._desk.content(task, record),
                MessageType.TRAIN,
                node,
                str(question.server_round),
                timeout,
            )
            for node, task in tasks.items()
        )
        rules = ReplyRules.of(
            state.arrays,
            encoding=self._desk.terms.update_encoding,
            max_update_norm=self._section.max_update_norm,
            # A grid that does not say so is taken for one with a wire.
            verify_digest=getattr(self._grid, "passes_arrays_by_reference", False) is not True,
        )
        outcome = sort_replies(self._grid.send_and_receive(messages, timeout=timeout), tasks, rules)
        sizes = {task.site: task.num_examples for task in tasks.values()}
        return Answers(
            replies={valid.site: valid.reply for valid in outcome.valid},
            contributions=[
                # The weight is the roster's: a reply's own figure would be its site's to choose.
                Contribution(valid.site, sizes[valid.site], valid.arrays)
                for valid in outcome.valid
            ],
            refusals=outcome.refusals,
            rejected=outcome.rejected,
        )
