"""Every step of a site at every stage where the table does not have it."""

from collections.abc import Callable
from typing import Any

import pytest

from core.errors import OutOfOrderError
from tests.support.aggregation import Play

SITE = "bee"
STEPS = ("advert", "share", "open_shares", "mask", "masked", "confirm", "reveal")


def at(stage: int, marked: list[None]) -> tuple[Play, dict[str, Callable[[], Any]]]:
    """A site that has taken the first ``stage`` steps, and all steps with honest messages."""
    play = Play(fixed="order")
    site, told = play.sites[SITE], {}

    def steps() -> dict[str, Callable[[], Any]]:
        return {
            "advert": site.advert,
            "share": lambda: site.share(told["share"]),
            "open_shares": lambda: site.open_shares(told["open_shares"]),
            "mask": lambda: site.mask(play.inputs[SITE].copy(), lambda: marked.append(None)),
            "masked": lambda: site.masked("0" * 64),
            "confirm": lambda: site.confirm(told["confirm"]),
            "reveal": lambda: site.reveal(told["reveal"]),
        }

    # A second play of the same secrets says what the coordinator would send to this one.
    other = Play(fixed="order")
    told["share"] = other.adverts()
    deliveries = other.deliveries(told["share"])
    told["open_shares"] = deliveries[SITE]
    told["confirm"] = other.survivors(deliveries)
    told["reveal"] = other.confirmations(told["confirm"])
    for step in STEPS[:stage]:
        steps()[step]()
    return play, steps()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stage", range(len(STEPS) + 1))
def test_a_step_that_is_not_next_raises_and_ends_the_attempt(stage: int, step: str) -> None:
    marked: list[None] = []
    play, steps = at(stage, marked)
    if stage < len(STEPS) and STEPS[stage] == step:
        steps[step]()
        return
    before = list(marked)
    with pytest.raises(OutOfOrderError):
        steps[step]()
    assert play.sites[SITE].ended
    assert marked == before
    for other in STEPS:
        with pytest.raises(OutOfOrderError):
            steps[other]()
    assert marked == before


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_taken_once(step: str) -> None:
    _, steps = at(STEPS.index(step), [])
    steps[step]()
    with pytest.raises(OutOfOrderError):
        steps[step]()


def test_an_interrupt_within_a_step_ends_the_attempt_too() -> None:
    play = Play()
    play.upto("mask")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play.sites[SITE].mask(play.inputs[SITE], interrupted)
    assert play.sites[SITE].ended
    with pytest.raises(OutOfOrderError):
        play.sites[SITE].masked("0" * 64)
