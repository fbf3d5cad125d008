"""A configuration as text reads back as itself."""

import tomllib
from pathlib import Path

import pytest

from core.config_files import config_of_overrides, parse_config
from core.config_text import config_text
from core.coordinator_config import CoordinatorConfig
from core.errors import ConfigError


def read_back(text: str) -> CoordinatorConfig:
    return parse_config(CoordinatorConfig, tomllib.loads(text), origin="text")


def test_every_value_reads_back(tmp_path: Path) -> None:
    sets = [
        "listen.public_host=fl.example.org",
        "liveness.heartbeat_seconds=2.5",
        "authority.ca=ca.pem",
        "authority.certificate=chain.pem",
        'authority.key=w "ird\u00e9\U0001f511.key',
        "authority.server_name=fl.example.org",
    ]
    config = config_of_overrides(CoordinatorConfig, sets, tmp_path, origin="--set")
    assert config.authority.ca == tmp_path / "ca.pem"
    assert read_back(config_text(config)) == config


def test_the_defaults_read_back_and_are_explained() -> None:
    text = config_text(CoordinatorConfig())
    assert read_back(text) == CoordinatorConfig()
    assert "# Sessions and control, over mutual TLS.\naddress = " in text
    assert "# ca =" in text


def test_an_override_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set does not fit the schema:\n  listen.adress"):
        config_of_overrides(CoordinatorConfig, ["listen.adress=x:1"], tmp_path, origin="--set")
