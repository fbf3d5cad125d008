"""What a site refuses, by name, and that a refusal ends the attempt and leaves no secret."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from core.errors import (
    AdvertAlteredError,
    AlreadySpentError,
    BadSignatureError,
    CohortTooSmallError,
    ConfirmationError,
    ContextMismatchError,
    DeadlineError,
    ModulusCapacityError,
    OutOfOrderError,
    RepeatedKeyError,
    ShareUnopenedError,
    SurvivorsError,
    UnknownMemberError,
    ValueRangeError,
    WeakKeyError,
)
from tests.support.aggregation import (
    ELSEWHERE,
    IDLE,
    NAMES,
    REVOKED,
    Play,
    context_over,
    edited,
    node_key,
    signed_by,
)

SITE = "bee"
Lie = Callable[[Play, Any], Any]


def refuses(play: Play, error: type[Exception], step: Callable[[], object]) -> None:
    """``step`` of the site raises just ``error``, and the site has ended without secrets."""
    with pytest.raises(error) as caught:
        step()
    assert caught.type is error
    keeps_nothing(play.sites[SITE])


def keeps_nothing(attempt: Any) -> None:
    assert attempt.ended
    left = attempt._secrets
    assert not any(left._seed)
    assert (left._pairs, left._agreed, left._pair_masks, left._held) == ({}, {}, {}, {})


def adverts_with(**changed: Any) -> Lie:
    """The adverts, with those of these sites made anew by a function of the old ones."""
    return lambda play, adverts: edited(
        adverts,
        adverts=tuple(
            changed[a.site](play, a, {b.site: b for b in adverts.adverts})
            if a.site in changed
            else a
            for a in adverts.adverts
        ),
    )


def with_keys(**keys: Any) -> Any:
    """An advert whose site signs other keys; those are taken from others' adverts."""
    return lambda play, a, others: signed_by(
        a.site, a, **{field: take(others) for field, take in keys.items()}
    )


def only(count: int) -> Lie:
    """The adverts of the first so many sites."""
    return lambda play, adverts: edited(adverts, adverts=adverts.adverts[:count])


def another_instance(play: Play, own: Any, others: Any) -> Any:
    """What the very site signs in the very context, with keys that this attempt does not have."""
    return play.site(own.site).advert()


