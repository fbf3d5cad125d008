"""A site's part in one round under secure aggregation: train, advertise, share, mask, confirm.

The protocol itself is ``privacy.secure_aggregation.site``; here are the site's policy, ledger and
model around it. Nothing of an attempt is ever written to the disk but the ledger's mark that an
update is spent.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.local_round import PaidRound, check_order, paid_round, reply_to
from client.site import Site, Workshop
from client.standing import Standing
from core.aggregation_messages import (
    MASKED_ARRAY,
    Advert,
    Adverts,
    AttemptMessage,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    SealedShares,
    Survivors,
)
from core.config_sections import SecureAggregationSection
from core.digests import arrays_digest, json_digest
from core.errors import (
    ContextMismatchError,
    DeadlineError,
    OutOfOrderError,
    PolicyRefusedError,
)
from core.messages import TrainReply, TrainTask
from core.parameters import copy_to, cut, difference_norm
from core.wire.documents import SignedRoster
from privacy.distributed_sum import ClippedSum
from privacy.identities.clock import utc_now
from privacy.secure_aggregation.context import AttemptContext, context_of
from privacy.secure_aggregation.site import SiteAttempt

logger = logging.getLogger(__name__)

LONGEST_ATTEMPT: Final = timedelta(days=7)

Arrays = dict[str, npt.NDArray[Any]]
Integers = npt.NDArray[np.uint32]


@dataclass
class _Update:
    """What was computed for an order and has not left the site."""

    key: str
    reply: TrainReply
    values: Integers | ClippedSum
    sequence: int
    repeatable: bool
    attempt: int
    """The newest attempt that it was meant for."""

    def take(self, cohort: int) -> Integers:
        """The integers to be masked at once, with this site's share of the noise if it has one."""
        return self.values.noised(cohort) if isinstance(self.values, ClippedSum) else self.values

    def wipe(self) -> None:
        """Overwrites it."""
        if isinstance(self.values, ClippedSum):
            self.values.wipe()
        else:
            self.values.fill(0)

    def __repr__(self) -> str:
        return "_Update(values=***)"


