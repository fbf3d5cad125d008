"""From a site's file to what a round needs."""

from pathlib import Path

import pytest

from client.installation import Installation
from client.site import TestRandomness, fresh_randomness
from core.config_files import load_config
from core.errors import ConfigError, DataError, PrivacyError
from core.site_config import SiteConfig
from tests.support.federation import TEST_KEY, write_records
from tests.support.installed_site import InstalledSite, install_site


@pytest.fixture
def site(tmp_path: Path) -> InstalledSite:
    return install_site(tmp_path)


def read(site: InstalledSite, *overrides: str) -> Installation:
    return Installation.read(site.file, load_config(SiteConfig, site.file, overrides))


def test_a_site_is_opened_with_its_own_policy_size_data_and_noise(site: InstalledSite) -> None:
    installation = read(site)
    blueprint = installation.blueprint()
    opened = installation.open_site(blueprint)
    assert (opened.name, opened.num_examples, len(opened.data)) == ("north", 40, 40)
    assert opened.policy == site.config.policy
    assert opened.randomness is fresh_randomness
    assert installation.terms(blueprint).digest() == site.task()
    workshop = installation.open_workshop(blueprint)
    assert set(workshop.manifest) == set(dict(blueprint.build().named_parameters()))


def test_the_ledger_lies_beside_the_site_s_file(site: InstalledSite) -> None:
    installation = read(site)
    assert installation.ledger_path == site.folder / "ledger.sqlite"
    with installation.open_site(installation.blueprint()).open_ledger():
        pass
    assert (site.folder / "ledger.sqlite").is_file()
    assert read(site, "ledger.path=/srv/budget.sqlite").ledger_path == Path("/srv/budget.sqlite")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("site.name=west-wing",), "expected west-wing among the federation's sites, got north"),
        (("site.num_examples=50",), "expected site.num_examples = 40 as in the federation's file"),
        (
            (f'site.test_noise_key="{TEST_KEY}"',),
            "expected policy.allow_test_noise = true beside site.test_noise_key",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    site: InstalledSite, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(site, *overrides)


def test_a_file_without_its_federation_is_refused(site: InstalledSite) -> None:
    site.replace('federation = "federation.toml"\n', "")
    with pytest.raises(ConfigError, match="expected site.federation in .*site.toml, got none"):
        read(site)


def test_a_private_run_needs_a_declared_size(site: InstalledSite) -> None:
    site.replace("num_examples = 40\n", "")
    with pytest.raises(ConfigError, match="expected site.num_examples for a private run") as info:
        read(site)
    assert info.value.hint == "declare it: the federation's file says 40"
    federation = site.folder / "federation.toml"
    text = federation.read_text().replace("noise_multiplier = 1.0", 'mode = "none"')
    federation.write_text(text)
    assert read(site).config.site.num_examples is None


def test_test_noise_needs_leave_and_is_used_then(site: InstalledSite) -> None:
    installation = read(site, f'site.test_noise_key="{TEST_KEY}"', "policy.allow_test_noise=true")
    randomness = installation.open_site(installation.blueprint()).randomness
    assert randomness == TestRandomness(bytes.fromhex(TEST_KEY))


def test_more_records_than_declared_are_refused_at_the_start(site: InstalledSite) -> None:
    write_records(site.folder / "records.jsonl", seed=0, count=51)
    installation = read(site)
    with pytest.raises(PrivacyError, match="expected at most 50 records at north"):
        installation.open_site(installation.blueprint())


def test_broken_data_is_named_at_the_start(site: InstalledSite) -> None:
    (site.folder / "records.jsonl").write_text("{}\n")
    installation = read(site)
    with pytest.raises(DataError, match="line 1"):
        installation.open_site(installation.blueprint())
