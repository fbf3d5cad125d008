"""What a site and the coordinator check of a message before they believe it, a rule a function.

Each returns only where its rule holds; else it raises the error that bears the rule's name.
Deliberately not checked here: that a roster is the admin's and not an old one
(``privacy.identities.roster``), and from whose session a message came (its receiver).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from core.aggregation_messages import (
    Advert,
    Adverts,
    AttemptMessage,
    Confirmation,
    Confirmations,
    MaskedInput,
    Revealed,
    SealedShares,
)
from core.errors import (
    AdvertAlteredError,
    BadSignatureError,
    CohortTooSmallError,
    ConfirmationError,
    ContextMismatchError,
    DeadlineError,
    IdentityError,
    OutOfOrderError,
    RepeatedKeyError,
    SurvivorsError,
    UnknownMemberError,
    ValueRangeError,
)
from core.wire.documents import Roster
from privacy.identities.clock import write_timestamp
from privacy.secure_aggregation.context import (
    AttemptContext,
    coordinates,
    max_colluding,
    roster_digest,
)
from privacy.secure_aggregation.keys import PROTOCOL, KeyPair
from privacy.signing import SiteKey, sign_document, verify_document

UNSIGNED: Final = "0" * 128
_PURPOSES: Final[dict[type[AttemptMessage], str]] = {
    Advert: "secagg-advert",
    MaskedInput: "secagg-masked",
    Confirmation: "secagg-confirmation",
}
FromSite = Advert | SealedShares | MaskedInput | Confirmation | Revealed
Signed = TypeVar("Signed", Advert, MaskedInput, Confirmation)


class AttemptNames(NamedTuple):
    """What every message of an attempt bears."""

    run_id: str
    server_round: int
    attempt: int
    context: str


@dataclass(frozen=True)
class Member:
    """A site that the attempt asks."""

    node_key: str
    """Its Ed25519 key, from the roster."""
    place: int
    """Where the polynomials of Shamir's scheme are evaluated for it."""


Members = Mapping[str, Member]


def names_of(context: AttemptContext) -> AttemptNames:
    """What every message of this attempt bears."""
    return AttemptNames(context.run_id, context.server_round, context.attempt, context.hexdigest())


def members_of(context: AttemptContext, roster: Roster) -> dict[str, Member]:
    """The sites that the attempt asks, by name.

    Raises:
        ContextMismatchError: The attempt is about another roster or protocol.
        OutOfOrderError: A member comes twice or out of order.
        UnknownMemberError: A member is not in the roster, or not as active.
    """
    check_protocol(context)
    check_roster(context, roster)
    check_ascending("members", context.members)
    places = coordinates(roster)
    active = {
        member.name: Member(member.node_key, places[member.name])
        for member in roster.members
        if member.status == "active"
    }
    for name in context.members:
        check_member(name, active)
    return {name: active[name] for name in context.members}


def sign(key: SiteKey, message: Signed) -> Signed:
    """``message`` with the node key's signature in it."""
    signature = sign_document(key, _PURPOSES[type(message)], message)
    return message.model_copy(update={"signature": signature})


def check_protocol(context: AttemptContext) -> None:
    """The attempt speaks this protocol."""
    if context.protocol != PROTOCOL:
        raise ContextMismatchError(f"expected {PROTOCOL}, got {context.protocol}")


def check_roster(context: AttemptContext, roster: Roster) -> None:
    """The attempt is about this very roster."""
    told = (context.federation, context.roster_epoch, context.roster_digest)
    if told != (roster.federation, roster.epoch, roster_digest(roster)):
        raise ContextMismatchError(
            f"expected an attempt over epoch {roster.epoch} of the roster of "
            f"{roster.federation}, got one over epoch {told[1]} of {told[0]}'s, or over another "
            "roster of that epoch"
        )


def check_node_key(key: SiteKey, node_key: str) -> None:
    """This side signs with the key that the others look for."""
    if key.public_hex != node_key:
        raise BadSignatureError(
            f"expected the node key {node_key[:16]}... of the roster, got {key.public_hex[:16]}..."
        )


