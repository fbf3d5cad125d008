"""A site's own processes: `cloister client start` leads, and starts itself again to work for it."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli.client_start import _bring_together
from client.crew import Crew, team_size
from client.installation import Installation
from client.site import OnDevice, Workshop
from core.config_files import load_config
from core.errors import ConfigError, WorkerLostError
from core.parallel.processes import Place
from core.parallel.team import SOLO, Team
from core.site_config import ServiceSection, SiteConfig
from privacy.dp_sgd import train_privately
from tests.support.installed_site import InstalledSite, install_site
from tests.support.private_training import flat, known_source, plan_of
from tests.support.teams import Recorded, distance

Bring = Callable[..., tuple[Installation, Workshop, Crew]]


@pytest.fixture
def site(tmp_path: Path) -> InstalledSite:
    return install_site(tmp_path)


@pytest.fixture
def bring(site: InstalledSite) -> Iterator[Bring]:
    crews: list[Crew] = []

    def bring(*overrides: str) -> tuple[Installation, Workshop, Crew]:
        sets = ["service.threads=1", *overrides]
        config = load_config(SiteConfig, site.file, sets)
        installation = Installation.read(site.file, config)
        options = argparse.Namespace(config=site.file, overrides=sets, verbose=0)
        size = team_size(config.service, None)
        workshop, crew = _bring_together(installation, size, None, options)
        crews.append(crew)
        return installation, workshop, crew

    yield bring
    for crew in crews:
        crew.kill()


def trained(installation: Installation, workshop: Workshop, team: Team) -> torch.Tensor:
    site, model = installation.open_site(workshop.blueprint), workshop.blueprint.build()
    train_privately(
        model,
        workshop.blueprint.task,
        OnDevice(site.data, workshop.device),
        plan=plan_of(steps=2, gradient_mode="one_backward"),
        config=installation.federation.train,
        source=known_source(),
        first_step=0,
        total_steps=2,
        team=team,
    )
    return flat(model)


def test_a_site_s_processes_train_as_one_rest_and_come_back_after_a_loss(
    bring: Bring, site: InstalledSite
) -> None:
    installation, workshop, crew = bring("service.processes=2", 'service.shares="measured"')
    team = Recorded(workshop.team())
    alone = trained(installation, workshop, SOLO)
    assert distance(trained(installation, workshop, team), alone) < 1e-6
    assert sum(team.parts) < sum(team.batches)
    assert workshop.team() is team.team
    crew.rest()
    assert distance(trained(installation, workshop, team), alone) < 1e-6
    workers = crew._workers
    assert workers is not None
    workers._processes[0].kill()
    workers._processes[0].wait()
    again = workshop.team()
    assert again is not team.team
    assert distance(trained(installation, workshop, again), alone) < 1e-6
    crew.close()
    assert crew._workers is not None
    assert crew._workers.end() == "; worker 1 had ended with code 0"
    assert not (site.folder / "ledger.sqlite").exists()  # no worker opened one


def test_a_worker_that_cannot_start_is_named_before_anything_is_debited(
    bring: Bring, site: InstalledSite
) -> None:
    _, workshop, _ = bring("service.processes=2")
    (site.folder / "records.jsonl").unlink()
    with pytest.raises(WorkerLostError, match="worker 1 had ended with code 1"):
        workshop.team()


def test_one_process_is_no_team(bring: Bring) -> None:
    _, workshop, crew = bring()
    assert workshop.team() is SOLO
    crew.rest()
    crew.close()


def test_a_team_that_torchrun_started_comes_once(site: InstalledSite) -> None:
    config = load_config(SiteConfig, site.file)
    installation = Installation.read(site.file, config)
    blueprint = installation.blueprint()
    workshop = installation.open_workshop(blueprint)
    meeting = site.folder / "team" / "meeting"
    crew = Crew(installation.crew_plan(blueprint, 1), workshop, lambda: (meeting, None))
    crew.team().close()
    assert not meeting.parent.exists()
    with pytest.raises(WorkerLostError, match="torchrun"):
        crew.team()


@pytest.mark.parametrize(
    ("service", "place", "size"),
    [
        ({}, None, 1),
        ({"processes": 3}, None, 3),
        ({}, 4, 4),
        ({"processes": 4}, 4, 4),
        ({"processes": 2, "shares": (1.0, 3.0)}, None, 2),
        ({"shares": (1.0, 3.0)}, 2, 2),
    ],
)
def test_the_size_is_the_file_s_or_torchrun_s(
    service: dict[str, object], place: int | None, size: int
) -> None:
    where = None if place is None else Place(0, place, Path("m"))
    assert team_size(ServiceSection(**service), where) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("service", "place", "message"),
    [
        ({"processes": 3}, 2, "expected 3 processes"),
        ({"shares": (1.0, 3.0)}, None, "expected a share for each of 1 processes, got 2"),
        ({"shares": (1.0, 3.0)}, 3, "expected a share for each of 3 processes, got 2"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    service: dict[str, object], place: int | None, message: str
) -> None:
    where = None if place is None else Place(0, place, Path("m"))
    with pytest.raises(ConfigError, match=message):
        team_size(ServiceSection(**service), where)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shares"),
    [("[1, 3]", (1, 3)), ("[0.5, 1e-3]", (0.5, 0.001)), ('"measured"', "measured")],
)
def test_shares_are_read_from_the_file(site: InstalledSite, text: str, shares: object) -> None:
    config = load_config(SiteConfig, site.file, [f"service.shares={text}"])
    assert config.service.shares == shares


@pytest.mark.parametrize(
    "setting",
    [
        "service.shares=[1, 0]",
        "service.shares=[1, -1]",
        'service.shares="fast"',
        "service.processes=0",
        "service.worker_timeout_seconds=0",
    ],
)
def test_what_no_team_could_have_is_refused(site: InstalledSite, setting: str) -> None:
    with pytest.raises(ConfigError):
        load_config(SiteConfig, site.file, [setting])


def test_shares_for_other_processes_than_the_file_s_are_refused(site: InstalledSite) -> None:
    with pytest.raises(ConfigError, match="expected 3 `shares`"):
        load_config(SiteConfig, site.file, ["service.processes=3", "service.shares=[1, 1]"])
