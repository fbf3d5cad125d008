"""What a lying coordinator can open with all that it knows after a schedule.

A masked vector that left a site is its values, the mask of its own seed, and a mask for each pair.
Whoever knows neither the seed nor either key of a pair sees noise, so that any sum which can be
opened consists of whole groups: sites that are joined by pair masks which nobody knows, where both
ends of each are there and all seeds are known. Each such group is really opened here.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from privacy.secure_aggregation import keys, masks, shamir
from tests.support.aggregation import Ring
from tests.support.lying_coordinator import LyingCoordinator
from tests.support.victims import PLACES, Victim, bearable, digest_of, threshold


@dataclass
class Known:
    """What is known of one honest site's secrets in one attempt."""

    seed: bytes | None = None
    key: keys.KeyPair | None = None


@dataclass
class Findings:
    """What came of a schedule."""

    broken: list[str]
    opened: int
    """Sums that were opened."""


class Loot:
    """Everything that the liars know."""

    def __init__(self, liars: LyingCoordinator) -> None:
        self._liars = liars
        self._known = {id(victim): self._known_of(victim) for victim in liars.victims}
        self._pairs = dict(liars.own_pairs)
        self._pairs |= {k.key.public_hex: k.key for k in self._known.values() if k.key}

    def findings(self, *, bearable_only: bool = True) -> Findings:
        """Opens what can be opened.

        Args:
            bearable_only: Hold against the protocol only what happens to sites whose cohort has
                no more colluding sites than it is to withstand.
        """
        broken = self._broken_books()
        for victim in self._liars.victims:
            known = self._known[id(victim)]
            if known.seed and known.key and self._counts(victim, bearable_only):
                broken.append(f"both secrets of {victim.name} are known")
        groups = self._opened()
        for group in groups:
            for victim in group:
                colluding = self._colluding(victim)
                least = victim.least - len(colluding)
                if len(group) < least and self._counts(victim, bearable_only):
                    broken.append(f"{victim.name} is in a sum of {len(group)}, not {least}")
        return Findings(broken, len(groups))

    def _colluding(self, victim: Victim) -> set[str]:
        return set(victim.cohort) & set(self._liars.colluding)

    def _counts(self, victim: Victim, bearable_only: bool) -> bool:
        return not bearable_only or len(self._colluding(victim)) <= bearable(len(victim.cohort))

    def _broken_books(self) -> list[str]:
        """What a site did that it must never do, whoever colludes."""
        broken = []
        confirmed = Counter(v.name for v in self._liars.victims for _ in v.confirmations)
        left = Counter(v.name for v in self._liars.victims if v.masked is not None)
        for what, count in (("confirmed", confirmed), ("sent its values", left)):
            broken += [f"{name} {what} {n} times" for name, n in count.items() if n > 1]
        for victim in self._liars.victims:
            if not set(victim.cohort) <= set(victim.context.members):
                broken.append(f"{victim.name} believes in a site that nobody admitted")
            if len(victim.revealed) > 1:
                broken.append(f"{victim.name} revealed twice")
            if victim.masked is not None:
                if len(victim.marked) != 1 or not np.array_equal(victim.marked[0], victim.values):
                    broken.append(f"{victim.name} sent values that were not marked before")
                if victim.masked_values is None:
                    broken.append(f"{victim.name} sent values without masks")
        return broken

    # Secrets.

    def _known_of(self, victim: Victim) -> Known:
        known = Known()
        if victim.advert is None or victim.adverts is None:
            return known
        points = self._points(victim)
        least, digest = threshold(len(victim.cohort)), digest_of(victim.context)
        if len(points["seed"]) >= least:
            known.seed = shamir.combine(points["seed"], least)
            keys.check_seed(known.seed, victim.advert.seed_commitment, digest, victim.name)
        if len(points["key"]) >= least:
            private = shamir.combine(points["key"], least)
            known.key = keys.check_mask_key(private, victim.advert.mask_key, victim.name)
        return known

    def _points(self, victim: Victim) -> dict[str, dict[int, int]]:
        """Shares of the victim's secrets: those that liars got, and those that were revealed."""
        points: dict[str, dict[int, int]] = {"seed": {}, "key": {}}
        for peer, pair in self._dealt_to_liars(victim).items():
            points["seed"][PLACES[peer]], points["key"][PLACES[peer]] = pair.seed, pair.key
        for other in self._liars.victims:
            if other.adverts == victim.adverts and other.context == victim.context:
                for revealed in other.revealed:
                    for share in revealed.shares:
                        if share.owner == victim.name:
                            points[share.kind][PLACES[other.name]] = int(share.share, 16)
        return points

    def _dealt_to_liars(self, victim: Victim) -> dict[str, keys.SharePair]:
        found: dict[str, keys.SharePair] = {}
        if victim.adverts is None or victim.advert is None or victim.dealt is None:
            return found
        adverts = {advert.site: advert for advert in victim.adverts.adverts}
        digest = keys.adverts_digest(victim.adverts)
        for share in victim.dealt.shares:
            own = self._liars.own_pairs.get(adverts[share.peer].cipher_key)
            if own is not None:
                envelope = keys.Envelope(digest_of(victim.context), digest, victim.name, share.peer)
                agreed = own.agree(victim.advert.cipher_key)
                found[share.peer] = keys.open_shares(agreed, envelope, share.box)
        return found

    # Sums.

    def _opened(self) -> list[list[Victim]]:
        """The smallest groups whose sum opens; each is opened and compared with the true sum."""
        sent = [victim for victim in self._liars.victims if victim.masked_values is not None]
        sent = [victim for victim in sent if victim.masked is not None]
        found = []
        for group in self._joined(sent):
            ends = Counter(edge for victim in group for edge in self._unknown_pairs(victim))
            seeds = [self._known[id(victim)].seed for victim in group]
            if all(seeds) and all(count == 2 for count in ends.values()):
                self._check_opens(group)
                found.append(group)
        return found

    def _joined(self, sent: list[Victim]) -> list[list[Victim]]:
        groups: list[tuple[set[Any], list[Victim]]] = []
        for victim in sent:
            edges, members = set(self._unknown_pairs(victim)), [victim]
            apart = []
            for group in groups:
                if group[0] & edges:
                    edges, members = edges | group[0], members + group[1]
                else:
                    apart.append(group)
            groups = [*apart, (edges, members)]
        return [members for _, members in groups]

    def _unknown_pairs(self, victim: Victim) -> list[Any]:
        return [
            (digest_of(victim.context), frozenset(((victim.name, own), (peer, other))))
            for peer, own, other in self._pair_masks(victim)
            if own not in self._pairs and other not in self._pairs
        ]

    def _pair_masks(self, victim: Victim) -> list[tuple[str, str, str]]:
        if victim.adverts is None or victim.advert is None:
            return []
        adverts = {advert.site: advert for advert in victim.adverts.adverts}
        own = victim.advert.mask_key
        return [
            (peer, own, adverts[peer].mask_key) for peer in victim.sharers if peer != victim.name
        ]

    def _check_opens(self, group: list[Victim]) -> None:
        total: Ring = np.zeros(group[0].context.dimension, np.uint32)
        true: Ring = np.zeros(group[0].context.dimension, np.uint32)
        for victim in group:
            digest, seed = digest_of(victim.context), self._known[id(victim)].seed
            assert victim.masked_values is not None
            assert seed is not None
            total += victim.masked_values
            true += victim.values
            masks.add_mask(total, keys.self_mask_key(seed, digest, victim.name), -1)
            for peer, own, other in self._pair_masks(victim):
                pair, public = (own, other) if own in self._pairs else (other, own)
                if pair in self._pairs:
                    agreed = self._pairs[pair].agree(public)
                    key = keys.pair_mask_key(agreed, digest, victim.name, peer)
                    masks.add_mask(total, key, masks.pair_sign(peer, victim.name))
        assert np.array_equal(total, true), "the double does not know how masks come off"
