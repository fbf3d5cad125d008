"""A federation that aggregates securely in memory: the real state machines, without a wire."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from core.aggregation_messages import (
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    SealedShares,
    Survivors,
)
from core.digests import arrays_digest, canonical_json
from core.errors import AlreadySpentError
from core.messages import wire_form
from core.wire.documents import Roster, RosterMember
from privacy.secure_aggregation import coordinator, site
from privacy.secure_aggregation.context import AttemptContext, roster_digest
from privacy.signing import SiteKey

Ring = npt.NDArray[np.uint32]

NAMES: Final = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
IDLE: Final = "aaa-idle"
"""In the roster, active, and not asked."""
REVOKED: Final = "aaa-revoked"
START: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)
STAGES: Final = ("advert", "share", "mask", "confirm", "reveal")
"""What a site can fail to send."""


@dataclass
class Machines:
    """The code under test; a test that alters it puts the altered one here."""

    site: Any = site.SiteAttempt
    coordinator: Any = coordinator.CoordinatorAttempt


MACHINES: Final = Machines()


@cache
def node_key(name: str) -> SiteKey:
    """The node key of the site of this name, the same each time."""
    return SiteKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def fixed_random(label: str) -> Callable[[int], bytes]:
    """Predictable bytes, for what is frozen: the n-th call gives SHAKE-256 of ``label/n``."""
    calls = 0

    def take(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{label}/{calls}".encode()).digest(count)

    return take


@cache
def roster_of(names: tuple[str, ...]) -> Roster:
    """An active site that is not asked and a revoked one, then ``names``."""
    members = tuple(
        RosterMember(
            name=name,
            node_key=node_key(name).public_hex,
            tls_name=f"{name}.clinic",
            num_examples=40,
            status="revoked" if name == REVOKED else "active",
        )
        for name in (IDLE, REVOKED, *names)
    )
    return Roster(
        federation="clinic",
        epoch=7,
        issued="2026-01-01T00:00:00Z",
        expires="2026-03-01T00:00:00Z",
        members=members,
    )


def context_over(roster: Roster, names: Collection[str], **changes: Any) -> AttemptContext:
    """A context that asks ``names``."""
    context = AttemptContext(
        federation=roster.federation,
        run_id="0123456789abcdef",
        server_round=4,
        attempt=1,
        nonce="5" * 64,
        roster_epoch=roster.epoch,
        roster_digest=roster_digest(roster),
        model_digest="6" * 64,
        task_digest="7" * 64,
        members=tuple(names),
        weights=tuple((name, 40) for name in names),
        dimension=5,
        min_cohort=3,
        step=(2.0**-20).hex(),
        bits=24,
        deadline="2026-01-31T13:00:00Z",
        protocol="cloister-secagg/1",
    )
    return replace(context, **changes)


@dataclass
class Spent:
    """A site's book of rounds whose update has left it."""

    rounds: set[tuple[str, int]] = field(default_factory=set)

    def mark(self, context: AttemptContext) -> None:
        """Notes the round, once."""
        key = (context.run_id, context.server_round)
        if key in self.rounds:
            raise AlreadySpentError(f"expected a round that is not spent, got {key}")
        self.rounds.add(key)


