"""What the coordinator refuses, by name, and that the others' round goes on without its sender."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.digests import arrays_digest
from core.errors import (
    BadSignatureError,
    CohortTooSmallError,
    CommitmentError,
    ConfirmationError,
    ContextMismatchError,
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
    MACHINES,
    NAMES,
    REVOKED,
    Play,
    context_over,
    edited,
    signed_by,
)

LIAR = "eel"
HONEST = NAMES[:4]
Lie = Callable[[Play, Any], Any]


def refused(error: type[Exception], step: Callable[[], object]) -> None:
    with pytest.raises(error) as caught:
        step()
    assert caught.type is error


def finishes(play: Play, stage: str, told: Any) -> None:
    """From ``stage`` on, the four honest sites open their sum without the liar."""
    deliveries = told if stage == "mask" else None
    if stage == "share":
        for name in HONEST:
            play.coordinator.add_shares(play.sites[name].share(told))
        deliveries = play.coordinator.deliveries()
    survivors = told if stage == "confirm" else None
    if deliveries is not None:
        survivors = play.survivors(deliveries, HONEST)
    summed = survivors.survivors if survivors is not None else play.names
    confirmations = told if stage == "reveal" else play.confirmations(survivors, HONEST)
    assert np.array_equal(play.opened(confirmations, HONEST), play.expected(summed))


def elsewhere(sign: bool) -> dict[str, tuple[Lie, type[Exception]]]:
    """The same message, of another attempt."""

    def moved(field: str) -> Lie:
        change = {field: ELSEWHERE[field]}
        return lambda play, m: signed_by(LIAR, m, **change) if sign else edited(m, **change)

    return {f"another {field}": (moved(field), ContextMismatchError) for field in ELSEWHERE}


ADVERTS: dict[str, tuple[Lie, type[Exception]]] = {
    **elsewhere(sign=True),
    "altered": (lambda play, m: edited(m, seed_commitment="0" * 64), BadSignatureError),
    "signed by another": (lambda play, m: signed_by("ant", m), BadSignatureError),
    "for another purpose": (
        lambda play, m: signed_by(LIAR, m, purpose="secagg-masked"),
        BadSignatureError,
    ),
    "unknown": (lambda play, m: signed_by("cow", m, site="cow"), UnknownMemberError),
    "not asked": (lambda play, m: signed_by(IDLE, m, site=IDLE), UnknownMemberError),
    "another's key": (
        lambda play, m: signed_by(LIAR, m, mask_key=play.sent["ant"].cipher_key),
        RepeatedKeyError,
    ),
    "one key for both": (
        lambda play, m: signed_by(LIAR, m, mask_key=m.cipher_key),
        RepeatedKeyError,
    ),
    "a cipher key of small order": (
        lambda play, m: signed_by(LIAR, m, cipher_key="00" * 32),
        WeakKeyError,
    ),
    "a mask key of small order": (
        lambda play, m: signed_by(LIAR, m, mask_key="00" * 32),
        WeakKeyError,
    ),
}


@pytest.mark.parametrize("lie", ADVERTS)
def test_an_advert_that_is_refused_changes_nothing(lie: str) -> None:
    play, (tamper, error) = Play(), ADVERTS[lie]
    for name in HONEST:
        play.sent[name] = play.sites[name].advert()
        play.coordinator.add_advert(play.sent[name])
    bad = tamper(play, play.sites[LIAR].advert())
    refused(error, lambda: play.coordinator.add_advert(bad))
    finishes(play, "share", play.coordinator.adverts())


def test_an_advert_counts_once() -> None:
    play = Play()
    for name in HONEST:
        play.sent[name] = play.sites[name].advert()
        play.coordinator.add_advert(play.sent[name])
    refused(OutOfOrderError, lambda: play.coordinator.add_advert(play.site("ant").advert()))
    adverts = play.coordinator.adverts()
    assert adverts.adverts == tuple(play.sent[name] for name in HONEST)
    finishes(play, "share", adverts)


SHARES: dict[str, tuple[Lie, type[Exception]]] = {
    **elsewhere(sign=False),
    "from a site outside the cohort": (
        lambda play, m: edited(m, site=IDLE),
        UnknownMemberError,
    ),
    "from a site outside the cohort, for all of it": (
        lambda play, m: edited(m, site=IDLE, shares=(*m.shares, edited(m.shares[0], peer=LIAR))),
        UnknownMemberError,
    ),
    "for one too few": (lambda play, m: edited(m, shares=m.shares[1:]), UnknownMemberError),
    "for one twice": (
        lambda play, m: edited(m, shares=(m.shares[0], *m.shares)),
        UnknownMemberError,
    ),
    "for itself": (
        lambda play, m: edited(m, shares=(*m.shares, edited(m.shares[0], peer=LIAR))),
        UnknownMemberError,
    ),
    "as another": (lambda play, m: edited(m, site="ant"), OutOfOrderError),
}


@pytest.mark.parametrize("lie", SHARES)
def test_shares_that_are_refused_change_nothing(lie: str) -> None:
    play, (tamper, error) = Play(), SHARES[lie]
    adverts = play.adverts()
    for name in HONEST:
        play.coordinator.add_shares(play.sites[name].share(adverts))
    bad = tamper(play, play.sites[LIAR].share(adverts))
    refused(error, lambda: play.coordinator.add_shares(bad))
    finishes(play, "mask", play.coordinator.deliveries())


MASKED: dict[str, tuple[Lie, type[Exception]]] = {
    **elsewhere(sign=True),
    "altered": (lambda play, m: edited(m, digest="0" * 64), BadSignatureError),
    "signed by another": (lambda play, m: signed_by("ant", m), BadSignatureError),
    "from a site that did not deal": (
        lambda play, m: signed_by("fox", m, site="fox"),
        UnknownMemberError,
    ),
    "as another": (lambda play, m: signed_by("ant", m, site="ant"), OutOfOrderError),
}


def _masked(play: Play) -> tuple[Any, Any]:
    deliveries = play.deliveries(play.adverts(), play.names[:5])
    play.ready(deliveries, play.names[:5])
    for name in HONEST:
        values = play.masked_values[name]
        masked = play.sites[name].masked(arrays_digest({"masked": values}))
        play.coordinator.add_masked(masked, values)
    values = play.masked_values[LIAR]
    return play.sites[LIAR].masked(arrays_digest({"masked": values})), values


@pytest.mark.parametrize("lie", MASKED)
def test_masked_values_that_are_refused_are_not_summed(lie: str) -> None:
    # ``fox`` is in U1 and did not deal; the cohort's threshold is five, and so all must go on.
    play, (tamper, error) = Play(6 if "did not deal" in lie else 5), MASKED[lie]
    masked, values = _masked(play)
    refused(error, lambda: play.coordinator.add_masked(tamper(play, masked), values))
    if len(play.names) == 6:
        play.coordinator.add_masked(masked, values)
        names = play.names[:5]
        confirmations = play.confirmations(play.coordinator.survivors(), names)
        assert np.array_equal(play.opened(confirmations, names), play.expected(names))
    else:
        survivors = play.coordinator.survivors()
        assert survivors.survivors == HONEST
        finishes(play, "confirm", survivors)


@pytest.mark.parametrize(
    "values", [np.zeros(4, np.uint32), np.zeros(5, np.int64), np.zeros(1, np.uint32)]
)
def test_values_that_are_no_vector_of_the_ring_are_refused(values: Any) -> None:
    play = Play()
    masked, _ = _masked(play)
    refused(ValueRangeError, lambda: play.coordinator.add_masked(masked, values))
    finishes(play, "confirm", play.coordinator.survivors())


CONFIRMATIONS: dict[str, tuple[Lie, type[Exception]]] = {
    **elsewhere(sign=True),
    "of other sharers": (
        lambda play, m: signed_by(LIAR, m, sharers=m.sharers[:4]),
        ConfirmationError,
    ),
    "of other survivors": (
        lambda play, m: signed_by(LIAR, m, survivors=m.survivors[:4]),
        ConfirmationError,
    ),
    "of other keys": (
        lambda play, m: signed_by(LIAR, m, adverts_digest="0" * 64),
        ConfirmationError,
    ),
    "signed by another": (lambda play, m: signed_by("ant", m), BadSignatureError),
    "of no survivor": (lambda play, m: signed_by(IDLE, m, site=IDLE), UnknownMemberError),
    "as another": (lambda play, m: signed_by("ant", m, site="ant"), OutOfOrderError),
}


@pytest.mark.parametrize("lie", CONFIRMATIONS)
def test_a_confirmation_that_is_refused_does_not_count(lie: str) -> None:
    play, (tamper, error) = Play(), CONFIRMATIONS[lie]
    survivors = play.upto("confirm")
    for name in HONEST[:3]:
        play.coordinator.add_confirmation(play.sites[name].confirm(survivors))
    bad = tamper(play, play.sites[LIAR].confirm(survivors))
    refused(error, lambda: play.coordinator.add_confirmation(bad))
    refused(ConfirmationError, play.coordinator.confirmations)
    play.coordinator.add_confirmation(play.sites["dog"].confirm(survivors))
    finishes(play, "reveal", play.coordinator.confirmations())


def test_a_site_that_is_lost_cannot_confirm() -> None:
    play = Play()
    deliveries = play.deliveries(play.adverts())
    survivors = play.survivors(deliveries, HONEST)
    confirmation = play.sites["ant"].confirm(survivors)
    play.coordinator.add_confirmation(confirmation)
    of_the_lost = signed_by(LIAR, confirmation, site=LIAR)
    refused(UnknownMemberError, lambda: play.coordinator.add_confirmation(of_the_lost))
    refused(ConfirmationError, play.coordinator.confirmations)
    confirmations = play.confirmations(survivors, HONEST[1:])
    assert np.array_equal(play.opened(confirmations, HONEST), play.expected(HONEST))


def share_of(owner: str, **changes: Any) -> Lie:
    """What was revealed, with another share of ``owner``'s."""
    return lambda play, m: edited(
        m,
        shares=tuple(
            edited(share, **changes) if share.owner == owner else share for share in m.shares
        ),
    )