ADVERTS: dict[str, tuple[Lie, type[Exception]]] = {
    **{
        f"another {field}": (
            lambda play, m, field=field: edited(m, **{field: ELSEWHERE[field]}),
            ContextMismatchError,
        )
        for field in ELSEWHERE
    },
    **{
        f"an advert of another {field}": (
            adverts_with(cat=lambda p, a, o, f=field: signed_by("cat", a, **{f: ELSEWHERE[f]})),
            ContextMismatchError,
        )
        for field in ELSEWHERE
    },
    "without its own": (
        lambda play, m: edited(m, adverts=tuple(a for a in m.adverts if a.site != SITE)),
        AdvertAlteredError,
    ),
    "its own altered": (
        adverts_with(bee=lambda p, a, o: edited(a, seed_commitment="0" * 64)),
        AdvertAlteredError,
    ),
    "its own of another instance": (adverts_with(bee=another_instance), AdvertAlteredError),
    "another's altered": (
        adverts_with(cat=lambda p, a, o: edited(a, mask_key=p.site("cat").advert().mask_key)),
        BadSignatureError,
    ),
    "another's commitment altered": (
        adverts_with(cat=lambda p, a, o: edited(a, seed_commitment="0" * 64)),
        BadSignatureError,
    ),
    "signed by another member": (
        adverts_with(cat=lambda p, a, o: signed_by("dog", a)),
        BadSignatureError,
    ),
    "signed for another purpose": (
        adverts_with(cat=lambda p, a, o: signed_by("cat", a, purpose="secagg-masked")),
        BadSignatureError,
    ),
    "a site that the roster does not have": (
        adverts_with(cat=lambda p, a, o: signed_by("cow", a, site="cow")),
        UnknownMemberError,
    ),
    "a site that is not asked": (
        lambda play, m: edited(
            m, adverts=(signed_by(IDLE, m.adverts[0], site=IDLE), *m.adverts[1:])
        ),
        UnknownMemberError,
    ),
    "one twice": (
        lambda play, m: edited(m, adverts=(m.adverts[0], *m.adverts)),
        OutOfOrderError,
    ),
    "two of one site": (
        lambda play, m: edited(m, adverts=(play.site("ant").advert(), *m.adverts)),
        OutOfOrderError,
    ),
    "out of order": (
        lambda play, m: edited(m, adverts=m.adverts[::-1]),
        OutOfOrderError,
    ),
    "another's cipher key": (
        adverts_with(cat=with_keys(cipher_key=lambda o: o["dog"].cipher_key)),
        RepeatedKeyError,
    ),
    "another's mask key": (
        adverts_with(cat=with_keys(mask_key=lambda o: o["dog"].mask_key)),
        RepeatedKeyError,
    ),
    "another's cipher key as mask key": (
        adverts_with(cat=with_keys(mask_key=lambda o: o["dog"].cipher_key)),
        RepeatedKeyError,
    ),
    "this site's mask key": (
        adverts_with(cat=with_keys(mask_key=lambda o: o[SITE].mask_key)),
        RepeatedKeyError,
    ),
    "one key for both": (
        adverts_with(cat=with_keys(mask_key=lambda o: o["cat"].cipher_key)),
        RepeatedKeyError,
    ),
    "a cipher key of small order": (
        adverts_with(cat=with_keys(cipher_key=lambda o: "00" * 32)),
        WeakKeyError,
    ),
    "a mask key of small order": (
        adverts_with(cat=with_keys(mask_key=lambda o: "01" + "00" * 31)),
        WeakKeyError,
    ),
    "a key in its second form": (
        adverts_with(cat=with_keys(mask_key=lambda o: o["cat"].mask_key[:-2] + "ff")),
        WeakKeyError,
    ),
    "two of five": (only(2), CohortTooSmallError),
    "none but its own": (
        lambda play, m: edited(m, adverts=m.adverts[1:2]),
        CohortTooSmallError,
    ),
}


@pytest.mark.parametrize("lie", ADVERTS)
def test_adverts_that_a_site_refuses(lie: str) -> None:
    play, (tamper, error) = Play(), ADVERTS[lie]
    adverts = tamper(play, play.upto("share"))
    refuses(play, error, lambda: play.sites[SITE].share(adverts))


@pytest.mark.parametrize("floors", [{"floor": 5}, {"min_cohort": 5}])
def test_the_higher_one_of_both_floors_holds(floors: dict[str, int]) -> None:
    play = Play(**floors)
    adverts = only(4)(play, play.upto("share"))
    refuses(play, CohortTooSmallError, lambda: play.sites[SITE].share(adverts))


def test_a_cohort_of_less_than_three_is_refused_whatever_the_floors() -> None:
    play = Play(floor=0, min_cohort=0)
    play.sites[SITE] = play.site(SITE, colluding=0)
    adverts = only(2)(play, play.upto("share"))
    refuses(play, CohortTooSmallError, lambda: play.sites[SITE].share(adverts))


@pytest.mark.parametrize(("size", "most"), [(3, 1), (4, 1), (5, 2), (6, 3)])
def test_a_cohort_that_does_not_withstand_the_colluding_sites_is_refused(
    size: int, most: int
) -> None:
    play = Play(size)
    play.sites[SITE] = play.site(SITE, colluding=most)
    play.sites[SITE].share(play.upto("share"))
    play = Play(size)
    play.sites[SITE] = play.site(SITE, colluding=most + 1)
    adverts = play.upto("share")
    refuses(play, CohortTooSmallError, lambda: play.sites[SITE].share(adverts))


def test_a_cohort_whose_sum_can_overflow_is_refused() -> None:
    play = Play(bits=31)
    for name in play.names:
        play.sent[name] = play.sites[name].advert()
    adverts = (
        Play()
        .upto("share")
        .model_copy(
            update={
                "adverts": tuple(play.sent.values()),
                "context": play.context.hexdigest(),
            }
        )
    )
    refuses(play, ModulusCapacityError, lambda: play.sites[SITE].share(adverts))


