"""One attempt at secure aggregation in memory: every site, the coordinator, and what they take.

The code is the deployment's: state machines, fixed point, masks, documents as bytes. Left out are
training, ledger and network. Every site does the same work, so each is measured, one after the
other on one thread; that the opened sum is the exact one is checked before anything is given out.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from core.aggregation_messages import (
    MASKED_ARRAY,
    Advert,
    Adverts,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    SealedShares,
    Survivors,
)
from core.array_codec import encode_arrays
from core.config_sections import PrivacySection, SecureAggregationSection, TaskSection
from core.digests import arrays_digest
from core.messages import AggregationOrder, TrainingTerms, TrainTask, WireMessage, decode, encode
from core.model import ModelConfig
from core.parameters import cut, difference_norm
from core.train import TrainConfig
from core.wire.documents import Roster, RosterMember
from privacy.identities.clock import utc_now, write_timestamp
from privacy.secure_aggregation.context import (
    AttemptContext,
    context_of,
    least_survivors,
    roster_digest,
)
from privacy.secure_aggregation.coordinator import CoordinatorAttempt
from privacy.secure_aggregation.site import SiteAttempt
from privacy.signing import SiteKey

Arrays = dict[str, npt.NDArray[np.float32]]
Document = TypeVar("Document", bound=WireMessage)
MAX_NORM = 1.0


def update_of(dimension: int) -> tuple[Arrays, Arrays]:
    """Global weights, and the weights after training: an update of norm ``MAX_NORM`` at most."""
    generator = np.random.default_rng(dimension)
    shapes = {"embedding": dimension // 5, "layers": dimension - dimension // 5}
    before = {n: generator.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
    after = {}
    for name, size in shapes.items():
        after[name] = generator.standard_normal(size, dtype=np.float32)
        after[name] *= np.float32(0.9 * MAX_NORM / dimension**0.5)
        after[name] += before[name]
    return before, after


def flat(arrays: Arrays) -> npt.NDArray[np.float32]:
    """One vector, a copy."""
    return np.concatenate([arrays[name] for name in sorted(arrays)])


def most_drop_outs(cohort: int) -> int:
    """How many sites may be lost after they dealt their shares."""
    return cohort - least_survivors(cohort, 3)


class Cohort:
    """Sites with node keys, their roster, and the order of an attempt."""

    def __init__(self, size: int, dimension: int) -> None:
        self.keys = {f"site{number:03}": SiteKey.generate() for number in range(size)}
        now = utc_now()
        members = tuple(
            RosterMember(
                name=name,
                node_key=key.public_hex,
                tls_name=f"{name}.benchmark",
                num_examples=1000 + 10 * number,
            )
            for number, (name, key) in enumerate(self.keys.items())
        )
        self.roster = Roster(
            federation="benchmark",
            epoch=1,
            issued=write_timestamp(now),
            expires=write_timestamp(now + timedelta(days=1)),
            members=members,
        )
        terms = TrainingTerms(
            federation="benchmark",
            model=ModelConfig(vocab_size=8, max_seq_len=4, n_layer=1, n_head=1, n_embd=4),
            base_digest="0" * 64,
            tokenizer_digest="0" * 64,
            task=TaskSection(kind="causal-lm"),
            train=TrainConfig(steps_per_round=1, global_batch_size=1, learning_rate=0.1),
            privacy=PrivacySection(mode="none"),
            proximal_mu=0.0,
            num_rounds=1,
            update_encoding="fp32",
            secure_aggregation=SecureAggregationSection(max_update_norm=MAX_NORM),
        )
        self.order = TrainTask(
            run_id="0" * 16,
            server_round=1,
            attempt=1,
            site="site000",
            arrays_digest="0" * 64,
            terms=terms,
            task_digest=terms.digest(),
            num_examples=1000,
            aggregation=AggregationOrder(
                nonce="0" * 64,
                roster_epoch=1,
                roster_digest=roster_digest(self.roster),
                members=tuple(self.keys),
                dimension=dimension,
                deadline=write_timestamp(now + timedelta(hours=20)),
            ),
        )

    def context(self) -> AttemptContext:
        """What site and coordinator compute from the order."""
        return context_of(self.order, self.roster)

    @property
    def added_to_the_order(self) -> int:
        """Bytes that secure aggregation adds to an order: its own part, and the roster."""
        without = self.order.model_copy(update={"aggregation": None})
        return len(encode(self.order)) - len(encode(without)) + len(encode(self.roster))


@dataclass
class Cost:
    """What one attempt takes one site."""

    seconds: float = 0.0
    """Cryptography and arithmetic."""
    codec_seconds: float = 0.0
    """Documents and arrays, from bytes and to bytes."""
    bytes_down: int = 0
    bytes_up: int = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the body's time as cryptography and arithmetic."""
        started = time.process_time()
        yield
        self.seconds += time.process_time() - started

    def received(self, kind: type[Document], data: bytes) -> Document:
        """A document from the wire."""
        self.bytes_down += len(data)
        started = time.process_time()
        document = decode(kind, data)
        self.codec_seconds += time.process_time() - started
        return document

    def sent(self, document: WireMessage) -> bytes:
        """A document for the wire."""
        started = time.process_time()
        data = encode(document)
        self.codec_seconds += time.process_time() - started
        self.bytes_up += len(data)
        return data


