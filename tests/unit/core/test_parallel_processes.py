"""Where a process's place in a team is."""

import os
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.parallel.processes import Place, cores_each, leave_meeting, open_meeting, place_of

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "somewhere.example",
    "MASTER_PORT": "29500",
}


def test_a_lone_process_has_none() -> None:
    assert place_of({"RANK": "1", "WORLD_SIZE": "4"}, Path()) is None


def test_a_leader_s_worker_is_told_where_to_meet() -> None:
    told = {"CLOISTER_TEAM": "/run/meeting", "RANK": "2", "WORLD_SIZE": "3"}
    assert place_of(told, Path("/elsewhere")) == Place(2, 3, Path("/run/meeting"))


def test_processes_of_one_torchrun_meet_and_those_of_another_start_do_not(tmp_path: Path) -> None:
    place = place_of(TORCHRUN, tmp_path)
    assert place is not None
    assert (place.rank, place.size, place.meeting.parents[1]) == (1, 2, tmp_path)
    leader = place_of(TORCHRUN | {"RANK": "0"}, tmp_path)
    assert leader is not None
    assert leader.meeting == place.meeting
    restarted = place_of(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}, tmp_path)
    assert restarted is not None
    assert restarted.meeting != place.meeting


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LOCAL_WORLD_SIZE": "1"}, "expected all processes of a site on one machine"),
        ({"RANK": "2"}, "expected all processes"),
        ({"RANK": "first"}, "expected RANK and WORLD_SIZE"),
    ],
)
def test_a_place_that_cannot_be_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place_of(TORCHRUN | changes, Path())


def test_cores_are_divided_and_nobody_goes_without() -> None:
    cores = len(os.sched_getaffinity(0))
    assert cores_each(1) == cores
    assert cores_each(1000) == 1


def test_the_folder_of_a_meeting_is_this_account_s_alone_and_goes(tmp_path: Path) -> None:
    meeting = tmp_path / "team" / "meeting"
    open_meeting(meeting)
    open_meeting(meeting)
    assert meeting.parent.stat().st_mode & 0o777 == 0o700
    leave_meeting(meeting)
    leave_meeting(meeting)
    assert not meeting.parent.exists()


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        with pytest.raises(ConfigError, match="of this account alone"):
            open_meeting(tmp_path / name / "meeting")
    with pytest.raises(ConfigError, match="expected to make the folder"):
        open_meeting(tmp_path / "missing" / "deep" / "meeting")