def delivered(**changes: Any) -> Lie:
    """The shares for the site, with other fields."""
    return lambda play, m: edited(m[SITE], **changes)


def boxes(change: Callable[[Any, list[Any]], list[Any]]) -> Lie:
    """The shares for the site, with other boxes."""
    return lambda play, m: edited(m[SITE], shares=tuple(change(m, list(m[SITE].shares))))


def replaced(take: Callable[[Any], str]) -> Lie:
    """The shares for the site, with another box from the first sender, ``ant``."""
    return boxes(lambda m, shares: [edited(shares[0], box=take(m)), *shares[1:]])


def box_between(deliveries: Any, sender: str, receiver: str) -> str:
    return next(s.box for s in deliveries[receiver].shares if s.peer == sender)


def flipped(box: str) -> str:
    return f"{int(box[:2], 16) ^ 1:02x}{box[2:]}"


SHARES: dict[str, tuple[Lie, type[Exception]]] = {
    **{
        f"another {field}": (delivered(**{field: value}), ContextMismatchError)
        for field, value in ELSEWHERE.items()
    },
    "for another site": (delivered(site="cat"), ContextMismatchError),
    "a bit flipped": (
        replaced(lambda m: flipped(box_between(m, "ant", SITE))),
        ShareUnopenedError,
    ),
    "for another receiver": (
        replaced(lambda m: box_between(m, "ant", "cat")),
        ShareUnopenedError,
    ),
    "from another sender": (
        replaced(lambda m: box_between(m, "cat", SITE)),
        ShareUnopenedError,
    ),
    "its own, back": (replaced(lambda m: box_between(m, SITE, "ant")), ShareUnopenedError),
    "one twice": (boxes(lambda m, shares: [shares[0], *shares]), OutOfOrderError),
    "out of order": (boxes(lambda m, shares: shares[::-1]), OutOfOrderError),
    "from itself": (
        boxes(lambda m, shares: [shares[0], edited(shares[0], peer=SITE), *shares[1:]]),
        UnknownMemberError,
    ),
    "from a site outside the cohort": (
        boxes(lambda m, shares: [edited(shares[0], peer=IDLE), *shares[1:]]),
        UnknownMemberError,
    ),
    "too few": (boxes(lambda m, shares: shares[:2]), CohortTooSmallError),
}


@pytest.mark.parametrize("lie", SHARES)
def test_shares_that_a_site_refuses(lie: str) -> None:
    play, (tamper, error) = Play(), SHARES[lie]
    shares = tamper(play, play.upto("open_shares"))
    refuses(play, error, lambda: play.sites[SITE].open_shares(shares))


def test_shares_that_were_dealt_under_other_adverts_do_not_open() -> None:
    play = Play()
    adverts = play.adverts()
    shorter = edited(adverts, adverts=adverts.adverts[:4])
    others = {name: play.sites[name].share(shorter) for name in play.names[:4] if name != SITE}
    play.sites[SITE].share(adverts)
    shares = tuple(
        edited(share, peer=name)
        for name, dealt in others.items()
        for share in dealt.shares
        if share.peer == SITE
    )
    message = edited(next(iter(others.values())), site=SITE, shares=shares)
    refuses(play, ShareUnopenedError, lambda: play.sites[SITE].open_shares(message))


def test_fewer_sharers_than_the_site_s_own_floor_are_refused() -> None:
    play = Play(floor=5)
    shares = boxes(lambda m, shares: shares[:3])(play, play.upto("open_shares"))
    refuses(play, CohortTooSmallError, lambda: play.sites[SITE].open_shares(shares))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4, np.uint32),
        np.zeros(6, np.uint32),
        np.zeros((5, 1), np.uint32),
        np.zeros(5, np.int32),
        np.zeros(5, np.float32),
        np.zeros(5, np.uint64),
    ],
)
def test_values_that_are_no_vector_of_the_ring_are_refused_unspent(values: Any) -> None:
    play, values = Play(), values.copy()
    play.upto("mask")
    spent: list[None] = []
    step = play.sites[SITE].mask
    refuses(play, ValueRangeError, lambda: step(values, lambda: spent.append(None)))
    assert spent == []
    assert not values.any()


