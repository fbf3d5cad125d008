"""Noise that is drawn before it is wanted is the noise that would have been drawn then."""

import threading
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from core.errors import PrivacyError
from privacy.discrete_gaussian import DiscreteGaussian
from privacy.discrete_gaussian_grid import GridNoise
from privacy.noise_ahead import DrawnAhead, GridNoiseAhead
from privacy.random_source import RandomStream
from tests.support.private_training import known_source

CPU = torch.device("cpu")
COUNT = 300_001  # more than a block


def noise() -> DiscreteGaussian:
    return DiscreteGaussian(Fraction(2**46))


def stream(context: str = "a test") -> RandomStream:
    return known_source(context).stream("noise")


def values_of(ahead: DrawnAhead, source: RandomStream, count: int = COUNT) -> Tensor:
    found: list[Tensor] = []
    ahead.each_block(source, count, lambda start, values: found.append(values.clone()))
    return torch.cat(found).long()


@pytest.mark.parametrize("begun", [True, False])
def test_three_steps_are_those_of_noise_drawn_in_time(begun: bool) -> None:
    ahead, early, late = DrawnAhead(noise(), CPU), stream(), stream()
    seen: list[Tensor] = []
    for _ in range(3):
        if begun:
            ahead.begin(early, COUNT)
            ahead.begin(early, COUNT)  # nothing more is drawn
        seen.append(values_of(ahead, early))
        assert torch.equal(seen[-1], noise().sample(late, COUNT))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], noise().sample(stream("another"), COUNT))


def test_it_is_drawn_on_another_thread_before_it_is_asked_for() -> None:
    drawn, inner = threading.Event(), noise()
    threads: list[int] = []

    class Watched(DiscreteGaussian):
        def each_block(self, *arguments: object) -> None:
            threads.append(threading.get_ident())
            inner.each_block(*arguments)  # type: ignore[arg-type]
            drawn.set()

    ahead, source = DrawnAhead(Watched(Fraction(2**46)), CPU), stream()
    ahead.begin(source, 10)
    assert drawn.wait(60)
    assert threads != [threading.get_ident()]
    assert torch.equal(values_of(ahead, source, 10), noise().sample(stream(), 10))
    assert len(threads) == 1


def test_noise_for_another_stream_or_count_is_refused_and_lost() -> None:
    for wanted, count in ((stream("another"), 10), (None, 11)):
        ahead, source = DrawnAhead(noise(), CPU), stream()
        ahead.begin(source, 10)
        with pytest.raises(PrivacyError, match="expected the noise that was begun"):
            values_of(ahead, wanted or source, count)
        lost = noise().sample(stream(), 10)
        assert not torch.equal(values_of(ahead, source, 10), lost)


def test_an_error_while_drawing_is_raised_where_the_noise_is_wanted() -> None:
    class Broken(DiscreteGaussian):
        def each_block(self, *arguments: object) -> None:
            raise OSError("no memory")

    ahead, source = DrawnAhead(Broken(Fraction(2**46)), CPU), stream()
    ahead.begin(source, 10)
    with pytest.raises(OSError, match="no memory"):
        values_of(ahead, source, 10)


def noised(ahead: bool, device: torch.device = CPU) -> list[Tensor]:
    """Three steps of sums of two parameters."""
    options = {"noise_multiplier": 0.7, "sensitivity": 0.5, "dimension": 70_000}
    grid = (
        GridNoiseAhead(**options, device=device)  # type: ignore[arg-type]
        if ahead
        else GridNoise(**options)  # type: ignore[arg-type]
    )
    source, found = stream(), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = torch.randn(70_000, generator=generator)
        sums = [drawn[:60_000].to(device), drawn[60_000:].to(device)]
        grid.add_(sums, source)
        if isinstance(grid, GridNoiseAhead):
            grid.begin(source)
        found += [one.cpu() for one in sums]
    return found


def test_sums_are_noised_as_without_it_bit_for_bit() -> None:
    for found, expected in zip(noised(True), noised(False), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sums_on_a_gpu_are_noised_as_on_the_cpu_bit_for_bit() -> None:
    for found, expected in zip(noised(True, torch.device("cuda")), noised(False), strict=True):
        assert torch.equal(found, expected)