def check_ascending(what: str, names: Sequence[str]) -> None:
    """Each name comes once, in order, so that one set of names has one form."""
    for first, second in pairwise(names):
        if first >= second:
            raise OutOfOrderError(f"expected {what} by name, each once, got {first}, {second}")


def check_member(name: str, members: Collection[str]) -> None:
    """It is one of them."""
    if name not in members:
        raise UnknownMemberError(f"expected one of {len(members)} active members, got {name}")


def check_attempt(message: AttemptMessage, names: AttemptNames) -> None:
    """It belongs to this attempt, and its sender was told what this side was told."""
    told = AttemptNames(message.run_id, message.server_round, message.attempt, message.context)
    if told != names:
        raise ContextMismatchError(
            f"expected {type(message).__name__} of run {names.run_id}, round "
            f"{names.server_round}, attempt {names.attempt}, context {names.context[:16]}..., got "
            f"{told.run_id}, {told.server_round}, {told.attempt}, {told.context[:16]}...",
            hint="two parties were told different things, so nothing is opened",
        )


def check_deadline(context: AttemptContext, now: datetime) -> None:
    """The attempt's time is not over."""
    if now > context.ends():
        raise DeadlineError(
            f"expected a step until {context.deadline}, got one at {write_timestamp(now)}",
            hint="a later attempt takes this one's place; set the clocks (NTP)",
        )


def check_signature(message: Advert | MaskedInput | Confirmation, members: Members) -> None:
    """The member that it names signed it, for what messages of its kind are signed for."""
    check_member(message.site, members)
    kind = type(message)
    try:
        verify_document(members[message.site].node_key, _PURPOSES[kind], message)
    except IdentityError as error:
        raise BadSignatureError(
            f"expected {kind.__name__} signed by {message.site}, got another signature"
        ) from error


def check_adverts(adverts: Sequence[Advert], names: AttemptNames, members: Members) -> None:
    """Members made them for this attempt, one each, and no public key comes twice."""
    check_ascending("adverts", [advert.site for advert in adverts])
    for advert in adverts:
        check_attempt(advert, names)
        check_signature(advert, members)
    check_distinct_keys(adverts)


def check_own_advert(own: Advert | None, adverts: Adverts) -> None:
    """This side's advert came back as it left."""
    if own not in adverts.adverts:
        raise AdvertAlteredError(
            "expected this site's own advert among the others, got it altered or not at all"
        )


def check_distinct_keys(adverts: Sequence[Advert]) -> None:
    """No public key stands there twice, whatever it is for."""
    seen: set[str] = set()
    for advert in adverts:
        for key in (advert.cipher_key, advert.mask_key):
            if key in seen:
                raise RepeatedKeyError(
                    f"expected a key of its own for each site and use, got one of {advert.site} "
                    "twice"
                )
            seen.add(key)


def check_receiver(receiver: str, site: str) -> None:
    """It is for this site."""
    if receiver != site:
        raise ContextMismatchError(f"expected shares for {site}, got those for {receiver}")


def check_size(what: str, count: int, least: int) -> None:
    """They are enough."""
    if count < least:
        raise CohortTooSmallError(
            f"expected at least {least} {what}, got {count}",
            hint="ask more sites, or wait longer for them",
        )


def check_withstands(cohort: int, colluding: int) -> None:
    """A cohort of so many keeps its promise although so many of them collude."""
    if max_colluding(cohort) < colluding:
        raise CohortTooSmallError(
            f"expected a cohort that withstands {colluding} colluding sites, got {cohort} sites, "
            f"which withstand {max_colluding(cohort)}",
            hint="ask more sites, or wait longer for them",
        )