def test_values_are_marked_as_spent_before_the_first_mask() -> None:
    play = Play()
    play.upto("mask")
    values, seen = play.inputs[SITE].copy(), []
    play.sites[SITE].mask(values, lambda: seen.append(values.copy()))
    assert len(seen) == 1
    assert np.array_equal(seen[0], play.inputs[SITE])
    assert not np.array_equal(values, play.inputs[SITE])


def test_nothing_is_masked_where_the_round_is_spent_already() -> None:
    play = Play()
    play.upto("mask")
    play.spent[SITE].mark(play.context)
    values = play.inputs[SITE].copy()
    refuses(
        play,
        AlreadySpentError,
        lambda: play.sites[SITE].mask(values, lambda: play.spent[SITE].mark(play.context)),
    )
    assert np.array_equal(values, play.inputs[SITE])


SURVIVORS: dict[str, tuple[Lie, type[Exception]]] = {
    **{
        f"another {field}": (
            lambda play, m, field=field: edited(m, **{field: ELSEWHERE[field]}),
            ContextMismatchError,
        )
        for field in ELSEWHERE
    },
    "fewer sharers": (lambda play, m: edited(m, sharers=m.sharers[:4]), SurvivorsError),
    "more sharers": (lambda play, m: edited(m, sharers=(*m.sharers, "fox")), SurvivorsError),
    "sharers out of order": (lambda p, m: edited(m, sharers=m.sharers[::-1]), SurvivorsError),
    "a survivor that did not deal": (
        lambda play, m: edited(m, survivors=(*m.survivors, "fox")),
        SurvivorsError,
    ),
    "a survivor twice": (
        lambda play, m: edited(m, survivors=("ant", *m.survivors)),
        OutOfOrderError,
    ),
    "survivors out of order": (
        lambda play, m: edited(m, survivors=m.survivors[::-1]),
        OutOfOrderError,
    ),
    "without this site": (
        lambda play, m: edited(m, survivors=tuple(n for n in m.survivors if n != SITE)),
        SurvivorsError,
    ),
    "too few": (lambda play, m: edited(m, survivors=m.survivors[:3]), CohortTooSmallError),
    "none": (lambda play, m: edited(m, survivors=()), SurvivorsError),
}


@pytest.mark.parametrize("lie", SURVIVORS)
def test_survivors_that_a_site_refuses(lie: str) -> None:
    # Of six, ``fox`` is in U1 and did not deal.
    play, (tamper, error) = Play(6), SURVIVORS[lie]
    names = play.names[:5]
    survivors = play.survivors(play.deliveries(play.adverts(), names), names)
    told = tamper(play, survivors)
    refuses(play, error, lambda: play.sites[SITE].confirm(told))


def test_fewer_survivors_than_the_site_s_own_floor_are_refused() -> None:
    play = Play(floor=5)
    survivors = play.upto("confirm")
    told = edited(survivors, survivors=survivors.survivors[:4])
    refuses(play, CohortTooSmallError, lambda: play.sites[SITE].confirm(told))


def signatures(change: Callable[[Play, list[Any]], list[Any]]) -> Lie:
    """The confirmations with other signatures."""
    return lambda play, m: edited(m, signatures=tuple(change(play, list(m.signatures))))


def of_a_sharer_that_is_lost(play: Play, signed: list[Any]) -> list[Any]:
    """A good signature of ``eel``, whose values did not come."""
    confirmation = signed_by("eel", play.sent["ant"], site="eel")
    return [*signed, edited(signed[0], site="eel", signature=confirmation.signature)]


def over_other_survivors(play: Play, signed: list[Any]) -> list[Any]:
    """A good signature of ``ant``, over other survivors."""
    other = signed_by("ant", play.sent["ant"], survivors=play.names)
    return [edited(signed[0], signature=other.signature), *signed[1:]]


def for_other_keys(play: Play, signed: list[Any]) -> list[Any]:
    """A good signature of ``ant`` over the same survivors, from when it was sent other adverts."""
    other = signed_by("ant", play.sent["ant"], adverts_digest="0" * 64)
    return [edited(signed[0], signature=other.signature), *signed[1:]]