REVEALED: dict[str, tuple[Lie, type[Exception]]] = {
    **elsewhere(sign=False),
    "from a site that did not confirm": (
        lambda play, m: edited(m, site="ant"),
        UnknownMemberError,
    ),
    "from no member": (lambda play, m: edited(m, site=IDLE), UnknownMemberError),
    "a key for a seed": (share_of("bee", kind="key"), SurvivorsError),
    "one too few": (lambda play, m: edited(m, shares=m.shares[1:]), SurvivorsError),
    "one twice": (
        lambda play, m: edited(m, shares=(m.shares[0], *m.shares)),
        SurvivorsError,
    ),
    "outside the field": (share_of("bee", share="f" * 132), ShareUnopenedError),
    "as another": (lambda play, m: edited(m, site="bee"), OutOfOrderError),
}


@pytest.mark.parametrize("lie", REVEALED)
def test_revealed_shares_that_are_refused_do_not_count(lie: str) -> None:
    # ``ant`` did not confirm; the threshold is five, of six.
    play, (tamper, error) = Play(6), REVEALED[lie]
    survivors = play.upto("confirm")
    confirmations = play.confirmations(survivors, play.names[1:])
    for name in ("bee", "cat", "dog", "fox"):
        play.coordinator.add_revealed(play.sites[name].reveal(confirmations))
    revealed = play.sites[LIAR].reveal(confirmations)
    refused(error, lambda: play.coordinator.add_revealed(tamper(play, revealed)))
    refused(CohortTooSmallError, play.coordinator.open)
    play.coordinator.add_revealed(revealed)
    assert np.array_equal(play.coordinator.open(), play.expected(play.names))


