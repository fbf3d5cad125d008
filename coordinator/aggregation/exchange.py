"""One message to each of some sites, and what comes back, whoever reads it."""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from coordinator.aggregation.interface import ATTEMPT_ENDED
from coordinator.payload import from_record
from coordinator.validation import dropped, entry, read_refusal
from core.aggregation_messages import (
    MASKED_ARRAY,
    Advert,
    Confirmation,
    MaskedInput,
    Revealed,
    SealedShares,
)
from core.array_codec import UINT32, Manifest, array_spec
from core.errors import AlreadySpentError, MessageError, SecureAggregationError
from core.messages import TrainTask, WireMessage, decode, encode
from core.run_record import RejectedReply, SiteRefusal

logger = logging.getLogger(__name__)

Said = TypeVar("Said", Advert, SealedShares, MaskedInput, Confirmation, Revealed)


class Exchange:
    """Asks the sites of one attempt, step by step.

    Guarantees:
        A site that refuses, fails, sends something else than it was asked for, or is late is
        named once, in ``refusals`` or ``rejected``.

    Args:
        grid: Reaches the sites.
        orders: The attempt's orders, by node.
    """

    def __init__(self, grid: Grid, orders: Mapping[int, TrainTask]) -> None:
        self._grid = grid
        self._orders = orders
        self._nodes = {order.site: node for node, order in orders.items()}
        self.refusals: list[SiteRefusal] = []
        self.rejected: list[RejectedReply] = []

    def ask(
        self, message_type: str, contents: Mapping[str, RecordDict], timeout: float
    ) -> Iterator[tuple[str, RecordDict]]:
        """The contents of the replies by site, each once, as they come."""
        wanted = set(contents)
        messages = (
            self._grid.create_message(
                content,
                message_type,
                self._nodes[site],
                str(self._orders[self._nodes[site]].server_round),
                timeout,
            )
            for site, content in contents.items()
        )
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            order = self._orders.get(reply.metadata.src_node_id)
            if order is None or order.site not in wanted:
                logger.warning(
                    "node %d sent a reply that is not used: it was not asked in this step, or has "
                    "answered before",
                    reply.metadata.src_node_id,
                )
                continue
            wanted.remove(order.site)
            content = self._content(reply, order)
            if content is not None:
                yield order.site, content
        for site in sorted(wanted):
            self.drop(site, "no-reply", "no reply before the deadline")

    def drop(self, site: str, code: str, message: str) -> None:
        """Takes a site out of the attempt, once."""
        if site not in {no.site for no in self.refusals} | {bad.site for bad in self.rejected}:
            self.rejected.append(RejectedReply(site, code, message))

    def forgive(self, sites: Collection[str]) -> None:
        """Names no longer the sites that left when the sum held their updates: those count."""
        left: list[SiteRefusal | RejectedReply] = [*self.refusals, *self.rejected]
        for lost in left:
            if lost.site in sites:
                logger.warning(
                    "%s left a sum that holds its update: %s: %s",
                    lost.site,
                    lost.code,
                    lost.message,
                )
        self.refusals = [no for no in self.refusals if no.site not in sites]
        self.rejected = [bad for bad in self.rejected if bad.site not in sites]

    def _content(self, reply: Message, order: TrainTask) -> RecordDict | None:
        if reply.has_error():
            self.rejected.append(dropped(reply.error, order.site))
            return None
        if set(reply.content) != {"refusal"}:
            return reply.content
        try:
            refusal = read_refusal(reply.content, order)
        except MessageError as error:
            self.drop(order.site, "invalid-reply", error.message)
            return None
        if refusal.code in _ENDS_THE_ATTEMPT:
            self.drop(order.site, ATTEMPT_ENDED, f"{refusal.code}: {refusal.message}")
        else:
            self.refusals.append(refusal)
        return None


def with_document(name: str, document: WireMessage) -> RecordDict:
    """A message of one document."""
    return RecordDict({name: ConfigRecord({name: encode(document)})})


def document_of(site: str, content: RecordDict, name: str, kind: type[Said]) -> Said:
    """What ``site`` says in the document ``name`` of its reply.

    Raises:
        MessageError: It does not parse, or says that it is another site's: that one would be taken
            for the liar.
    """
    said = decode(kind, entry(content, name))
    if said.site != site:
        raise MessageError(f"expected {kind.__name__} of {site}, got that of {said.site}")
    return said


def masked_in(content: RecordDict, dimension: int) -> npt.NDArray[np.uint32]:
    """The masked vector of a reply, over the very bytes that came, or MessageError."""
    record = content["arrays"]
    if not isinstance(record, ArrayRecord):
        raise MessageError(f"expected 'arrays' as ArrayRecord, got {type(record).__name__}")
    values: npt.NDArray[np.uint32] = from_record(record, masked_manifest(dimension))[MASKED_ARRAY]
    return values


def masked_manifest(dimension: int) -> Manifest:
    """What the arrays of a masked reply must be."""
    return {MASKED_ARRAY: array_spec((dimension,), UINT32)}


def check_records(content: RecordDict, *names: str) -> None:
    """Raises MessageError where a reply holds other records than these."""
    if set(content) != set(names):
        got = ", ".join(sorted(ascii(name)[:40] for name in content)[:4]) or "none"
        raise MessageError(f"expected the records {', '.join(names)}, got {got}")


def _codes(kind: type[SecureAggregationError]) -> set[str]:
    found = {kind("").code}
    return found.union(*(_codes(each) for each in kind.__subclasses__()))


_ENDS_THE_ATTEMPT: Final = _codes(SecureAggregationError) - {AlreadySpentError("").code}
"""What ends an attempt at one site says nothing about the next attempt; but an update that would be
the same again is refused for good."""
