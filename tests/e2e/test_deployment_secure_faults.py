"""Secure aggregation among five real processes that die, freeze, return and are shut out.

The noise is fresh, so no two updates are alike. What each site masked is written down beside it:
every opened sum of the record is compared with the integer sum of its survivors' vectors, and every
site's ledger with the record: no update left twice.
"""

import signal
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.service.runs import RunWorker
from core.messages import decode, encode
from core.wire.documents import SignedRoster
from tests.support.deployment import Deployment, wait_for
from tests.support.federation import FEDERATION
from tests.support.kill_points import arm
from tests.support.masked_inputs import check_transcript, inputs_of_site, keep_inputs
from tests.support.releases import (
    check_releases,
    check_signatures,
    debits_by_round,
    entries_of,
)

SITES = ("east", "north", "south", "upland", "west")
# One lost site of five is survived; and the run goes on whatever the tests do to it.
EXCHANGE_SECONDS = 6.0
ENDLESS = (
    FEDERATION[: FEDERATION.index("[[sites]]")]
    .replace("num_rounds = 3", "num_rounds = 900")
    .replace("min_train_nodes = 1", "min_train_nodes = 4\nmin_available_nodes = 4")
    + "".join(f'[[sites]]\nname = "{site}"\nnum_examples = 40\n\n' for site in SITES)
    + f"""
[secure_aggregation]
max_update_norm = 10.0
exchange_timeout_seconds = {EXCHANGE_SECONDS}
"""
).replace("[evaluation.holdout]", "[evaluation]\nevery = 900\n\n[evaluation.holdout]")

ROUND = "client.secure_round:SecureRound"
# Where a site is killed; whether it dealt its shares, and whether the sum holds its update.
CLIENT_POINTS = {
    "while training": ("client.local_round:load_arrays@before#1", False, False),
    "after its advert": (f"{ROUND}.share@before#1", False, False),
    "after it dealt, before that leaves": (f"{ROUND}.share@after#1", False, False),
    "after it dealt": (f"{ROUND}.mask@before#1", True, False),
    "after its mark, before its vector leaves": (f"{ROUND}.mask@after#1", True, False),
    "after its vector was sent": (f"{ROUND}.confirm@before#1", True, True),
    "after it confirmed, before that leaves": (f"{ROUND}.confirm@after#1", True, True),
    "after it confirmed": (f"{ROUND}.reveal@before#1", True, True),
    "after it revealed": (f"{ROUND}.reveal@after#1", True, True),
}
ATTEMPT = "coordinator.aggregation.secure:_Attempt"
# All in one round, each in an attempt of its own. Until it marks its update as spent, a site keeps
# it for the next attempt; afterwards it computes another one.
COORDINATOR_POINTS = {
    "with the adverts": f"{ATTEMPT}.train@after#2",
    "with the shares": f"{ATTEMPT}._share@after#1",
    "with the masked vectors": f"{ATTEMPT}._collect@after#1",
    "with the confirmations": f"{ATTEMPT}._confirm@after#1",
    "with the revealed shares": f"{ATTEMPT}._reveal@after#1",
    "with the sum": "coordinator.rounds:save_state@before#1",
}
UPDATES = 5  # one for the first three attempts, and one for each of the other four


def show_in_orders(signed: bytes) -> None:
    """The coordinator opens its sessions with the roster that it has, and orders with another."""
    roster = decode(SignedRoster, signed)
    setattr(RunWorker, "_signed_roster", lambda self: roster)  # noqa: B010 - it is a method


def record_of(deployment: Deployment, run_id: str, server_round: int) -> dict[str, Any]:
    """The line of a round, as soon as it is there."""
    return deployment.wait_round(run_id, lambda line: line["server_round"] == server_round)


def debits_of(deployment: Deployment, site: str) -> Mapping[int, int]:
    """How many debits a site's ledger has, by round."""
    return debits_by_round(entries_of(deployment.folder / site / "ledger.sqlite", site))


def newest_round(deployment: Deployment, run_id: str, kind: str = "round") -> int:
    """The newest round of which the record has such a line."""
    lines = (line for line in deployment.record(run_id) if line["kind"] == kind)
    return max((line["server_round"] for line in lines), default=0)