CONFIRMATIONS: dict[str, tuple[Lie, type[Exception]]] = {
    **{
        f"another {field}": (
            lambda play, m, field=field: edited(m, **{field: ELSEWHERE[field]}),
            ContextMismatchError,
        )
        for field in ELSEWHERE
    },
    "of other sharers": (lambda p, m: edited(m, sharers=m.sharers[:4]), ConfirmationError),
    "of other survivors": (lambda p, m: edited(m, survivors=m.sharers), ConfirmationError),
    "one too few": (signatures(lambda play, signed: signed[1:]), ConfirmationError),
    "one twice": (signatures(lambda play, signed: [signed[1], *signed[1:]]), OutOfOrderError),
    "out of order": (signatures(lambda play, signed: signed[::-1]), OutOfOrderError),
    "of a site that is lost": (signatures(of_a_sharer_that_is_lost), ConfirmationError),
    "of a site that is lost for another's": (
        signatures(lambda play, signed: of_a_sharer_that_is_lost(play, signed)[1:]),
        ConfirmationError,
    ),
    "over other survivors": (signatures(over_other_survivors), BadSignatureError),
    "for other keys": (signatures(for_other_keys), BadSignatureError),
    "by another site": (
        signatures(
            lambda play, signed: [edited(signed[0], signature=signed[1].signature), *signed[1:]]
        ),
        BadSignatureError,
    ),
}


@pytest.mark.parametrize("lie", CONFIRMATIONS)
def test_confirmations_that_a_site_refuses(lie: str) -> None:
    # Of five, ``eel`` dealt and is lost; the threshold is four.
    play, (tamper, error) = Play(), CONFIRMATIONS[lie]
    names = play.names[:4]
    deliveries = play.deliveries(play.adverts())
    confirmations = play.confirmations(play.survivors(deliveries, names), names)
    told = tamper(play, confirmations)
    refuses(play, error, lambda: play.sites[SITE].reveal(told))


def test_a_survivor_s_seed_is_revealed_and_a_lost_site_s_key_and_never_both() -> None:
    play = Play()
    names = play.names[:4]
    deliveries = play.deliveries(play.adverts())
    confirmations = play.confirmations(play.survivors(deliveries, names), names)
    revealed = play.sites[SITE].reveal(confirmations)
    assert [(share.owner, share.kind) for share in revealed.shares] == [
        ("ant", "seed"),
        ("bee", "seed"),
        ("cat", "seed"),
        ("dog", "seed"),
        ("eel", "key"),
    ]


@pytest.mark.parametrize("step", ["advert", "share", "open_shares", "mask", "masked"])
def test_a_step_after_the_deadline_is_refused(step: str) -> None:
    play = Play()
    message = play.upto(step) if step in ("share", "open_shares", "mask") else None
    if step == "masked":
        play.ready(play.upto("open_shares"))
    play.late = timedelta(hours=1, seconds=1)
    arguments: dict[str, tuple[Any, ...]] = {
        "share": (message,),
        "open_shares": (message and step == "open_shares" and message[SITE],),
        "mask": (play.inputs[SITE], lambda: pytest.fail("marked after the deadline")),
        "masked": ("0" * 64,),
    }
    refuses(play, DeadlineError, lambda: getattr(play.sites[SITE], step)(*arguments.get(step, ())))


@pytest.mark.parametrize("step", ["confirm", "reveal"])
def test_a_late_confirmation_or_share_is_not_given(step: str) -> None:
    play = Play()
    message = play.upto(step)
    play.late = timedelta(hours=1, seconds=1)
    refuses(play, DeadlineError, lambda: getattr(play.sites[SITE], step)(message))


def test_the_deadline_itself_is_not_too_late() -> None:
    play = Play()
    play.late = timedelta(hours=1)
    assert np.array_equal(play.run(), play.expected(play.names))


