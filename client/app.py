"""Flower's ClientApp over a site's rounds: messages in, replies or refusals out.

Where the terms have no secure aggregation, a round is ``local_round``. Where they have, it is the
training order and four exchanges after it; see ``client.secure_round``. An audit's counts are
``audit_round``.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.audit_round import audit_round
from client.content import (
    documents_content,
    read_arrays,
    read_document,
    read_order,
    refusal_content,
    reply_content,
)
from client.local_round import after_debit, check_kept, local_round
from client.outbox import Outbox
from client.secure_round import SecureRound, SecureRounds
from client.site import Site, Workshop
from core.aggregation_messages import (
    CONFIRMATION,
    MASKED,
    REVEAL,
    SHARES,
    Adverts,
    AttemptMessage,
    Confirmations,
    SealedShares,
    Survivors,
)
from core.array_codec import encode_arrays
from core.audit_messages import AUDIT, AuditOrder
from core.errors import CloisterError, RoundFailedError
from core.messages import TrainTask
from core.wire.documents import SignedRoster

logger = logging.getLogger(__name__)

Asked: TypeAlias = TrainTask | AttemptMessage | AuditOrder
_Step: TypeAlias = Callable[[SecureRound, Any], RecordDict]


def build_client_app(
    site_of: Callable[[Context], Site], workshop: Workshop, outbox: Outbox | None = None
) -> ClientApp:
    """The app that every node runs.

    Guarantees:
        Every order is answered with a reply or a refusal; no exception leaves the app.

    Args:
        site_of: The site behind a node's context; several in a simulation, one at a real site.
        workshop: Builds and holds the models.
        outbox: Keeps computed replies; ``None`` in a simulation, where none can be lost.
    """
    app = ClientApp()
    rounds = SecureRounds(workshop)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = site_of(context)

        def answer(order: TrainTask) -> RecordDict:
            logger.info("%s: asked for round %d of %s", site.name, order.server_round, order.run_id)
            if order.terms.secure_aggregation is not None:
                return _begin(rounds.of(site), workshop, order, message.content)
            rounds.forget(site.name)
            return _answer(site, workshop, order, message.content, outbox)

        return _reply(message, site, lambda: read_order(message.content), answer)

    @app.query(AUDIT.removeprefix("query."))
    def audit(message: Message, context: Context) -> Message:
        site = site_of(context)

        def answer(order: AuditOrder) -> RecordDict:
            logger.info("%s: asked for the counts of an audit of %s", site.name, order.run_id)
            arrays = read_arrays(message.content, workshop.manifest)
            return documents_content({"counts": audit_round(site, workshop, order, arrays)})

        return _reply(
            message, site, lambda: read_document(message.content, "audit", AuditOrder), answer
        )

    def exchange(message_type: str, document: str, kind: type[AttemptMessage], step: _Step) -> None:
        def handle(message: Message, context: Context) -> Message:
            site = site_of(context)
            return _reply(
                message,
                site,
                lambda: read_document(message.content, document, kind),
                lambda asked: step(rounds.of(site), asked),
            )

        app.query(message_type.removeprefix("query."))(handle)

    exchange(SHARES, "adverts", Adverts, _share)
    exchange(MASKED, "shares", SealedShares, _mask)
    exchange(CONFIRMATION, "survivors", Survivors, _confirm)
    exchange(REVEAL, "confirmations", Confirmations, _reveal)
    return app


def _reply(
    message: Message,
    site: Site,
    read: Callable[[], Asked],
    answer: Callable[[Any], RecordDict],
) -> Message:
    """The answer, or a refusal."""
    asked: Asked | None = None
    error: CloisterError
    try:
        asked = read()
        content = answer(asked)
        logger.info("%s: answers round %d", site.name, asked.server_round)
        return Message(content, reply_to=message)
    except CloisterError as known:
        error = known
    except Exception:
        # Whatever it is and says, it may speak of records.
        logger.exception("%s: a round failed", site.name)
        error = RoundFailedError("the round failed at the site")
    logger.warning("%s refuses a round: %s", site.name, error)
    return Message(refusal_content(error, site.name, asked), reply_to=message)


def _answer(
    site: Site, workshop: Workshop, order: TrainTask, content: RecordDict, outbox: Outbox | None
) -> RecordDict:
    """A kept reply to the same order, else a new one, kept before it is given out."""
    kept = None if outbox is None else outbox.find(order)
    if kept is not None:
        check_kept(site, order, kept.reply)
        return reply_content(kept.reply, kept.arrays)
    result = local_round(site, workshop, order, read_arrays(content, workshop.manifest))
    with after_debit(order):
        arrays = encode_arrays(result.arrays)
        if outbox is not None:
            outbox.keep(order, result.reply, arrays)
        return reply_content(result.reply, arrays)


def _begin(
    secure: SecureRound, workshop: Workshop, order: TrainTask, content: RecordDict
) -> RecordDict:
    roster = read_document(content, "roster", SignedRoster)
    reply, advert = secure.begin(order, roster, read_arrays(content, workshop.manifest))
    return documents_content({"reply": reply, "advert": advert})


def _share(secure: SecureRound, adverts: Adverts) -> RecordDict:
    return documents_content({"shares": secure.share(adverts)})


def _mask(secure: SecureRound, shares: SealedShares) -> RecordDict:
    said, values = secure.mask(shares)
    return documents_content({"masked": said}, encode_arrays(values))


def _confirm(secure: SecureRound, survivors: Survivors) -> RecordDict:
    return documents_content({"confirmation": secure.confirm(survivors)})


def _reveal(secure: SecureRound, confirmations: Confirmations) -> RecordDict:
    return documents_content({"revealed": secure.reveal(confirmations)})