class Member:
    """One site in one attempt."""

    def __init__(self, cohort: Cohort, name: str) -> None:
        self.name, self.cost = name, Cost()
        self.cost.bytes_down += cohort.added_to_the_order
        with self.cost.timed():
            self.context = cohort.context()
            self.attempt = SiteAttempt(
                self.context,
                site=name,
                key=cohort.keys[name],
                roster=cohort.roster,
                min_cohort=3,
                now=utc_now,
            )

    def encoded(self, before: Arrays, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        """The update as integers, as ``client.secure_round`` makes it: in place of the weights."""
        with self.cost.timed():
            after = cut(vector, before)
            factor = self.context.fraction(self.name)
            norm = difference_norm(after, before)
            if norm > MAX_NORM:
                factor *= MAX_NORM / norm
            values = vector.view(np.uint32)
            self.context.fixed_point().encode(after, before, factor, values)
        return values

    def advert(self) -> bytes:
        """To the coordinator."""
        with self.cost.timed():
            advert = self.attempt.advert()
        return self.cost.sent(advert)

    def share(self, data: bytes) -> bytes:
        """From the adverts to the sealed shares."""
        adverts = self.cost.received(Adverts, data)
        with self.cost.timed():
            shares = self.attempt.share(adverts)
        return self.cost.sent(shares)

    def mask(self, data: bytes, values: npt.NDArray[np.uint32]) -> bytes:
        """Opens the others' shares and masks ``values`` in place; what is said of them."""
        delivered = self.cost.received(SealedShares, data)
        with self.cost.timed():
            self.attempt.open_shares(delivered)
            self.attempt.mask(values, _nothing)
            said = self.attempt.masked(arrays_digest({MASKED_ARRAY: values}))
        return self.cost.sent(said)

    def wire(self, values: npt.NDArray[np.uint32]) -> None:
        """The masked values as they travel; here they go nowhere."""
        started = time.process_time()
        arrays = encode_arrays({MASKED_ARRAY: values})
        self.cost.codec_seconds += time.process_time() - started
        self.cost.bytes_up += len(arrays[MASKED_ARRAY].data)

    def confirm(self, data: bytes) -> bytes:
        """From the survivors to the signature."""
        survivors = self.cost.received(Survivors, data)
        with self.cost.timed():
            confirmation = self.attempt.confirm(survivors)
        return self.cost.sent(confirmation)

    def reveal(self, data: bytes) -> bytes:
        """From the confirmations to the shares that open the sum."""
        confirmations = self.cost.received(Confirmations, data)
        with self.cost.timed():
            revealed = self.attempt.reveal(confirmations)
        return self.cost.sent(revealed)


@dataclass
class Measured:
    """What one attempt took."""

    sites: list[Cost]
    """Of those that stayed to the end."""
    open_seconds: float
    """The coordinator's, from the last revealed share to the sum."""
    mean: npt.NDArray[np.float32]
    """Weighted mean of the updates, by sorted name."""


def run_attempt(size: int, dimension: int, *, lost: int = 0) -> Measured:
    """A whole attempt; ``lost`` sites deal their shares and are not heard of again.

    Raises:
        SystemExit: The opened sum is not the exact integer sum.
    """
    cohort = Cohort(size, dimension)
    members = {name: Member(cohort, name) for name in cohort.keys}
    context = next(iter(members.values())).context
    protocol = CoordinatorAttempt(context, roster=cohort.roster, dimension=dimension)
    before, after = update_of(dimension)
    exact = np.zeros(dimension, np.int64)
    for member in members.values():
        protocol.add_advert(decode(Advert, member.advert()))
    adverts = encode(protocol.adverts())
    for member in members.values():
        protocol.add_shares(decode(SealedShares, member.share(adverts)))
    deliveries = protocol.deliveries()
    for name in list(members)[size - lost :]:
        del members[name]
    for name, member in members.items():
        values = member.encoded(before, flat(after))
        exact += values.view(np.int32)
        said = member.mask(encode(deliveries[name]), values)
        member.wire(values)
        protocol.add_masked(decode(MaskedInput, said), values)
        del values
    del before, after
    survivors = encode(protocol.survivors())
    for member in members.values():
        protocol.add_confirmation(decode(Confirmation, member.confirm(survivors)))
    confirmations = encode(protocol.confirmations())
    for member in members.values():
        protocol.add_revealed(decode(Revealed, member.reveal(confirmations)))
    started = time.process_time()
    total = protocol.open()
    seconds = time.process_time() - started
    if not np.array_equal(total, exact):
        raise SystemExit(f"{size} sites, {dimension}: not the exact sum, so not measured")
    fixed, whole = context.fixed_point(), context.total_fraction(members)
    return Measured(
        sites=[member.cost for member in members.values()],
        open_seconds=seconds,
        mean=fixed.decode(total, divisor=whole),
    )


def _nothing() -> None:
    """The ledger's mark is not part of this."""
