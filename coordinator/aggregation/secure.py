"""Secure aggregation at the coordinator: a training order, four exchanges, and one sum.

The protocol itself is ``privacy.secure_aggregation.coordinator``. A site whose message does not
fit is dropped by name and the attempt goes on without it, as long as enough are left.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from secrets import token_hex
from typing import Any, Final

import numpy.typing as npt
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from coordinator.aggregation.exchange import (
    Exchange,
    check_records,
    document_of,
    masked_in,
    with_document,
)
from coordinator.aggregation.interface import ATTEMPT_ENDED, Answers, Question
from coordinator.aggregation.opened import contribution_of_sum
from coordinator.orders import Desk
from coordinator.payload import to_record
from coordinator.strategies import Contribution
from coordinator.validation import check_train_reply
from core.aggregation_messages import (
    CONFIRMATION,
    MASKED,
    MASKED_ARRAY,
    REVEAL,
    SHARES,
    Advert,
    Confirmation,
    MaskedInput,
    Revealed,
    SealedShares,
    Transcript,
)
from core.config import StrategySection
from core.config_sections import MemberSection
from core.digests import arrays_digest
from core.errors import CohortTooSmallError, IdentityError, MessageError, SecureAggregationError
from core.messages import AggregationOrder, TrainReply, TrainTask
from core.wire.documents import Roster, SignedRoster
from privacy.identities.clock import utc_now, write_timestamp
from privacy.secure_aggregation.context import AttemptContext, context_of, roster_digest
from privacy.secure_aggregation.coordinator import CoordinatorAttempt

logger = logging.getLogger(__name__)

_EXCHANGES: Final = 4

Arrays = Mapping[str, npt.NDArray[Any]]


class SecureSums:
    """The coordinator opens the sum of the updates, and no update.

    Args:
        grid: Reaches the sites.
        desk: Writes the orders.
        members: The roster of the run, by node id.
        section: The deadline of the training, and the fewest sites.
        signed_roster: The newest roster of the federation's admin.
    """

    def __init__(
        self,
        grid: Grid,
        desk: Desk,
        members: Mapping[int, MemberSection],
        section: StrategySection,
        signed_roster: Callable[[], SignedRoster],
    ) -> None:
        self._grid, self._desk, self._members = grid, desk, members
        self._section = section
        self._signed_roster = signed_roster

    def ask(self, question: Question) -> Answers:
        """See ``Aggregator``. A sum counts with all that are in it, or nothing does."""
        signed = self._signed_roster()
        orders = self._orders(question, signed.roster)
        exchange = Exchange(self._grid, orders)
        try:
            return self._ask(question, signed, orders, exchange)
        except SecureAggregationError as error:
            logger.warning("an attempt at a secure sum ends: %s", error)
            for name in question.names:
                exchange.drop(name, ATTEMPT_ENDED, f"{error.code}: {error.message}")
            return Answers({}, (), exchange.refusals, exchange.rejected)

    def _ask(
        self,
        question: Question,
        signed: SignedRoster,
        orders: Mapping[int, TrainTask],
        exchange: Exchange,
    ) -> Answers:
        if not orders:
            raise CohortTooSmallError("expected sites that are active in the roster, got none")
        # All that is the site's own (its name, size and noise) is not in the context.
        context = context_of(next(iter(orders.values())), signed.roster)
        attempt = _Attempt(
            exchange=exchange,
            protocol=CoordinatorAttempt(context, roster=signed.roster, dimension=context.dimension),
            context=context,
            orders={order.site: order for order in orders.values()},
            fewest=self._section.min_train_nodes,
            training_seconds=self._section.round_timeout_seconds,
            exchange_seconds=self._exchange_seconds,
        )
        contents = self._contents(orders, signed, question.state.arrays)
        replies = attempt.train(contents)
        transcript, contribution = attempt.open(question.state.arrays)
        exchange.forgive(transcript.survivors)
        return Answers(
            replies={site: replies[site] for site in transcript.survivors},
            contributions=[contribution],
            refusals=exchange.refusals,
            rejected=exchange.rejected,
            transcript=transcript,
        )

    def _orders(self, question: Question, roster: Roster) -> dict[int, TrainTask]:
        """An order for each site that is asked and still active in the roster."""
        active = {member.name for member in roster.members if member.status == "active"}
        names = sorted(active & set(question.names))
        timeout = self._section.round_timeout_seconds + _EXCHANGES * self._exchange_seconds
        state = question.state
        aggregation = AggregationOrder(
            nonce=token_hex(32),
            roster_epoch=roster.epoch,
            roster_digest=roster_digest(roster),
            members=tuple(names),
            dimension=sum(array.size for array in state.arrays.values()),
            deadline=write_timestamp(utc_now() + timedelta(seconds=timeout + 1)),
        )
        return {
            question.nodes[name]: self._desk.task(
                self._members[question.nodes[name]],
                server_round=question.server_round,
                attempt=question.attempt,
                arrays_digest=state.result.weights_digest,
                witness=state.witnesses.get(name),
                aggregation=aggregation,
            )
            for name in names
        }

    def _contents(
        self, orders: Mapping[int, TrainTask], signed: SignedRoster, arrays: Arrays
    ) -> dict[str, RecordDict]:
        record = to_record(arrays)
        contents = {}
        for order in orders.values():
            contents[order.site] = self._desk.content(order, record)
            contents[order.site].update(with_document("roster", signed))
        return contents

    @property
    def _exchange_seconds(self) -> float:
        section = self._desk.terms.secure_aggregation
        return section.exchange_timeout_seconds if section else 0.0


@dataclass(frozen=True)
class _Attempt:
    """One attempt, step by step."""

    exchange: Exchange
    protocol: CoordinatorAttempt
    context: AttemptContext
    orders: Mapping[str, TrainTask]
    fewest: int
    training_seconds: float
    exchange_seconds: float

    def train(self, contents: Mapping[str, RecordDict]) -> dict[str, TrainReply]:
        """The training order; the sites' replies, whose updates stay where they are."""
        replies = {}
        asked = self.exchange.ask(MessageType.TRAIN, contents, self.training_seconds)
        for site, content in asked:
            with self._dropping(site):
                check_records(content, "reply", "advert")
                reply = check_train_reply(content, self.orders[site])
                self.protocol.add_advert(document_of(site, content, "advert", Advert))
                replies[site] = reply
        return replies

    def open(self, global_arrays: Arrays) -> tuple[Transcript, Contribution]:
        """The four exchanges after it, and what the sum says.

        Raises:
            SecureAggregationError: Too few are left, or what was opened does not fit.
        """
        self._share()
        self._collect()
        survivors = self._confirm()
        self._reveal()
        total = self.protocol.open()
        contribution = contribution_of_sum(
            total, self.context, survivors, next(iter(self.orders.values())), global_arrays
        )
        return self.protocol.transcript(arrays_digest({"sum": total})), contribution

    def _share(self) -> None:
        adverts = self.protocol.adverts()
        contents = {each.site: with_document("adverts", adverts) for each in adverts.adverts}
        for site, content in self._exchange(SHARES, contents):
            with self._dropping(site):
                check_records(content, "shares")
                self.protocol.add_shares(document_of(site, content, "shares", SealedShares))

    def _collect(self) -> None:
        deliveries = self.protocol.deliveries()
        self._check_enough(len(deliveries))
        contents = {site: with_document("shares", each) for site, each in deliveries.items()}
        for site, content in self._exchange(MASKED, contents):
            with self._dropping(site):
                check_records(content, "masked", "arrays")
                masked = document_of(site, content, "masked", MaskedInput)
                values = masked_in(content, self.context.dimension)
                if arrays_digest({MASKED_ARRAY: values}) != masked.digest:
                    raise MessageError("expected arrays of the digest that came with them")
                self.protocol.add_masked(masked, values)

    def _confirm(self) -> tuple[str, ...]:
        survivors = self.protocol.survivors()
        self._check_enough(len(survivors.survivors))
        document = with_document("survivors", survivors)
        contents = {site: RecordDict(dict(document)) for site in survivors.survivors}
        for site, content in self._exchange(CONFIRMATION, contents):
            with self._dropping(site):
                check_records(content, "confirmation")
                self.protocol.add_confirmation(
                    document_of(site, content, "confirmation", Confirmation)
                )
        return survivors.survivors

    def _reveal(self) -> None:
        confirmations = self.protocol.confirmations()
        document = with_document("confirmations", confirmations)
        sites = [each.site for each in confirmations.signatures]
        contents = {site: RecordDict(dict(document)) for site in sites}
        for site, content in self._exchange(REVEAL, contents):
            with self._dropping(site):
                check_records(content, "revealed")
                self.protocol.add_revealed(document_of(site, content, "revealed", Revealed))

    def _check_enough(self, count: int) -> None:
        """Before the masks too: a site that has masked its update has spent it."""
        if count < self.fewest:
            raise CohortTooSmallError(
                f"expected {self.fewest} sites in the sum, got {count}",
                hint="strategy.min_train_nodes wants so many",
            )

    def _exchange(
        self, message_type: str, contents: Mapping[str, RecordDict]
    ) -> Iterator[tuple[str, RecordDict]]:
        return self.exchange.ask(message_type, contents, self.exchange_seconds)

    @contextmanager
    def _dropping(self, site: str) -> Iterator[None]:
        """Takes a site out whose message does not fit."""
        try:
            yield
        except (MessageError, IdentityError, SecureAggregationError) as error:
            self.exchange.drop(site, "invalid-reply", f"{error.code}: {error.message}")
