"""A coordinator that lies at random, by a seed, to real sites, and then opens what it can.

It may ask two attempts at once, tell sites different things at every stage, alter, drop, repeat,
reorder and replay whatever it saw, forge, and sign with the keys of the sites that collude with
it. It keeps to the protocol often enough to come far. What it knows in the end it uses to the
full: see ``tests.support.opened_sums``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from core.aggregation_messages import (
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    SealedShare,
    SealedShares,
    SignedBy,
    Survivors,
)
from core.digests import arrays_digest
from core.errors import CloisterError
from core.wire.documents import Roster
from privacy.secure_aggregation import keys
from privacy.secure_aggregation.context import AttemptContext
from tests.support.aggregation import (
    ELSEWHERE,
    IDLE,
    MACHINES,
    NAMES,
    START,
    Spent,
    context_over,
    edited,
    fixed_random,
    node_key,
    roster_of,
    signed_by,
)
from tests.support.tampering import Luck, Tampering
from tests.support.victims import Cell, Victim, bearable, digest_of, threshold

STEPS = ("advert", "share", "open_shares", "mask", "masked", "confirm", "reveal")
TOLD = {
    "share": Adverts,
    "open_shares": SealedShares,
    "confirm": Survivors,
    "reveal": Confirmations,
}


class LyingCoordinator:
    """One schedule.

    Args:
        seed: Says what happens, all of it.
        excess: Colluding sites beyond those that the protocol withstands.
    """

    def __init__(self, seed: int, *, excess: int = 0) -> None:
        self._luck = Luck(seed)
        self._random = fixed_random(f"lies/{seed}")
        self._plan = self._luck.pick(["chance"] * 8 + ["aim", "impersonate"])
        sizes = [7, 8] if self._plan == "aim" else [3, 4, 4, 4, 5, 5, 5, 6]
        self._names = NAMES[: self._luck.pick(sizes)]
        self._roster: Roster = roster_of(self._names)
        most = bearable(len(self._names)) + excess
        whole = excess or self._plan == "aim"
        self.colluding = self._luck.some(self._names, most if whole else self._luck.below(most + 1))
        self._rate = self._luck.pick([0.0, 0.0, 0.02, 0.1, 0.3]) if self._plan == "chance" else 0.0
        self._forges = self._luck.chance(0.1 if self._plan == "chance" else 0.5)
        self._spent = {name: Spent() for name in self._names}
        self._seen: dict[type, list[Any]] = {kind: [] for kind in TOLD.values()}
        self._tampering = Tampering(self._luck, self._seen, [*self._names, "cow", IDLE])
        self.refusals: list[str] = []
        self.victims = [
            self._victim(name, context)
            for context in self._contexts()
            for name in context.members
            if name not in self.colluding
        ]
        self.own_pairs: dict[str, keys.KeyPair] = {}
        """Every key pair that the liars made, by public key."""

    # Who is asked what.

    def _contexts(self) -> list[AttemptContext]:
        asked = self._names
        first = context_over(self._roster, asked, dimension=3)
        if self._luck.chance(0.7) or self._plan != "chance":
            return [first]
        other: dict[str, Any] = self._luck.pick(
            [{"attempt": 2}, {"nonce": "8" * 64}, {"min_cohort": 4}, {"dimension": 4}]
        )
        return [first, context_over(self._roster, asked, **{"dimension": 3, **other})]

    def _victim(self, name: str, context: AttemptContext) -> Victim:
        floors = [0, 3, 3, 3, 3, 4, len(self._names)] if self._plan == "chance" else [3]
        floor = self._luck.pick(floors)
        attempt = MACHINES.site(
            context,
            site=name,
            key=node_key(name),
            roster=self._roster,
            min_cohort=floor,
            now=lambda: START,
            random=self._random,
        )
        words = np.frombuffer(self._random(4 * context.dimension), np.uint32)
        return Victim(name, context, attempt, floor, words.copy())

    def _split(self, cells: list[Cell], probability: float) -> list[Cell]:
        """Cuts some cells in two, so that their sites are told different things from here on."""
        found = []
        for cell in cells:
            parts = [cell.victims]
            if self._plan == "chance" and self._luck.chance(probability) and len(cell.victims) > 1:
                cut = 1 + self._luck.below(len(cell.victims) - 1)
                shuffled = self._luck.shuffled(cell.victims)
                parts = [shuffled[:cut], shuffled[cut:]]
            found += [
                Cell(part, cell.adverts, cell.pairs, cell.sharers, cell.survivors) for part in parts
            ]
        return found

    # The schedule.

    def run(self) -> "LyingCoordinator":
        """Lies from the first stage to the last one."""
        by_context: dict[AttemptContext, list[Victim]] = {}
        for victim in self.victims:
            by_context.setdefault(victim.context, []).append(victim)
        self._each(self.victims, "advert", lambda victim: ())
        cells = self._split([Cell(victims) for victims in by_context.values()], 0.2)
        if self._plan == "impersonate":
            cells = [Cell([victim]) for victim in self.victims]
        for cell in cells:
            self._make_adverts(cell)
        self._tell(cells, "share", lambda cell, victim: cell.adverts)
        cells = self._split(cells, 0.2)
        for cell in cells:
            cell.sharers = self._make_sharers(cell)
        self._tell(cells, "open_shares", self._delivery)
        self._each(self.victims, "mask", lambda victim: ())
        self._each(self.victims, "masked", lambda victim: ())
        cells = self._split(cells, 0.4)
        for cell in cells:
            cell.survivors = self._make_survivors(cell)
        self._tell(cells, "confirm", self._survivors)
        self._tell(cells, "reveal", self._confirmations)
        return self

    def _tell(self, cells: list[Cell], step: str, message: Callable[[Cell, Victim], Any]) -> None:
        cell_of = {id(victim): cell for cell in cells for victim in cell.victims}
        self._each(
            [victim for cell in cells for victim in cell.victims],
            step,
            lambda victim: (message(cell_of[id(victim)], victim),),
        )

    def _each(
        self, victims: list[Victim], step: str, arguments: Callable[[Victim], tuple[Any, ...]]
    ) -> None:
        """Has each site take a step, in any order, perhaps none, two or another one."""
        for victim in self._luck.shuffled(victims):
            if self._luck.chance(self._rate / 4):
                continue
            if self._luck.chance(self._rate / 4):
                self._out_of_order(victim)
            given = arguments(victim)
            if given and self._luck.chance(self._rate):
                given = (self._tampered(given[0]),)
            self._step(victim, step, given)
            if self._luck.chance(self._rate / 8):
                self._step(victim, step, arguments(victim))

    def _out_of_order(self, victim: Victim) -> None:
        step = self._luck.pick(STEPS)
        if step not in TOLD:
            self._step(victim, step, ())
        elif self._seen[TOLD[step]]:
            self._step(victim, step, (self._luck.pick(self._seen[TOLD[step]]),))

    def _step(self, victim: Victim, step: str, given: tuple[Any, ...]) -> None:
        if given:
            self._seen[type(given[0])].append(given[0])
        try:
            getattr(self, f"_take_{step}")(victim, *given)
        except CloisterError as error:
            self.refusals.append(f"{step}: {error.code}")

    # What a site gives out in each step.

    def _take_advert(self, victim: Victim) -> None:
        victim.advert = victim.attempt.advert()

    def _take_share(self, victim: Victim, adverts: Adverts) -> None:
        victim.dealt = victim.attempt.share(adverts)
        victim.adverts = adverts
        self._seen[SealedShares].append(victim.dealt)

    def _take_open_shares(self, victim: Victim, shares: SealedShares) -> None:
        victim.sharers = victim.attempt.open_shares(shares)

    def _take_mask(self, victim: Victim) -> None:
        values = victim.values.copy()

        def mark() -> None:
            self._spent[victim.name].mark(victim.context)
            victim.marked.append(values.copy())

        victim.attempt.mask(values, mark)
        victim.masked_values = values

    def _take_masked(self, victim: Victim) -> None:
        values = victim.values if victim.masked_values is None else victim.masked_values
        victim.masked = victim.attempt.masked(arrays_digest({"masked": values}))

    def _take_confirm(self, victim: Victim, survivors: Survivors) -> None:
        victim.confirmations.append(victim.attempt.confirm(survivors))

    def _take_reveal(self, victim: Victim, confirmations: Confirmations) -> None:
        victim.revealed.append(victim.attempt.reveal(confirmations))

    # What it tells them.

    def _names_of(self, context: AttemptContext) -> dict[str, Any]:
        return {
            "run_id": context.run_id,
            "server_round": context.server_round,
            "attempt": context.attempt,
            "context": digest_of(context).hex(),
        }

    def _make_adverts(self, cell: Cell) -> None:
        """Honest sites' adverts and those of the colluding ones; to impersonate, the coordinator
        makes up all but the site's own."""
        context = cell.victims[0].context
        inside = {id(victim) for victim in cell.victims}
        alone = self._plan == "impersonate"
        adverts = [
            victim.advert
            for victim in self.victims
            if victim.advert is not None
            and victim.context == context
            and (id(victim) in inside or (not alone and self._luck.chance(0.3)))
        ]
        others = [name for name in context.members if name != cell.victims[0].name]
        for name in others if alone else self.colluding:
            if self._plan != "chance" or self._luck.chance(0.95):
                cell.pairs[name] = (self._pair(), self._pair())
                adverts.append(self._advert(name, self._names_of(context), *cell.pairs[name]))
        adverts.sort(key=lambda advert: advert.site)
        cell.adverts = Adverts(**self._names_of(context), adverts=tuple(adverts))

    def _pair(self) -> keys.KeyPair:
        pair = keys.KeyPair.from_private(self._random(32))
        self.own_pairs[pair.public_hex] = pair
        return pair

    def _advert(
        self, name: str, names: dict[str, Any], cipher: keys.KeyPair, mask: keys.KeyPair
    ) -> Advert:
        unsigned = Advert(
            **names,
            site=name,
            cipher_key=cipher.public_hex,
            mask_key=mask.public_hex,
            seed_commitment="0" * 64,
            signature="0" * 128,
        )
        signed: Advert = self._signed(unsigned)
        return signed

    def _signed(self, message: Any) -> Any:
        """With the signature of its site, or a stranger's where that site does not collude."""
        return signed_by(message.site if message.site in self.colluding else "cow", message)

    def _make_sharers(self, cell: Cell) -> tuple[str, ...]:
        dealt = {v.name for v in cell.victims if v.dealt is not None}
        others = {v.name for v in self.victims if v.dealt is not None and v.adverts == cell.adverts}
        possible = sorted(dealt | others | set(cell.pairs))
        return tuple(self._thinned(possible) if self._plan == "chance" else possible)

    def _make_survivors(self, cell: Cell) -> tuple[str, ...]:
        if self._plan == "impersonate":
            return cell.sharers
        inside = {victim.name for victim in cell.victims}
        return tuple(
            name
            for name in cell.sharers
            if name in inside or name in self.colluding or self._luck.chance(0.5)
        )

    def _thinned(self, names: list[str]) -> list[str]:
        thin = self._luck.pick([0.0, 0.0, 0.1, 0.3])
        return [name for name in names if not self._luck.chance(thin)]

    def _delivery(self, cell: Cell, victim: Victim) -> SealedShares:
        boxes = []
        for sender in sorted({*cell.sharers} - {victim.name}):
            box = self._box(cell, sender, victim)
            if box is not None:
                boxes.append(SealedShare(peer=sender, box=box))
        return SealedShares(**self._names_of(victim.context), site=victim.name, shares=tuple(boxes))

    def _box(self, cell: Cell, sender: str, victim: Victim) -> str | None:
        if sender in cell.pairs:
            if victim.adverts is None or victim.advert is None:
                return None
            agreed = cell.pairs[sender][0].agree(victim.advert.cipher_key)
            envelope = keys.Envelope(
                digest_of(victim.context),
                keys.adverts_digest(victim.adverts),
                sender,
                victim.name,
            )
            return keys.seal_shares(agreed, envelope, keys.SharePair(1, 2))
        for other in self.victims:
            if other.name == sender and other.context == victim.context and other.dealt:
                for share in other.dealt.shares:
                    if share.peer == victim.name:
                        return share.box
        return None

    def _survivors(self, cell: Cell, victim: Victim) -> Survivors:
        return Survivors(
            **self._names_of(victim.context),
            sharers=victim.sharers if self._luck.chance(0.9) else cell.sharers,
            survivors=self._aimed(victim) if self._plan == "aim" else cell.survivors,
        )

    def _aimed(self, victim: Victim) -> tuple[str, ...]:
        """U3 for one site alone. Were each believed, the sum of too few could be opened: all keep
        those few in, and each of the others is left out by as many as its key needs."""
        honest = [name for name in self._names if name not in self.colluding]
        fewest = threshold(len(self._names)) - len(self.colluding) - 1
        few, rest = honest[:fewest], honest[fewest:]
        kept = {*few, *self.colluding, victim.name}
        if victim.name in few:
            kept.add(rest[few.index(victim.name) % len(rest)])
        return tuple(sorted(kept))

    def _confirmations(self, cell: Cell, victim: Victim) -> Confirmations:
        mine = victim.confirmations[-1] if victim.confirmations else None
        sharers = mine.sharers if mine else cell.sharers
        survivors = mine.survivors if mine else cell.survivors
        signed = {
            c.site: c.signature
            for other in self.victims
            for c in other.confirmations
            if other.context == victim.context and (c.sharers, c.survivors) == (sharers, survivors)
        }
        for name in survivors:
            if name in self.colluding or (self._forges and name not in signed):
                unsigned = Confirmation(
                    **self._names_of(victim.context),
                    site=name,
                    adverts_digest=_digest_of(victim.adverts),
                    sharers=sharers,
                    survivors=survivors,
                    signature="0" * 128,
                )
                signed[name] = self._signed(unsigned).signature
        return Confirmations(
            **self._names_of(victim.context),
            sharers=sharers,
            survivors=survivors,
            signatures=tuple(SignedBy(site=n, signature=signed[n]) for n in sorted(signed)),
        )

    # How it alters what it tells.

    def _tampered(self, message: Any) -> Any:
        if isinstance(message, Adverts) and self._luck.chance(0.25):
            return self._with_a_lying_advert(message)
        headers = [ELSEWHERE, *(self._names_of(victim.context) for victim in self.victims)]
        return self._tampering.altered(message, headers)

    def _with_a_lying_advert(self, message: Adverts) -> Adverts:
        """A colluding site takes another's key or a weak one, or a site that is none is added."""
        names = {name: getattr(message, name) for name in ELSEWHERE}
        pairs = self._pair(), self._pair()
        adverts = {advert.site: advert for advert in message.adverts}
        if not self.colluding or self._luck.chance(0.3):
            stranger = self._advert(self._luck.pick(["cow", IDLE]), names, *pairs)
            adverts[stranger.site] = stranger
        else:
            liar = self._luck.pick(self.colluding)
            taken = self._luck.pick(message.adverts).mask_key if message.adverts else "0" * 64
            changes = {
                self._luck.pick(["cipher_key", "mask_key"]): self._luck.pick(
                    [taken, "00" * 32, "ff" * 32]
                )
            }
            adverts[liar] = signed_by(liar, self._advert(liar, names, *pairs), **changes)
        found: Adverts = edited(message, adverts=tuple(adverts[site] for site in sorted(adverts)))
        return found


def _digest_of(adverts: Adverts | None) -> str:
    """What a site confirms of the adverts that it was sent, if it was sent any."""
    return "0" * 64 if adverts is None else keys.adverts_digest(adverts).hex()
