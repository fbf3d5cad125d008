"""No secret is in an error, a repr, a log, Flower's state or a file, whatever goes wrong.

Every secret is written down as it is made (``tests.support.canaries``), then searched for in every
form in all that the product says of itself.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.secure_round import SecureRound, _Update
from core.aggregation_messages import CONFIRMATION, MASKED, REVEAL, SHARES, SealedShares
from core.errors import AlreadySpentError, CloisterError, SecureAggregationError, ValueRangeError
from privacy.secure_aggregation import keys, shamir, site_secrets
from privacy.secure_aggregation.fixed_point import FixedPoint
from privacy.secure_aggregation.masks import add_masks
from privacy.signing import SiteKey
from tests.support.aggregation import ELSEWHERE, Play, edited, signed_by
from tests.support.canaries import KINDS, Lookout, files_below, find, makers
from tests.support.secure_federation import (
    FIVE,
    SecureFederation,
    changed,
    deaf,
    document,
    masked_values,
    mute,
    with_values,
)

Secrets = set[tuple[str, bytes]]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    """All that is made from now on."""
    told: Secrets = set()
    for owner, name, wrapped in list(makers(lambda kind, secret: told.add((kind, secret)))):
        monkeypatch.setattr(owner, name, wrapped)
    return told


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[CloisterError]:
    """Every error of ours that is made from now on, whoever catches it."""
    made: list[CloisterError] = []
    init = CloisterError.__init__

    def wrapper(self: CloisterError, message: str, *, hint: str = "") -> None:
        init(self, message, hint=hint)
        made.append(self)

    monkeypatch.setattr(CloisterError, "__init__", wrapper)
    return made


def shown(error: BaseException) -> bytes:
    """All that an error says of itself and of those before it."""
    parts = [*traceback.format_exception(error), repr(error), repr(error.args), str(vars(error))]
    return "\n".join(parts).encode()


def of_stage(stage: str, act: Callable[[Play, Any, Any], object]) -> Callable[[], object]:
    """Plays honestly up to a stage; then ``act`` with the first site and what it is sent."""

    def run() -> object:
        play = Play(5)
        message = play.upto(stage)
        return act(play, play.sites["ant"], message)

    return run


def _with_advert(adverts: Any, number: int, advert: Any) -> Any:
    each = list(adverts.adverts)
    each[number] = advert
    return edited(adverts, adverts=tuple(each))


def _other_advert(**changes: Any) -> Callable[[], object]:
    def act(play: Play, site: Any, adverts: Any) -> object:
        return site.share(_with_advert(adverts, 1, signed_by("bee", adverts.adverts[1], **changes)))

    return of_stage("share", act)


def _repeated_key(play: Play, site: Any, adverts: Any) -> object:
    own = adverts.adverts[0]
    advert = signed_by("bee", adverts.adverts[1], mask_key=own.mask_key)
    return site.share(_with_advert(adverts, 1, advert))


def _broken_box(play: Play, site: Any, deliveries: Any) -> object:
    delivery = deliveries["ant"]
    first, *rest = delivery.shares
    return site.open_shares(edited(delivery, shares=(edited(first, box="ab" * 148), *rest)))


def _spent(play: Play, site: Any, deliveries: Any) -> object:
    def refuse() -> None:
        raise AlreadySpentError("expected an update that has not left the site, got another")

    return site.mask(play.inputs["ant"].copy(), refuse)


def _reveal_others(change: Callable[[Any], Any]) -> Callable[[], object]:
    """The coordinator is told other shares by one site, and opens."""

    def act(play: Play, site: Any, confirmations: Any) -> object:
        for name in play.names:
            revealed = play.sites[name].reveal(confirmations)
            play.coordinator.add_revealed(change(revealed) if name == "ant" else revealed)
        return play.coordinator.open()

    return of_stage("reveal", act)


def _other_share(share: str) -> Callable[[Any], Any]:
    return lambda revealed: edited(
        revealed, shares=tuple(edited(each, share=share) for each in revealed.shares)
    )


def _late(play: Play, site: Any, message: Any) -> object:
    play.late = timedelta(days=1)
    return site.share(message)


BREAKS: dict[str, Callable[[], object]] = {
    **{
        f"another {name}": of_stage(
            "share",
            lambda play, site, adverts, n=name, v=value: site.share(edited(adverts, **{n: v})),
        )
        for name, value in ELSEWHERE.items()
    },
    "own advert missing": of_stage(
        "share", lambda play, site, m: site.share(edited(m, adverts=m.adverts[1:]))
    ),
    "unsigned advert": of_stage(
        "share",
        lambda play, site, m: site.share(
            _with_advert(m, 1, edited(m.adverts[1], signature="0" * 128))
        ),
    ),
    "repeated key": of_stage("share", _repeated_key),
    "weak key": _other_advert(mask_key="00" * 32),
    "key of another form": _other_advert(mask_key="ff" * 32),
    "too few adverts": of_stage(
        "share", lambda play, site, m: site.share(edited(m, adverts=m.adverts[:2]))
    ),
    "adverts twice": of_stage(
        "share", lambda play, site, m: site.share(edited(m, adverts=(m.adverts[0], *m.adverts)))
    ),
    "late": of_stage("share", _late),
    "out of order": of_stage("share", lambda play, site, m: site.masked("0" * 64)),
    "a box that does not open": of_stage("open_shares", _broken_box),
    "shares for another": of_stage("open_shares", lambda play, site, m: site.open_shares(m["bee"])),
    "too few shares": of_stage(
        "open_shares",
        lambda play, site, m: site.open_shares(edited(m["ant"], shares=m["ant"].shares[:1])),
    ),
    "values of another kind": of_stage(
        "mask", lambda play, site, m: site.mask(np.zeros(5, np.float32), lambda: None)
    ),
    "spent": of_stage("mask", _spent),
    "others dealt": of_stage(
        "confirm", lambda play, site, m: site.confirm(edited(m, sharers=m.sharers[:-1]))
    ),
    "not a survivor": of_stage(
        "confirm", lambda play, site, m: site.confirm(edited(m, survivors=m.survivors[1:]))
    ),
    "too few survivors": of_stage(
        "confirm", lambda play, site, m: site.confirm(edited(m, survivors=m.survivors[:3]))
    ),
    "too few confirm": of_stage(
        "reveal", lambda play, site, m: site.reveal(edited(m, signatures=m.signatures[:3]))
    ),
    "others confirmed": of_stage(
        "reveal", lambda play, site, m: site.reveal(edited(m, survivors=m.survivors[:-1]))
    ),
    "shares that do not go together": _reveal_others(_other_share("00" * 65 + "07")),
    "shares beyond the field": _reveal_others(_other_share("ff" * 66)),
    "a share too few": _reveal_others(lambda m: edited(m, shares=m.shares[1:])),
    "a threshold above all": lambda: shamir.split(b"s" * 32, 6, [1, 2, 3], lambda n: b"r" * n),
    "a short secret": lambda: shamir.split(b"s" * 31, 2, [1, 2, 3], lambda n: b"r" * n),
    "a short mask key": lambda: add_masks(np.zeros(5, np.uint32), [(b"k" * 31, 1)]),
    "another seed": lambda: keys.check_seed(b"s" * 32, "0" * 64, b"c" * 32, "ant"),
    "another mask key": lambda: keys.check_mask_key(b"s" * 32, "0" * 64, "ant"),
}


def test_no_secret_is_in_an_error(
    secrets: Secrets, errors: list[CloisterError], eavesdropping: list[Lookout]
) -> None:
    Play(5, dimension=64).run()  # wide enough to tell its values from others
    secrets |= {("literal", letter * 32) for letter in (b"s", b"k")}
    for name, breaks in BREAKS.items():
        before = len(errors)
        with pytest.raises(SecureAggregationError):
            breaks()
        assert len(errors) > before, name
    kinds = {type(error) for error in errors}
    assert len(kinds) >= 14, sorted(kind.__name__ for kind in kinds)
    haystacks = {f"{n} {type(e).__name__}": shown(e) for n, e in enumerate(errors)}
    assert {kind for kind, _ in secrets} >= set(KINDS) - {"trained", "moved"}
    assert find(secrets, haystacks) == set()
    # It can fail.
    secret = next(value for kind, value in secrets if kind == "agreed")
    told = shown(CloisterError(f"expected another key than {secret.hex()}"))
    assert find(secrets, {"told": told}) == {"agreed in told"}
    eavesdropping[-1].said.clear()


def test_no_value_of_an_update_is_in_an_error(errors: list[CloisterError]) -> None:
    values = np.array([0.123456789, np.nan, 77.654321], np.float32)
    with pytest.raises(ValueRangeError):
        FixedPoint(2.0**-20, 24).encode({"w": values}, None, 1.0, np.zeros(3, np.uint32))
    text = shown(errors[-1]).decode()
    assert "0.1234" not in text
    assert "77.65" not in text


def test_no_secret_is_in_a_repr(secrets: Secrets) -> None:
    texts: list[str] = []
    for stage in ("share", "open_shares", "mask", "confirm", "reveal"):
        play = Play(5)
        message = play.upto(stage)
        for name in play.names:
            site = play.sites[name]
            texts += [repr(site), str(site), repr(site._secrets), repr(play.sent[name])]
            texts += [repr(site._secrets._pairs), repr(site._secrets._held)]
        texts += [repr(play.coordinator), repr(message), str(message)]
    play = Play(5)
    confirmations = play.upto("reveal")
    for name in play.names:
        texts.append(repr(play.sites[name].reveal(confirmations)))
    secret = site_secrets.SiteSecrets("ant", b"c" * 32, lambda count: b"s" * count)
    update = _Update("key", None, np.arange(64, dtype=np.uint32), 1, True, 1)  # type: ignore[arg-type]
    texts += [repr(secret), repr(update), repr(SiteKey.generate())]
    secrets.add(("encoded", np.arange(64, dtype=np.uint32)[:16].tobytes()))
    assert find(secrets, {str(n): text.encode() for n, text in enumerate(texts)}) == set()


def _plus_one(content: Any) -> Any:
    return with_values(content, masked_values(content) + np.uint32(1))


@pytest.fixture
def _loud(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield


@pytest.mark.usefixtures("_loud")
def test_no_secret_is_in_a_log_a_file_or_flower_s_state(
    tmp_path: Path,
    secrets: Secrets,
    errors: list[CloisterError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One lost site or one liar in each round, at another step; and an attempt that fails."""
    federation = SecureFederation(tmp_path / "f", ("federation.num_rounds=2",))
    federation.put("ant", SHARES, deaf, times=1)
    federation.put("bee", SHARES, document("shares", SealedShares, shares=()), times=1)
    federation.put("cow", MASKED, changed(_plus_one), times=1)
    federation.put("dog", CONFIRMATION, mute, times=1)
    federation.put("eel", REVEAL, mute, times=1)
    federation.run()
    said = {
        **files_below(tmp_path),
        "the log": "\n".join(
            f"{r.getMessage()} {r.exc_text or ''} {r.__dict__}" for r in caplog.records
        ).encode(),
        "the states": "".join(str(dict(c.state)) for c in federation.contexts.values()).encode(),
        **{f"error {n}": shown(error) for n, error in enumerate(errors)},
    }
    assert len(said["the log"]) > 1000
    assert len(errors) > 2
    assert [dict(context.state) for context in federation.contexts.values()] == [{}] * len(FIVE)
    assert {kind for kind, _ in secrets} == set(KINDS)
    assert find(secrets, said) == set()


def test_a_secure_round_shows_its_site_and_no_more(tmp_path: Path) -> None:
    federation = SecureFederation(tmp_path / "f")
    site = federation.sites["ant"]
    assert site.standing is not None
    secure = SecureRound(site, federation.workshop, site.standing)
    assert repr(secure) == "SecureRound('ant')"