def rosters_of(deployment: Deployment) -> list[SignedRoster]:
    """All that the coordinator ever published, oldest first."""
    path = deployment.coordinator / "state.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT document FROM rosters ORDER BY epoch").fetchall()
    return [decode(SignedRoster, document) for (document,) in rows]


def whole(deployment: Deployment, run_id: str, sites: tuple[str, ...], after: int) -> int:
    """Waits for a round whose sum holds all of ``sites``; its number."""
    line = deployment.wait_round(run_id, lambda line: line["used"] == list(sites), after=after)
    number: int = line["server_round"]
    return number


@pytest.mark.timeout(900)
def test_sites_and_coordinator_fail_and_every_sum_is_right(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    with Deployment(
        tmp_path / "deployed",
        federation=ENDLESS,
        sites=SITES,
        forked=True,
        test_noise=False,
        prepare=[partial(keep_inputs, inputs)],
    ) as deployment:
        deployment.deploy()
        run_id = deployment.run()
        whole(deployment, run_id, SITES, after=0)
        _a_site_killed_anywhere_drops_out_and_returns(deployment, run_id)
        _two_killed_sites_end_the_attempt_and_not_the_run(deployment, run_id)
        _a_frozen_site_is_dropped_in_time(deployment, run_id)
        _a_coordinator_killed_anywhere_begins_another_attempt(deployment, run_id)
        _a_revoked_site_is_in_no_later_sum(deployment, run_id)
        _an_older_roster_is_refused(deployment, run_id)
        _check_everything(deployment, run_id, inputs)


def _a_site_killed_anywhere_drops_out_and_returns(deployment: Deployment, run_id: str) -> None:
    deployment.program("north").kill()
    killed_in = {}
    for name, (point, _, _) in CLIENT_POINTS.items():
        # The one that was killed before returns with it, and nobody waits for it any longer.
        deployment.start_client("north", kill_at=point).wait_killed(name)
        killed_in[name] = max(debits_of(deployment, "north"))
    deployment.start_client("north")
    whole(deployment, run_id, SITES, after=killed_in[name])
    for name, (_, dealt, counts) in CLIENT_POINTS.items():
        line = record_of(deployment, run_id, killed_in[name])
        survivors = [site for site in SITES if counts or site != "north"]
        assert line["used"] == line["transcript"]["survivors"] == survivors, name
        sharers = [site for site in SITES if dealt or site != "north"]
        assert line["transcript"]["sharers"] == sharers, name
        # Each site is in one of the two: its update counts, or it was dropped by name.
        assert [bad["site"] for bad in line["rejected"]] == ([] if counts else ["north"]), name
        assert {bad["code"] for bad in line["rejected"]} <= {"client-error", "no-reply"}, name
        assert line["refusals"] == [], name


def _two_killed_sites_end_the_attempt_and_not_the_run(deployment: Deployment, run_id: str) -> None:
    victims, point = ("south", "west"), f"{ROUND}.mask@before#1"
    for site in victims:
        deployment.program(site).kill()
    armed = [deployment.start_client(site, kill_at=point) for site in victims]
    for program in armed:
        program.wait_killed("the shares")
    killed_in = max(debits_of(deployment, "south"))
    too_few = "cohort-too-small: expected at least 4 survivors, got 3"

    def ended() -> dict[str, Any] | None:
        shorts = (line for line in deployment.record(run_id) if line["kind"] == "short")
        return next((line for line in shorts if too_few in str(line["rejected"])), None)

    short = wait_for("an attempt that ends", ended)
    assert (short["server_round"], short["usable"]) == (killed_in, [])
    codes = {bad["site"]: bad["code"] for bad in short["rejected"]}
    assert [site for site in SITES if codes[site] == "attempt-ended"] == ["east", "north", "upland"]
    for site in victims:
        deployment.start_client(site)
    # As soon as there are four of them again.
    line = record_of(deployment, run_id, killed_in)
    assert line["attempts"] == short["attempt"] + 1
    assert {"east", "north", "upland"} < set(line["used"])
    for site in line["used"]:
        # Those who masked computed another update; those who died have lost theirs.
        assert debits_of(deployment, site)[killed_in] >= 2
    whole(deployment, run_id, SITES, after=killed_in)


def _a_frozen_site_is_dropped_in_time(deployment: Deployment, run_id: str) -> None:
    deployment.program("west").kill()
    stop = partial(arm, f"{ROUND}.mask@before#1", signal.SIGSTOP)
    frozen = deployment.start_client("west", prepare=[stop])
    line = deployment.wait_round(
        run_id,
        lambda line: bool(line["rejected"]) and line["rejected"][0]["code"] == "no-reply",
        after=newest_round(deployment, run_id),
    )
    assert [bad["site"] for bad in line["rejected"]] == ["west"]
    assert line["seconds"] >= EXCHANGE_SECONDS
    assert line["transcript"]["sharers"] == list(SITES)
    assert line["used"] == [site for site in SITES if site != "west"]
    frozen.thaw()
    whole(deployment, run_id, SITES, after=line["server_round"])


def _a_coordinator_killed_anywhere_begins_another_attempt(
    deployment: Deployment, run_id: str
) -> None:
    deployment.program("coordinator").kill()
    for name, point in COORDINATOR_POINTS.items():
        deployment.start_coordinator(kill_at=point).wait_killed(name)
    deployment.start_coordinator()
    killed_in = newest_round(deployment, run_id, "attempt")
    line = record_of(deployment, run_id, killed_in)
    assert (line["attempts"], line["used"]) == (len(COORDINATOR_POINTS) + 1, list(SITES))
    for site in SITES:
        assert debits_of(deployment, site)[killed_in] == UPDATES


def _a_revoked_site_is_in_no_later_sum(deployment: Deployment, run_id: str) -> None:
    left = tuple(site for site in SITES if site != "upland")
    deployment.ok("coordinator", "revoke", "upland", "--folder", deployment.coordinator)
    deployment.program("coordinator").wait_logged("upland is disconnected")
    asked = newest_round(deployment, run_id, "attempt")
    entries = entries_of(deployment.folder / "upland" / "ledger.sqlite", "upland")
    later = whole(deployment, run_id, left, after=whole(deployment, run_id, left, after=asked))
    for line in deployment.record(run_id):
        if line["kind"] == "attempt" and asked + 1 < line["server_round"] <= later:
            assert "upland" not in line["sites"]
        if line["kind"] == "round" and asked < line["server_round"]:
            assert line["transcript"]["sharers"] == list(left)
    assert entries_of(deployment.folder / "upland" / "ledger.sqlite", "upland") == entries


def _an_older_roster_is_refused(deployment: Deployment, run_id: str) -> None:
    before = rosters_of(deployment)[-2]
    assert [m.name for m in before.roster.members if m.status == "active"] == list(SITES)
    coordinator = deployment.program("coordinator")
    assert coordinator.stop() == 0, coordinator.tail()
    debits = {site: debits_of(deployment, site) for site in SITES}
    deployment.start_coordinator(prepare=[partial(show_in_orders, encode(before))])
    stopped = deployment.wait_run(run_id, "stopped")
    assert "east refused (roster-rollback)" in stopped["reason"]
    assert {site: debits_of(deployment, site) for site in SITES} == debits


def _check_everything(deployment: Deployment, run_id: str, inputs: Path) -> None:
    rounds = [line for line in deployment.record(run_id) if line["kind"] == "round"]
    assert [line["server_round"] for line in rounds] == list(range(len(rounds)))
    transcripts = [line["transcript"] for line in rounds[1:]]
    roster = rosters_of(deployment)[-1].roster
    for transcript in transcripts:
        assert len(transcript["survivors"]) >= 4
        check_transcript(inputs, transcript)
        check_signatures(transcript, roster)
    for site in SITES:
        entries = entries_of(deployment.folder / site / "ledger.sqlite", site)
        check_releases(entries, site, transcripts)
        masked = inputs_of_site(inputs, site)
        assert len({values.tobytes() for values in masked}) == len(masked)