@pytest.mark.parametrize("owner", ["ant", "eel"])
@pytest.mark.parametrize("share", ["0" * 131 + "1", "wrong seed"])
def test_a_sum_is_not_opened_with_a_secret_that_was_not_committed_to(
    owner: str, share: str
) -> None:
    # ``ant`` survives and ``eel`` is lost, so one secret is a seed and the other one a key.
    play = Play()
    deliveries = play.deliveries(play.adverts())
    confirmations = play.confirmations(play.survivors(deliveries, HONEST), HONEST)
    revealed = {name: play.sites[name].reveal(confirmations) for name in HONEST}
    for name in HONEST:
        # All of a constant give that constant: a secret of the right length, but another one.
        wrong = "0" * 131 + "7" if share == "wrong seed" else share
        bad = share == "wrong seed" or name == "bee"
        play.coordinator.add_revealed(
            share_of(owner, share=wrong)(play, revealed[name]) if bad else revealed[name]
        )
    refused(CommitmentError, play.coordinator.open)


@pytest.mark.parametrize(
    ("size", "changes", "sent", "error"),
    [
        (5, {}, 2, CohortTooSmallError),
        (5, {"min_cohort": 5}, 4, CohortTooSmallError),
        (5, {"min_cohort": 0}, 2, CohortTooSmallError),
        (5, {"bits": 31}, 5, ModulusCapacityError),
    ],
)
def test_a_cohort_that_sites_would_refuse_is_not_closed(
    size: int, changes: dict[str, int], sent: int, error: type[Exception]
) -> None:
    play = Play(size, **changes)
    refused(error, lambda: play.adverts(play.names[:sent]))