def check_sharers(sharers: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Those who dealt (U2) are those whom this side knows of."""
    if sharers != known:
        raise SurvivorsError("expected the sites whose shares came as those who dealt, got others")


def check_survivors(survivors: tuple[str, ...], sharers: tuple[str, ...]) -> None:
    """The survivors (U3) are among those who dealt (U2)."""
    check_ascending("survivors", survivors)
    if not set(survivors) <= set(sharers):
        raise SurvivorsError("expected survivors that dealt, got one that did not")


def check_survives(site: str, survivors: Collection[str]) -> None:
    """This side's values are in the sum."""
    if site not in survivors:
        raise SurvivorsError(f"expected {site} among the survivors, got others only")


def check_confirmed(
    message: Confirmation | Confirmations, sharers: tuple[str, ...], survivors: tuple[str, ...]
) -> None:
    """It is about the U2 and U3 that this side knows."""
    if (message.sharers, message.survivors) != (sharers, survivors):
        raise ConfirmationError(
            "expected a confirmation of the same survivors, got one of others",
            hint="two sites were told different things, so nothing is opened",
        )


def check_same_keys(confirmation: Confirmation, adverts_digest: bytes) -> None:
    """It is about the keys that all were sent."""
    if confirmation.adverts_digest != adverts_digest.hex():
        raise ConfirmationError("expected a confirmation of the adverts that all got, got another")


def check_confirmations(
    confirmations: Confirmations,
    names: AttemptNames,
    adverts_digest: bytes,
    least: int,
    members: Members,
) -> None:
    """Enough different survivors signed this very U2 and U3, for these very keys."""
    signers = [signed.site for signed in confirmations.signatures]
    check_ascending("confirmations", signers)
    if not set(signers) <= set(confirmations.survivors):
        raise ConfirmationError("expected survivors to confirm, got another site")
    check_enough_confirm(len(signers), least)
    for signed in confirmations.signatures:
        confirmation = Confirmation(
            **names._asdict(),
            site=signed.site,
            adverts_digest=adverts_digest.hex(),
            sharers=confirmations.sharers,
            survivors=confirmations.survivors,
            signature=signed.signature,
        )
        check_signature(confirmation, members)


def check_enough_confirm(count: int, least: int) -> None:
    """Any two sums that so many confirm have an honest site in common, which signs one."""
    if count < least:
        raise ConfirmationError(f"expected at least {least} confirmations, got {count}")


def check_first(message: FromSite, senders: Collection[str]) -> None:
    """Its sender has not sent one before."""
    if message.site in senders:
        raise OutOfOrderError(
            f"expected one {type(message).__name__} from {message.site}, got another"
        )


def check_usable_keys(advert: Advert) -> None:
    """Others can agree with its keys on what nobody else knows."""
    probe = KeyPair.generate()
    for key in (advert.cipher_key, advert.mask_key):
        probe.agree(key)


def check_dealt_to_all(dealt: SealedShares, cohort: tuple[str, ...]) -> None:
    """A site dealt to each of the others, once, in order."""
    if [share.peer for share in dealt.shares] != [site for site in cohort if site != dealt.site]:
        raise UnknownMemberError(
            f"expected shares for each of the other {len(cohort) - 1} sites, got others"
        )


def check_revealed(
    revealed: Revealed, sharers: tuple[str, ...], survivors: tuple[str, ...]
) -> None:
    """For each survivor a share of its seed, and for each lost site one of its key."""
    found = [(share.owner, share.kind) for share in revealed.shares]
    if found != [(site, "seed" if site in survivors else "key") for site in sharers]:
        raise SurvivorsError("expected one share of the right kind for each site, got others")


def check_dimension(context: AttemptContext, dimension: int) -> None:
    """The sum is as long as the model."""
    if context.dimension != dimension:
        raise ContextMismatchError(
            f"expected the model's {dimension} values, got {context.dimension}"
        )


def check_vector(values: npt.NDArray[np.uint32], dimension: int) -> None:
    """It is a vector of the ring, of the attempt's length."""
    if values.dtype != np.uint32 or values.shape != (dimension,):
        raise ValueRangeError(
            f"expected {dimension} values of uint32, got {values.dtype} of shape {values.shape}"
        )