class Play:
    """One attempt, stage by stage; a test may tamper with what goes from one to the next.

    Args:
        size: How many sites are asked.
        fixed: Makes all secrets predictable.
        floor: The sites' own floor.
        changes: Of the context.
    """

    def __init__(self, size: int = 5, *, fixed: str = "", floor: int = 3, **changes: Any) -> None:
        self.names = NAMES[:size]
        self.roster = roster_of(self.names)
        self.context = context_over(self.roster, self.names, **changes)
        self.floor = floor
        self.late = timedelta()
        self.fixed = fixed
        self.sites: dict[str, Any] = {name: self.site(name) for name in self.names}
        self.coordinator = MACHINES.coordinator(
            self.context, roster=self.roster, dimension=self.context.dimension
        )
        self.inputs = {name: self._input(name) for name in self.names}
        self.spent = {name: Spent() for name in self.names}
        self.sent: dict[str, Any] = {}
        """The last message of each site."""
        self.masked_values: dict[str, Ring] = {}

    def site(self, name: str, **changes: Any) -> Any:
        """A site in this attempt, with keys of its own."""
        settings: dict[str, Any] = {
            "context": self.context,
            "site": name,
            "key": node_key(name),
            "roster": self.roster,
            "min_cohort": self.floor,
            "now": lambda: START + self.late,
        }
        if self.fixed:
            settings["random"] = fixed_random(f"{self.fixed}/{name}")
        return MACHINES.site(**(settings | changes))

    def _input(self, name: str) -> Ring:
        label = f"input/{name}".encode()
        words = hashlib.shake_256(label).digest(4 * self.context.dimension)
        # 24 bits, signed.
        return (np.frombuffer(words, "<u4").view(np.int32) >> 8).astype(np.int32).view(np.uint32)

    def expected(self, names: Collection[str]) -> npt.NDArray[np.int64]:
        """The integer sum of these sites' values."""
        zeros = np.zeros(self.context.dimension, np.int64)
        return sum((self.inputs[n].view(np.int32).astype(np.int64) for n in names), start=zeros)

    # Each stage: those of `names` send, and the coordinator closes.

    def adverts(self, names: Collection[str] | None = None) -> Adverts:
        """Advert from each of ``names``."""
        for name in self._all(names):
            advert: Advert = self.sites[name].advert()
            self.sent[name] = advert
            self.coordinator.add_advert(advert)
        adverts: Adverts = self.coordinator.adverts()
        return adverts

    def deliveries(
        self, adverts: Adverts, names: Collection[str] | None = None
    ) -> dict[str, SealedShares]:
        """Shares from each of ``names``."""
        for name in self._all(names):
            dealt: SealedShares = self.sites[name].share(adverts)
            self.sent[name] = dealt
            self.coordinator.add_shares(dealt)
        deliveries: dict[str, SealedShares] = self.coordinator.deliveries()
        return deliveries

    def ready(
        self, deliveries: dict[str, SealedShares], names: Collection[str] | None = None
    ) -> None:
        """Each of ``names`` opens its shares and masks its values."""
        for name in self._all(names):
            self.sites[name].open_shares(deliveries[name])
            self.mask(name)

    def mask(self, name: str) -> Ring:
        """Masks a site's values and notes that they are spent."""
        values = self.inputs[name].copy()
        self.sites[name].mask(values, lambda: self.spent[name].mark(self.context))
        self.masked_values[name] = values
        return values

    def survivors(
        self, deliveries: dict[str, SealedShares], names: Collection[str] | None = None
    ) -> Survivors:
        """Masked values from each of ``names``."""
        self.ready(deliveries, names)
        for name in self._all(names):
            values = self.masked_values[name]
            masked: MaskedInput = self.sites[name].masked(arrays_digest({"masked": values}))
            self.sent[name] = masked
            self.coordinator.add_masked(masked, values)
        survivors: Survivors = self.coordinator.survivors()
        return survivors

    def confirmations(
        self, survivors: Survivors, names: Collection[str] | None = None
    ) -> Confirmations:
        """A confirmation from each of ``names``."""
        for name in self._all(names):
            confirmation: Confirmation = self.sites[name].confirm(survivors)
            self.sent[name] = confirmation
            self.coordinator.add_confirmation(confirmation)
        confirmations: Confirmations = self.coordinator.confirmations()
        return confirmations

    def opened(
        self, confirmations: Confirmations, names: Collection[str] | None = None
    ) -> npt.NDArray[np.int32]:
        """Revealed shares from each of ``names``, and the sum."""
        for name in self._all(names):
            revealed: Revealed = self.sites[name].reveal(confirmations)
            self.sent[name] = revealed
            self.coordinator.add_revealed(revealed)
        total: npt.NDArray[np.int32] = self.coordinator.open()
        return total

    def run(self, lost: dict[str, str] | None = None) -> npt.NDArray[np.int32]:
        """The whole attempt.

        Args:
            lost: Sites that drop out, and what (of ``STAGES``) they first fail to send.
        """
        there = list(self.names)

        def left(stage: str) -> list[str]:
            there[:] = [name for name in there if (lost or {}).get(name) != stage]
            return there

        adverts = self.adverts(left("advert"))
        deliveries = self.deliveries(adverts, left("share"))
        survivors = self.survivors(deliveries, left("mask"))
        confirmations = self.confirmations(survivors, left("confirm"))
        return self.opened(confirmations, left("reveal"))

    def upto(self, stage: str) -> Any:
        """Plays honestly, and returns what the sites would be sent next.

        Args:
            stage: ``share``: the adverts. ``open_shares``: the deliveries. ``mask``: those too,
                opened by all. ``confirm``: the survivors. ``reveal``: the confirmations.
        """
        message: Any = self.adverts()
        if stage == "share":
            return message
        deliveries = self.deliveries(message)
        if stage == "open_shares":
            return deliveries
        if stage == "mask":
            for name in self.names:
                self.sites[name].open_shares(deliveries[name])
            return deliveries
        message = self.survivors(deliveries)
        return message if stage == "confirm" else self.confirmations(message)

    def _all(self, names: Collection[str] | None) -> Collection[str]:
        return self.names if names is None else names


def edited(message: Any, **changes: Any) -> Any:
    """``message`` with other fields, whatever they are."""
    return message.model_copy(update=changes)


_PURPOSES: Final[dict[type, str]] = {
    Advert: "secagg-advert",
    MaskedInput: "secagg-masked",
    Confirmation: "secagg-confirmation",
}


def signed_by(name: str, message: Any, *, purpose: str = "", **changes: Any) -> Any:
    """``message`` with other fields and a good signature of ``name`` over them."""
    changed = message.model_copy(update=changes)
    document = wire_form(changed, without="signature")
    signature = node_key(name).sign(purpose or _PURPOSES[type(message)], canonical_json(document))
    return changed.model_copy(update={"signature": signature})


ELSEWHERE: Final[dict[str, Any]] = {
    "run_id": "f" * 16,
    "server_round": 5,
    "attempt": 2,
    "context": "f" * 64,
}
"""What names another attempt."""