CONTEXTS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "another federation": ({"federation": "other"}, ContextMismatchError),
    "another epoch": ({"roster_epoch": 6}, ContextMismatchError),
    "another roster": ({"roster_digest": "0" * 64}, ContextMismatchError),
    "another protocol": ({"protocol": "cloister-secagg/2"}, ContextMismatchError),
    "members out of order": ({"members": NAMES[4::-1]}, OutOfOrderError),
    "a member twice": ({"members": ("ant", *NAMES[:5])}, OutOfOrderError),
    "a revoked member": ({"members": (REVOKED, *NAMES[:5])}, UnknownMemberError),
    "an unknown member": ({"members": (*NAMES[:5], "zoo")}, UnknownMemberError),
    "without this site": ({"members": ("ant", "cat", "dog", "eel")}, UnknownMemberError),
}


@pytest.mark.parametrize("lie", CONTEXTS)
def test_contexts_that_a_site_refuses(lie: str) -> None:
    changes, error = CONTEXTS[lie]
    play = Play()
    context = context_over(play.roster, play.names, **changes)
    with pytest.raises(error) as caught:
        play.site(SITE, context=context)
    assert caught.type is error


def test_a_site_does_not_start_with_a_key_that_the_roster_does_not_have() -> None:
    with pytest.raises(BadSignatureError):
        Play().site(SITE, key=node_key("cat"))


def test_a_roster_that_differs_in_a_weight_is_another_roster() -> None:
    play = Play()
    member = edited(play.roster.members[3], num_examples=41)
    roster = edited(
        play.roster, members=(*play.roster.members[:3], member, *play.roster.members[4:])
    )
    with pytest.raises(ContextMismatchError):
        play.site(SITE, roster=roster)


def test_sizes_are_those_of_the_adverts_and_of_the_higher_floor() -> None:
    play = Play(6, floor=6, min_cohort=4)
    site = play.sites[SITE]
    with pytest.raises(OutOfOrderError):
        _ = site.cohort
    with pytest.raises(OutOfOrderError):
        _ = site.least_survivors
    play.upto("open_shares")
    assert (site.cohort, site.least_survivors) == (6, 6)


def test_two_attempts_of_one_site_have_no_key_in_common() -> None:
    play = Play()
    first, second = (play.site(SITE).advert() for _ in range(2))
    for field in ("cipher_key", "mask_key", "seed_commitment"):
        assert getattr(first, field) != getattr(second, field)


def test_no_secret_is_in_a_repr() -> None:
    play = Play()
    site = play.sites[SITE]
    left = site._secrets
    secrets = [bytes(left._seed), *(pair.private_bytes() for pair in left._pairs.values())]
    adverts = play.adverts()
    shown = [repr(site), repr(left), repr(left._pairs)]
    play.ready(play.deliveries(adverts))
    held = [number for pair in left._held.values() for number in (pair.seed, pair.key)]
    shown += [repr(site), repr(left), repr(left._held)]
    assert (len(secrets), len(held)) == (3, 10)
    for text in shown:
        assert not any(secret.hex() in text or repr(secret) in text for secret in secrets)
        assert not any(str(number) in text or f"{number:x}" in text for number in held)


def test_a_site_keeps_no_keys_of_masks_once_its_values_are_masked() -> None:
    play = Play()
    play.ready(play.upto("open_shares"))
    left = play.sites[SITE]._secrets
    assert not any(left._seed)
    assert (left._pairs, left._pair_masks) == ({}, {})


def test_a_site_that_is_through_has_ended_and_keeps_nothing() -> None:
    play = Play()
    confirmations = play.upto("reveal")
    play.sites[SITE].reveal(confirmations)
    keeps_nothing(play.sites[SITE])
    refuses(play, OutOfOrderError, lambda: play.sites[SITE].reveal(confirmations))


def test_what_can_be_overwritten_is_overwritten() -> None:
    play = Play()
    site = play.sites[SITE]
    play.upto("open_shares")
    left = site._secrets
    secrets = [left._seed, *left._agreed.values(), *left._pair_masks.values()]
    assert len(secrets) == 9
    assert all(any(secret) for secret in secrets)
    site.wipe()
    assert not any(any(secret) for secret in secrets)


def test_a_site_can_give_up_at_any_time() -> None:
    play = Play()
    adverts = play.upto("share")
    play.sites[SITE].wipe()
    keeps_nothing(play.sites[SITE])
    refuses(play, OutOfOrderError, lambda: play.sites[SITE].share(adverts))