def test_too_few_of_a_stage_do_not_close_it_and_more_can_come() -> None:
    play = Play()
    adverts = play.adverts()
    refused(CohortTooSmallError, lambda: play.deliveries(adverts, HONEST[:3]))
    play.coordinator.add_shares(play.sites["dog"].share(adverts))
    deliveries = play.coordinator.deliveries()
    refused(CohortTooSmallError, lambda: play.survivors(deliveries, HONEST[:3]))
    play.ready(deliveries, ["dog"])
    values = play.masked_values["dog"]
    play.coordinator.add_masked(play.sites["dog"].masked(arrays_digest({"masked": values})), values)
    survivors = play.coordinator.survivors()
    refused(ConfirmationError, lambda: play.confirmations(survivors, HONEST[:3]))
    play.coordinator.add_confirmation(play.sites["dog"].confirm(survivors))
    confirmations = play.coordinator.confirmations()
    refused(CohortTooSmallError, play.coordinator.open)
    refused(CohortTooSmallError, lambda: play.opened(confirmations, HONEST[:3]))
    play.coordinator.add_revealed(play.sites["dog"].reveal(confirmations))
    assert np.array_equal(play.coordinator.open(), play.expected(HONEST))


STEPS = (
    ("add_advert", "adverts"),
    ("add_shares", "deliveries"),
    ("add_masked", "survivors"),
    ("add_confirmation", "confirmations"),
    ("add_revealed", "open"),
    ("transcript",),
)


@pytest.mark.parametrize("stage", range(6))
def test_a_step_of_another_stage_raises_and_changes_nothing(stage: int) -> None:
    play = Play()
    sent, told = _honest_messages()
    coordinator = play.coordinator
    for closed in range(stage):
        add, close = STEPS[closed]
        for message in sent[add].values():
            getattr(coordinator, add)(*message)
        told[close] = getattr(coordinator, close)()
    for other, steps in enumerate(STEPS):
        for step in steps:
            if other != stage:
                arguments = next(iter(sent[step].values())) if step in sent else ()
                refused(OutOfOrderError, lambda s=step, a=arguments: getattr(coordinator, s)(*a))
    for add, *close in STEPS[stage:5]:
        for message in sent[add].values():
            getattr(coordinator, add)(*message)
        told[close[0]] = getattr(coordinator, close[0])()
    assert np.array_equal(told["open"], play.expected(play.names))


def _honest_messages() -> tuple[dict[str, dict[str, tuple[Any, ...]]], dict[str, Any]]:
    """What honest sites send to each step of the coordinator."""
    play, sent = Play(), dict[str, dict[str, tuple[Any, ...]]]()
    adverts = play.adverts()
    sent["add_advert"] = {name: (play.sent[name],) for name in play.names}
    deliveries = play.deliveries(adverts)
    sent["add_shares"] = {name: (play.sent[name],) for name in play.names}
    survivors = play.survivors(deliveries)
    sent["add_masked"] = {n: (play.sent[n], play.masked_values[n]) for n in play.names}
    confirmations = play.confirmations(survivors)
    sent["add_confirmation"] = {name: (play.sent[name],) for name in play.names}
    play.opened(confirmations)
    sent["add_revealed"] = {name: (play.sent[name],) for name in play.names}
    sent["transcript"] = {"": ("0" * 64,)}
    return sent, {}


def test_the_transcript_holds_what_was_opened_and_who_confirmed() -> None:
    play = Play()
    deliveries = play.deliveries(play.adverts())
    confirmations = play.confirmations(play.survivors(deliveries, HONEST), HONEST)
    total = play.opened(confirmations, HONEST)
    transcript = play.coordinator.transcript(arrays_digest({"sum": total}))
    assert transcript.sharers == play.names
    assert transcript.survivors == HONEST
    assert transcript.signatures == confirmations.signatures
    assert transcript.sum_digest == arrays_digest({"sum": play.expected(HONEST).astype(np.int32)})
    assert transcript.context == play.context.hexdigest()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"federation": "other"}, ContextMismatchError),
        ({"roster_epoch": 6}, ContextMismatchError),
        ({"roster_digest": "0" * 64}, ContextMismatchError),
        ({"protocol": "cloister-secagg/2"}, ContextMismatchError),
        ({"dimension": 6}, ContextMismatchError),
        ({"members": NAMES[4::-1]}, OutOfOrderError),
        ({"members": (REVOKED, *NAMES[:5])}, UnknownMemberError),
    ],
)
def test_contexts_that_the_coordinator_refuses(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    play = Play()
    context = context_over(play.roster, play.names, **changes)
    refused(error, lambda: MACHINES.coordinator(context, roster=play.roster, dimension=5))


def test_no_secret_is_in_its_repr() -> None:
    play = Play()
    play.run()
    assert repr(play.coordinator) == "CoordinatorAttempt(0123456789abcdef, after it opened the sum)"
