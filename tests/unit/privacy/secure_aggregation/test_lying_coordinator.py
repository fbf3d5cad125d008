"""A coordinator that lies at random never opens a sum with too few honest sites in it.

A failure names its seed; ``LYING_SEED=<seed> pytest -k a_single_schedule`` replays it, and
``make soak`` tries many more of them.
"""

import os

import pytest

from tests.support.lying_coordinator import LyingCoordinator
from tests.support.mutants import in_place, mutants
from tests.support.opened_sums import Findings, Loot

BLOCK = 100


def findings(seed: int, *, excess: int = 0) -> Findings:
    liars = LyingCoordinator(seed, excess=excess).run()
    return Loot(liars).findings(bearable_only=excess == 0)


def check(seeds: range) -> None:
    opened = 0
    for seed in seeds:
        found = findings(seed)
        assert found.broken == [], f"LYING_SEED={seed}"
        opened += found.opened
    # Schedules in which all sites refuse everything would show nothing.
    assert opened > 0


@pytest.mark.parametrize("block", range(20))
def test_no_schedule_breaks_an_invariant(block: int) -> None:
    check(range(block * BLOCK, (block + 1) * BLOCK))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("block", range(20, 1020))
def test_no_schedule_of_many_breaks_an_invariant(block: int) -> None:
    check(range(block * BLOCK, (block + 1) * BLOCK))


def test_a_single_schedule() -> None:
    seed = int(os.environ.get("LYING_SEED", "0"))
    assert findings(seed).broken == [], f"LYING_SEED={seed}"


def test_a_schedule_is_the_same_for_the_same_seed() -> None:
    for seed in range(5):
        first, second = (LyingCoordinator(seed).run() for _ in range(2))
        assert first.refusals == second.refusals
        assert [v.revealed for v in first.victims] == [v.revealed for v in second.victims]


def test_more_colluding_sites_than_the_protocol_withstands_do_break_it() -> None:
    broken = [line for seed in range(60) for line in findings(seed, excess=1).broken]
    assert any("both secrets" in line for line in broken)


# What a site must not lack for privacy, and is seen to lack by lies alone.
NEEDED = (
    "site: mask: no mark_spent()",
    "site: confirm: no checks.check_size(",
    "site: reveal: no checks.check_confirmations(",
    "checks: check_enough_confirm: no raise",
    "checks: check_confirmations: no check_signature(",
    "checks: check_adverts: no check_signature(",
)


@pytest.mark.parametrize("check", NEEDED)
def test_the_lies_find_a_site_that_lacks(check: str) -> None:
    (mutant,) = (m for m in mutants(check.split(":")[0]) if m.name.startswith(check))
    with in_place(mutant):
        assert any(findings(seed).broken for seed in range(300))
