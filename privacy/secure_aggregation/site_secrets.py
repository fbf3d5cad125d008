"""What a site must not lose in one attempt, and all that it computes from it.

Deliberately not checked here: whether a step may be taken. That is ``SiteAttempt``'s.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from core.aggregation_messages import Advert, SealedShare
from privacy.secure_aggregation import keys, shamir
from privacy.secure_aggregation.masks import Sign, pair_sign


class SiteSecrets:
    """Fresh keys and a fresh seed, and the shares that others deal.

    Guarantees:
        Lives in memory, and is in no ``repr``. The keys of masks go when they are given out, and
        everything else by ``wipe``. What Python lets us overwrite is overwritten; copies that a
        library made are only let go.

    Args:
        site: Whose.
        context: The context's digest.
        random: Gives random bytes.
    """

    def __init__(self, site: str, context: bytes, random: Callable[[int], bytes]) -> None:
        self._site: Final = site
        self._context: Final = context
        self._random: Final = random
        cipher, mask = (keys.KeyPair.from_private(random(keys.KEY_BYTES)) for _ in range(2))
        self._pairs = {"cipher": cipher, "mask": mask}
        self._seed = bytearray(random(keys.KEY_BYTES))
        self._agreed: dict[str, bytearray] = {}
        self._pair_masks: dict[str, bytearray] = {}
        self._held: dict[str, keys.SharePair] = {}
        self._adverts = b""
        self.cipher_key: Final = cipher.public_hex
        self.mask_key: Final = mask.public_hex
        self.commitment: Final = keys.seed_commitment(bytes(self._seed), context, site)

    def __repr__(self) -> str:
        return f"SiteSecrets(site={self._site!r}, secrets=***)"

    def agree(self, peers: Iterable[Advert]) -> None:
        """Computes what this site shares with each peer alone.

        Raises:
            WeakKeyError: A peer's key agrees on what anyone knows; nothing is kept.
        """
        agreed, pair_masks = {}, {}
        for peer in peers:
            agreed[peer.site] = bytearray(self._pairs["cipher"].agree(peer.cipher_key))
            secret = self._pairs["mask"].agree(peer.mask_key)
            key = keys.pair_mask_key(secret, self._context, self._site, peer.site)
            pair_masks[peer.site] = bytearray(key)
        self._agreed, self._pair_masks = agreed, pair_masks

    def deal(
        self, places: Mapping[str, int], threshold: int, adverts: bytes
    ) -> tuple[SealedShare, ...]:
        """Deals the seed and the mask key, once, after ``agree``.

        Args:
            places: The cohort (U1), this site too, and each one's place in Shamir's scheme.
            threshold: How many shares open a secret.
            adverts: Digest of the adverts, which the boxes are bound to.

        Returns:
            A box for each of the others, by name.
        """
        names, xs = list(places), list(places.values())
        seeds = shamir.split(bytes(self._seed), threshold, xs, self._random)
        mask_keys = shamir.split(self._pairs["mask"].private_bytes(), threshold, xs, self._random)
        dealt = {
            name: keys.SharePair(seed, key)
            for name, seed, key in zip(names, seeds, mask_keys, strict=True)
        }
        self._adverts = adverts
        self._held = {self._site: dealt.pop(self._site)}
        return tuple(
            SealedShare(
                peer=peer,
                box=keys.seal_shares(
                    bytes(self._agreed[peer]), self._envelope(self._site, peer), pair
                ),
            )
            for peer, pair in dealt.items()
        )

    def open(self, boxes: Sequence[SealedShare]) -> None:
        """Opens what others dealt to this site.

        Raises:
            ShareUnopenedError: A box does not open; nothing is kept.
        """
        opened = {
            box.peer: keys.open_shares(
                bytes(self._agreed[box.peer]), self._envelope(box.peer, self._site), box.box
            )
            for box in boxes
        }
        self._held |= opened

    def masks(self, sharers: Iterable[str]) -> list[tuple[bytes, Sign]]:
        """Gives out the keys and signs of this site's masks, once: afterwards they are gone here.

        Args:
            sharers: Those who dealt (U2), this site too.
        """
        own = keys.self_mask_key(bytes(self._seed), self._context, self._site)
        pairs: list[tuple[bytes, Sign]] = [
            (bytes(self._pair_masks[peer]), pair_sign(self._site, peer))
            for peer in sharers
            if peer != self._site
        ]
        self._forget_masks()
        return [(own, 1), *pairs]

    def held(self, owner: str) -> keys.SharePair:
        """This site's shares of ``owner``'s secrets."""
        return self._held[owner]

    def wipe(self) -> None:
        """Lets everything go."""
        self._forget_masks()
        for secret in self._agreed.values():
            _overwrite(secret)
        self._agreed.clear()
        self._held.clear()

    def _forget_masks(self) -> None:
        for secret in (self._seed, *self._pair_masks.values()):
            _overwrite(secret)
        self._pair_masks.clear()
        # Their library overwrites private keys when the last reference goes.
        self._pairs.clear()

    def _envelope(self, sender: str, receiver: str) -> keys.Envelope:
        return keys.Envelope(self._context, self._adverts, sender, receiver)


def _overwrite(secret: bytearray) -> None:
    secret[:] = bytes(len(secret))