class SecureRound:
    """The attempts of one site, one at a time, in memory only.

    Guarantees:
        An update is debited before it is computed, and leaves the site at most once, masked, after
        the ledger said so durably, and into each attempt at most one does. An attempt that fails
        before that leaves the update for the next attempt at the same round, which then costs
        nothing where it encodes updates alike; after it, the next attempt computes and debits
        another update, or is refused where that would be the same one.

    Args:
        site: Whose.
        workshop: Holds this thread's model.
        standing: The site's key, and the roster that it believes.
        now: The time.
    """

    def __init__(
        self,
        site: Site,
        workshop: Workshop,
        standing: Standing,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._site = site
        self._workshop = workshop
        self._standing = standing
        self._now = now
        self._attempt: tuple[str, SiteAttempt] | None = None
        self._update: _Update | None = None

    def __repr__(self) -> str:
        return f"SecureRound({self._site.name!r})"

    def begin(
        self, order: TrainTask, signed: SignedRoster, arrays: Arrays
    ) -> tuple[TrainReply, Advert]:
        """Trains, or takes the update that an earlier attempt left, and advertises.

        Args:
            order: What to do.
            signed: The roster that the coordinator shows.
            arrays: The global weights.

        Raises:
            RefusedError: By the policy or the budget.
            IdentityError: The roster is not to be believed.
            SecureAggregationError: The order contradicts the roster or itself.
            CloisterError: See ``local_round``.
        """
        self.drop()
        roster = self._standing.believe(signed, self._now())
        total = sum(m.num_examples for m in roster.members if m.status == "active")
        check_order(self._site, order, total_examples=total)
        context = context_of(order, roster)
        self._check_dimension(context)
        self._check_deadline(context)
        section = _section(order)
        attempt = SiteAttempt(
            context,
            site=self._site.name,
            key=self._standing.node_key(),
            roster=roster,
            min_cohort=max(self._site.policy.min_cohort, section.min_cohort),
            colluding=section.colluding_sites,
            now=self._now,
        )
        # What is wrong with the attempt showed by now: nothing was debited for it.
        update = self._update_for(order, context, arrays, total)
        advert = attempt.advert()
        self._attempt = context.hexdigest(), attempt
        return update.reply.model_copy(update={"attempt": order.attempt}), advert

    def share(self, adverts: Adverts) -> SealedShares:
        """Deals shares of this attempt's secrets to all that take part."""
        return self._present(adverts).share(adverts)

    def mask(self, delivered: SealedShares) -> tuple[MaskedInput, dict[str, Integers]]:
        """Marks the update as spent, and masks it.

        Raises:
            AlreadySpentError: It left the site before.
            SecureAggregationError: The shares are not what they must be.
        """
        attempt = self._present(delivered)
        attempt.open_shares(delivered)
        # Whatever comes now, it serves no other attempt.
        update, self._update = self._update, None
        if update is None:
            raise OutOfOrderError("expected an update that waits to be masked, got none")
        values = update.take(attempt.cohort)
        try:
            attempt.mask(values, lambda: self._mark_spent(update, delivered.context))
        except BaseException:
            values.fill(0)  # it holds one share of the noise at most
            raise
        masked = {MASKED_ARRAY: values}
        return attempt.masked(arrays_digest(masked)), masked

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Signs, once, whose vectors the sum holds."""
        return self._present(survivors).confirm(survivors)

    def reveal(self, confirmations: Confirmations) -> Revealed:
        """Gives the shares that open the sum, and forgets everything."""
        revealed = self._present(confirmations).reveal(confirmations)
        self.drop()
        return revealed

    def drop(self) -> None:
        """Ends the attempt; an update that has not left the site is kept for the next."""
        if self._attempt is not None:
            self._attempt[1].wipe()
            self._attempt = None

    def forget(self) -> None:
        """Overwrites an update that has not left the site: it never will."""
        update, self._update = self._update, None
        if update is not None:
            update.wipe()

    def _check_dimension(self, context: AttemptContext) -> None:
        trained = sum(math.prod(spec.shape) for spec in self._workshop.manifest.values())
        if context.dimension != trained:
            raise ContextMismatchError(
                f"expected an attempt over {trained} coordinates, got one over {context.dimension}"
            )

    def _check_deadline(self, context: AttemptContext) -> None:
        """Secrets do not wait in memory for whenever a coordinator may come back to them."""
        if context.ends() > self._now() + LONGEST_ATTEMPT:
            raise DeadlineError(
                f"expected an attempt of at most {LONGEST_ATTEMPT.days} days, got one until "
                f"{context.deadline}",
                hint="lower strategy.round_timeout_seconds",
            )

    def _present(self, message: AttemptMessage) -> SiteAttempt:
        if self._attempt is None:
            raise OutOfOrderError("expected a site within an attempt, got one in none")
        context, attempt = self._attempt
        if message.context != context:
            raise ContextMismatchError("expected a message of the present attempt, got another's")
        return attempt

    def _update_for(
        self, order: TrainTask, context: AttemptContext, arrays: Arrays, total_examples: int
    ) -> _Update:
        key, kept = _key(order, context), self._update
        if kept is not None and kept.key == key:
            if order.attempt <= kept.attempt:
                raise OutOfOrderError(
                    f"expected an attempt after {kept.attempt}, got {order.attempt}"
                )
            kept.attempt = order.attempt
            return kept
        self.forget()  # its memory, before another is made
        with paid_round(
            self._site, self._workshop, order, arrays, total_examples=total_examples
        ) as paid:
            values = _computed(paid, context, arrays)
            reply = reply_to(order, {}, paid.ledger)
            # Without fresh noise, what is computed anew is the same again.
            repeatable = order.terms.privacy.mode != "none" and paid.randomness.private
            self._update = _Update(key, reply, values, paid.sequence, repeatable, order.attempt)
        return self._update

    def _mark_spent(self, update: _Update, context: str) -> None:
        with self._site.open_ledger() as ledger:
            ledger.release(update.sequence, context, repeatable=update.repeatable)


class SecureRounds:
    """The attempts of all sites that an app plays; one of them at a real site.

    Args:
        workshop: Builds and holds the models.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._rounds: dict[str, SecureRound] = {}

    def forget(self, site: str) -> None:
        """The site was asked for something else: ends its attempt and overwrites its update."""
        if site in self._rounds:
            self._rounds[site].drop()
            self._rounds[site].forget()

    def of(self, site: Site) -> SecureRound:
        """The site's.

        Raises:
            PolicyRefusedError: The site has no standing in a federation.
        """
        if site.standing is None:
            raise PolicyRefusedError(
                "expected a site that is in a signed roster, got one without an identity",
                hint="secure aggregation needs node keys: `cloister client join` makes them",
            )
        # One order at a time: no other thread plays this site now.
        if site.name not in self._rounds:
            self._rounds[site.name] = SecureRound(site, self._workshop, site.standing)
        return self._rounds[site.name]


def _computed(paid: PaidRound, context: AttemptContext, arrays: Arrays) -> Integers | ClippedSum:
    """A clipped sum; or the weighted difference to the global weights, in fixed point."""
    clipped_sum = paid.train()
    if clipped_sum is not None:
        return clipped_sum
    vector = np.empty(context.dimension, dtype=np.float32)
    trained = cut(vector, arrays)
    copy_to(paid.model, trained)
    norm, limit = difference_norm(trained, arrays), _section(paid.order).max_update_norm
    factor = context.fraction(paid.order.site)
    if norm > limit:
        logger.warning("scales an update down to secure_aggregation.max_update_norm")
        factor *= limit / norm
    values = vector.view(np.uint32)  # in the update's own memory
    context.fixed_point().encode(trained, arrays, factor, values)
    return values


def _section(order: TrainTask) -> SecureAggregationSection:
    section = order.terms.secure_aggregation
    if section is None:
        raise PolicyRefusedError("expected terms with secure aggregation, got none")
    return section


def _key(order: TrainTask, context: AttemptContext) -> str:
    """Equal for orders of the same computation, encoded alike."""
    same = order.model_copy(update={"attempt": 1, "ledger_witness": None, "aggregation": None})
    encoding: list[Any] = [context.fraction(order.site), context.step, context.bits]
    if order.terms.privacy.mode == "distributed":
        encoding.append(len(context.members))  # of which the noise's share follows
    return json_digest([same.model_dump(mode="json"), *encoding])
