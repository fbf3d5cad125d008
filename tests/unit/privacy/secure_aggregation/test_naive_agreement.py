"""The state machines against a second implementation of everything that they compute."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest

from core.aggregation_messages import Advert, Adverts, Revealed, SealedShares
from core.messages import encode
from privacy.secure_aggregation.fixed_point import FixedPoint
from tests.support import naive_secagg as naive
from tests.support.aggregation import Play, fixed_random

IN_ONE_TEST = 50
LIMIT = 2**23 - 1


class Drawn:
    """What a site draws, in the order in which it does."""

    def __init__(self, label: str, threshold: int) -> None:
        draw = fixed_random(label)
        cipher_key, mask_key, seed = draw(32), draw(32), draw(32)
        self.secrets = naive.Secrets(seed, cipher_key, mask_key)
        # 521 bits of 66 bytes; the highest power is drawn first.
        powers = [int.from_bytes(draw(66), "big") % 2**521 for _ in range(2 * threshold - 2)]
        self.seed_powers = powers[: threshold - 1][::-1]
        self.key_powers = powers[threshold - 1 :][::-1]


class Attempt:
    """A random attempt: who takes part, what they hold, who drops out and when.

    It is played stage by stage; each method plays one and compares what went over the wire.
    """

    def __init__(self, number: int) -> None:
        draw = np.random.default_rng(number)
        size = int(draw.choice([3, 4, 5, 6], p=[0.5, 0.25, 0.15, 0.1]))
        self.step = float(draw.choice([2.0**-20, 0.1 / LIMIT, 3.7]))
        self.play = Play(
            size,
            fixed=f"transcript {number}",
            dimension=int(draw.integers(1, 9)),
            server_round=int(draw.integers(1, 10**6)),
            attempt=int(draw.integers(1, 100)),
            nonce=draw.bytes(32).hex(),
            step=self.step.hex(),
        )
        self.context = naive.context_digest(vars(self.play.context))
        absent = int(draw.integers(0, size - 2))
        self.cohort = sorted(draw.permutation(self.play.names)[absent:].tolist())
        self.threshold = 2 * len(self.cohort) // 3 + 1
        spare = int(draw.integers(0, len(self.cohort) - self.threshold + 1))
        self.lost = {
            name: str(draw.choice(["share", "mask", "confirm", "reveal"]))
            for name in draw.permutation(self.cohort)[:spare].tolist()
        }
        self.drawn = {
            name: Drawn(f"transcript {number}/{name}", self.threshold) for name in self.cohort
        }
        self.held = {name: self._encoded(name, draw) for name in self.cohort}

    def _encoded(self, name: str, draw: np.random.Generator) -> list[int]:
        """A random update of the site, as both encode it."""
        size, factor = self.play.context.dimension, draw.uniform(0.1, 1.0)
        new, old = (
            draw.uniform(-reach, reach, size).astype(np.float32)
            for reach in (0.5 * LIMIT * self.step, 0.4 * LIMIT * self.step)
        )
        out = np.empty(size, np.uint32)
        FixedPoint(self.step, 24).encode({"w": new}, {"w": old}, factor, out)
        assert out.tolist() == naive.encoded(new.tolist(), old.tolist(), factor / self.step)
        self.play.inputs[name] = out
        return [int(value) for value in out]

    def left(self, *stages: str) -> list[str]:
        """The cohort without those who dropped out at one of ``stages``."""
        return [name for name in self.cohort if self.lost.get(name) not in stages]

    def places(self) -> dict[str, int]:
        """Of each site of the cohort in the roster, from 1."""
        names = [member.name for member in self.play.roster.members]
        return {name: names.index(name) + 1 for name in self.cohort}

    def advertise(self) -> Adverts:
        adverts = self.play.adverts(self.cohort)
        for name in self.cohort:
            sent, secrets = self.play.sent[name], self.drawn[name].secrets
            assert isinstance(sent, Advert)
            assert sent.context == self.context.hex()
            assert sent.cipher_key == naive.public_of(secrets.cipher_key).hex()
            assert sent.mask_key == naive.public_of(secrets.mask_key).hex()
            assert sent.seed_commitment == naive.commitment(secrets.seed, self.context, name)
        return adverts

    def deal(self, adverts: Adverts) -> dict[str, SealedShares]:
        deliveries = self.play.deliveries(adverts, self.left("share"))
        bound = hashlib.sha256(encode(adverts)).digest()
        for sender in self.left("share"):
            sent, shares = self.play.sent[sender], self._shares(sender)
            assert isinstance(sent, SealedShares)
            boxes = {}
            for receiver in self.cohort:
                if receiver != sender:
                    secret = naive.agreed(
                        self.drawn[sender].secrets.cipher_key,
                        self.drawn[receiver].secrets.cipher_key,
                    )
                    boxes[receiver] = naive.box(
                        secret, self.context, bound, sender, receiver, shares[receiver]
                    )
            assert {share.peer: share.box for share in sent.shares} == boxes
        return deliveries

    def open(self, deliveries: Mapping[str, SealedShares]) -> list[int]:
        """Masks, confirms, reveals and opens; the sum as the naive implementation has it."""
        secrets = {name: self.drawn[name].secrets for name in self.left("share")}
        summed = self.left("share", "mask")
        survivors = self.play.survivors(dict(deliveries), summed)
        masked = {
            name: naive.masked(name, self.held[name], secrets, self.context) for name in summed
        }
        for name in summed:
            assert self.play.masked_values[name].tolist() == masked[name]
        confirmations = self.play.confirmations(survivors, self.left("share", "mask", "confirm"))
        revealing = self.left("share", "mask", "confirm", "reveal")
        total = self.play.opened(confirmations, revealing)
        revealed = {name: self._revealed(name) for name in revealing}
        recovered = {
            owner: self._recovered(owner, owner in summed, revealed, secrets[owner])
            for owner in secrets
        }
        expected = naive.opened(masked, recovered, self.context)
        assert [value % 2**32 for value in total.tolist()] == expected
        assert total.tolist() == [
            sum(naive.signed(self.held[name][i]) for name in summed) for i in range(len(total))
        ]
        values = FixedPoint(self.step, 24).decode(total, 1.7)
        assert values.tolist() == [
            float(np.float32(value)) for value in naive.decoded(expected, self.step, 1.7)
        ]
        return expected

    def _shares(self, owner: str) -> dict[str, tuple[int, int]]:
        """By receiver: the shares of the owner's seed and of its mask key."""
        drawn, xs = self.drawn[owner], self.places().values()
        seeds = naive.deal(drawn.secrets.seed, drawn.seed_powers, xs)
        keys = naive.deal(drawn.secrets.mask_key, drawn.key_powers, xs)
        return dict(zip(self.cohort, zip(seeds, keys, strict=True), strict=True))

    def _revealed(self, site: str) -> dict[str, int]:
        sent, found = self.play.sent[site], {}
        assert isinstance(sent, Revealed)
        for share in sent.shares:
            seed, key = self._shares(share.owner)[site]
            survived = share.owner in self.left("share", "mask")
            assert share.kind == ("seed" if survived else "key")
            assert share.share == f"{seed if survived else key:0132x}"
            found[share.owner] = int(share.share, 16)
        assert set(found) == set(self.left("share"))
        return found

    def _recovered(
        self,
        owner: str,
        survived: bool,
        revealed: Mapping[str, Mapping[str, int]],
        secrets: naive.Secrets,
    ) -> naive.Secrets:
        """What the revealed shares give of the owner's secrets. Of a survivor's mask key the
        naive implementation uses the public part alone."""
        points = {self.places()[site]: shares[owner] for site, shares in revealed.items()}
        secret = naive.recover(dict(sorted(points.items())[: self.threshold]))
        if survived:
            assert secret == secrets.seed
            return naive.Secrets(secret, bytes(32), secrets.mask_key)
        assert secret == secrets.mask_key
        return naive.Secrets(bytes(32), bytes(32), secret)


@pytest.mark.parametrize("first", range(0, 1000, IN_ONE_TEST))
def test_both_say_the_same_on_random_transcripts(first: int) -> None:
    for number in range(first, first + IN_ONE_TEST):
        attempt = Attempt(number)
        attempt.open(attempt.deal(attempt.advertise()))
