"""Configuration files: what is accepted, what is refused and in which words."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from core import config as config_module
from core import config_files
from core.config import FederationConfig, PretrainedModel, config_digest
from core.config_files import load_config, parse_config
from core.config_sections import MemberSection, Section
from core.errors import ConfigError
from core.model import ModelConfig
from core.site_config import SiteConfig
from core.train import TrainConfig

FEDERATION = """
[federation]
name = "clinic"
num_rounds = 3

[model]
vocab_size = 257
max_seq_len = 64
n_layer = 1
n_head = 2
n_embd = 8

[task]
kind = "classification"
labels = ["no", "yes"]

[train]
steps_per_round = 2
global_batch_size = 8
learning_rate = 0.01

[privacy]
target_epsilon = 8.0

[[sites]]
name = "north"
num_examples = 1000

[[sites]]
name = "south"
num_examples = 10

[simulation]
site_files = ["north.toml", "../sites/south.toml"]
"""

SITE = """
[site]
name = "north"

[data]
format = "jsonl"
path = "notes.jsonl"

[policy]
max_epsilon = 10.0
"""


@pytest.fixture
def federation_file(tmp_path: Path) -> Path:
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    return path


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def load_federation(path: Path, *overrides: str) -> FederationConfig:
    return load_config(FederationConfig, path, overrides)


def load_site(path: Path, *overrides: str) -> SiteConfig:
    return load_config(SiteConfig, path, overrides)


def test_a_federation_is_read(federation_file: Path) -> None:
    config = load_federation(federation_file)
    assert config.federation.name == "clinic"
    assert isinstance(config.model, ModelConfig)
    assert config.task.labels == ("no", "yes")
    assert config.train.learning_rate == 0.01
    assert [site.name for site in config.sites] == ["north", "south"]


def test_a_pretrained_model_is_read(federation_file: Path) -> None:
    text = FEDERATION.replace("vocab_size = 257", 'pretrained = "minilm"')
    for line in ("n_layer = 1", "n_head = 2", "n_embd = 8"):
        text = text.replace(line, "")
    federation_file.write_text(text)
    model = load_federation(federation_file).model
    assert model == PretrainedModel(pretrained=federation_file.parent / "minilm", max_seq_len=64)


def test_privacy_is_on_and_everything_is_denied_unless_said(site_file: Path) -> None:
    policy = load_site(site_file).policy
    assert policy.allowed_tasks == ()
    assert not policy.allow_non_private
    assert not policy.allow_test_noise


def test_paths_are_relative_to_the_file(federation_file: Path, site_file: Path) -> None:
    folder = federation_file.parent
    simulation = load_federation(federation_file).simulation
    assert simulation is not None
    assert simulation.site_files == (folder / "north.toml", folder.parent / "sites" / "south.toml")
    assert load_site(site_file).data.path == folder / "notes.jsonl"
    assert load_site(site_file, "data.path=/else/x.jsonl").data.path == Path("/else/x.jsonl")


def test_paths_deep_inside_are_relative_to_the_file(federation_file: Path) -> None:
    federation_file.write_text(
        FEDERATION.replace(
            'site_files = ["north.toml", "../sites/south.toml"]',
            """
            [simulation.partition]
            data = {format = "csv", path = "all.csv"}
            policy = {max_epsilon = 1.0}
            [evaluation]
            holdout = {format = "csv", path = "holdout.csv"}
            """,
        )
    )
    config = load_federation(federation_file)
    assert config.simulation is not None
    assert config.simulation.partition is not None
    assert config.simulation.partition.data.path == federation_file.parent / "all.csv"
    assert config.evaluation.holdout is not None
    assert config.evaluation.holdout.path == federation_file.parent / "holdout.csv"


def test_the_ledgers_path_stays_as_written(site_file: Path) -> None:
    assert load_site(site_file).ledger.path == Path("ledger.sqlite")
    assert load_site(site_file, "ledger.path=deep/l.sqlite").ledger.path == Path("deep/l.sqlite")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"expected a configuration file at .*none.toml"
    ) as caught:
        load_federation(tmp_path / "none.toml")
    assert "--config" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"[federation",
        b"a = 1\na = 2",
        b'a = "\xff"',
        b"a = " + b"[" * 5000,
        b"a = " + b"9" * 5000,
    ],
)
def test_what_is_not_toml_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected TOML in .*broken.toml, got: "):
        load_federation(path)


def test_all_misfits_are_named_at_once(federation_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(federation_file, "federation.num_rounds=0", "task.kind=chess", "colour=red")
    text = str(caught.value)
    assert f"{federation_file} does not fit the schema" in text
    assert "federation.num_rounds: Input should be greater than or equal to 1" in text
    assert "task.kind: Input should be 'causal-lm' or 'classification'" in text
    assert "colour: Extra inputs are not permitted" in text
    assert "hint: docs/reference/configuration.md" in text


MISFITS = [
    ("federation.num_rounds='3'", "federation.num_rounds: Input should be a valid integer"),
    ("federation.num_rounds=3.0", "federation.num_rounds: Input should be a valid integer"),
    ("federation.num_rounds=true", "federation.num_rounds: Input should be a valid integer"),
    ("federation.num_rounds=100001", "less than or equal to 100000"),
    ("federation.seed=-1", "federation.seed: .* greater than or equal to 0"),
    ("federation.seed=2147483648", "federation.seed: .* less than 2147483648"),
    ("federation.name=Clinic", "federation.name: String should match pattern"),
    ("federation.name=../x", "federation.name: String should match pattern"),
    ("federation.name=2026-11-22", "expected no date or time, got 2026-11-22"),
    ("federation.colour=red", "federation.colour: Extra inputs are not permitted"),
    ("model.colour=red", "model.ModelConfig.colour: Unexpected keyword argument"),
    ("model.n_layer=1.5", "model.ModelConfig.n_layer: Input should be a valid integer"),
    ("model.rope_theta=nan", "model.ModelConfig.rope_theta: Input should be a finite number"),
    ("train.colour=red", "train.colour: Unexpected keyword argument"),
    ("train.learning_rate=nan", "train.learning_rate: Input should be a finite number"),
    ("train.learning_rate=inf", "train.learning_rate: Input should be a finite number"),
    ("train.beta1=nan", "train.beta1: Input should be a finite number"),
    ("train.steps_per_round=0", "expected train.steps_per_round of 1 or more, got 0"),
    ("tokenizer.kind=file", 'expected `path` with kind "file" and only there'),
    ("tokenizer.path=t.json", 'expected `path` with kind "file" and only there'),
    ("task.labels=['a']", "expected two or more `labels` for classification and none elsewhere"),
    ("task.labels=['a', 'a']", "expected `labels` without repetition"),
    ("task.kind=causal-lm", "expected two or more `labels` for classification and none elsewhere"),
    ("privacy.noise_multiplier=1.0", "one of `target_epsilon` and `noise_multiplier`"),
    ("privacy.mode=none", 'mode "none" has no epsilon: remove it'),
    ("privacy.target_epsilon=nan", "privacy.target_epsilon: Input should be a finite number"),
    ("privacy.target_epsilon=inf", "privacy.target_epsilon: Input should be a finite number"),
    ("privacy.target_epsilon=0", "privacy.target_epsilon: Input should be greater than 0"),
    ("privacy.target_delta=0.1", "privacy.target_delta: Input should be less than 0.1"),
    ("privacy.max_grad_norm=inf", "privacy.max_grad_norm: Input should be a finite number"),
    ("strategy.fraction_train=0", "strategy.fraction_train: Input should be greater than 0"),
    ("strategy.server_momentum=1", "strategy.server_momentum: Input should be less than 1"),
    ("evaluation.holdout.format=csv", "expected `path` for a file format and none for"),
    ("evaluation.holdout.format=clinic", 'expected `hospital` for "clinic" and only there'),
    ("sites=[]", "sites: Tuple should have at least 1 item"),
    (
        "sites=[{name='a', num_examples=1}, {name='a', num_examples=2}]",
        "expected `sites` with distinct names",
    ),
    ("sites=[{name='a', num_examples=0}]", "sites.0.num_examples: .* greater than or equal to 1"),
    ("simulation.site_files=[]", "expected one of `site_files` and `partition`"),
    ("simulation.test_noise_key=abc", "simulation.test_noise_key: String should match pattern"),
    (
        "simulation.partition={data={format='csv', path='x'}, policy={max_epsilon=1.0}}",
        "expected one of `site_files` and `partition`",
    ),
    (
        "simulation.partition={data={format='csv', path='x'}, policy={max_epsilon=1.0}, "
        "scheme='column'}",
        'expected `column` with scheme "column" and only there',
    ),
]


@pytest.mark.parametrize(("override", "words"), MISFITS)
def test_a_misfit_is_named(federation_file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_federation(federation_file, override)


SITE_MISFITS = [
    ("data.path=3", "data.path: Input should be a valid string"),
    ("data.hospital=north", 'expected `hospital` for "clinic" and only there'),
    ("data.format=xml", "data.format: Input should be 'jsonl', 'csv', 'parquet', 'text'"),
    ("policy.max_epsilon=inf", "policy.max_epsilon: Input should be a finite number"),
    ("policy.max_epsilon=-1", "policy.max_epsilon: Input should be greater than 0"),
    ("policy.allowed_tasks=['x']", "policy.allowed_tasks.0: String should match pattern"),
    ("policy.allow_non_private=1", "policy.allow_non_private: Input should be a valid boolean"),
    ("policy.min_noise_multiplier=0", "policy.min_noise_multiplier: .* greater than 0"),
]


@pytest.mark.parametrize(("override", "words"), SITE_MISFITS)
def test_a_misfit_of_a_site_is_named(site_file: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_site(site_file, override)


def test_a_sections_own_check_names_the_file(federation_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"federation.toml does not fit: expected train\."):
        load_federation(federation_file, "train.steps_per_round=0")


OVERRIDES = [
    ("federation.num_rounds=4", "federation.num_rounds", 4),
    ("federation.name=other", "federation.name", "other"),
    ("federation.name='other'", "federation.name", "other"),
    ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
    ("train.learning_rate=1", "train.learning_rate", 1.0),
    ("train.freeze=['a', 'b']", "train.freeze", ("a", "b")),
    ("train.autocast=bf16", "train.autocast", "bf16"),
    ("strategy.name=fedadam", "strategy.name", "fedadam"),
    ("privacy={noise_multiplier = 1.5}", "privacy.noise_multiplier", 1.5),
    ("simulation.workers = 7", "simulation.workers", 7),
]


@pytest.mark.parametrize(("override", "key", "value"), OVERRIDES)
def test_an_override_is_a_toml_value_or_a_text(
    federation_file: Path, override: str, key: str, value: object
) -> None:
    found: Any = load_federation(federation_file, override)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins(federation_file: Path) -> None:
    config = load_federation(federation_file, "federation.seed=1", "federation.seed=2")
    assert config.federation.seed == 2


def test_a_text_may_hold_an_equals_sign(site_file: Path) -> None:
    assert load_site(site_file, "data.columns.text=a=b").data.columns.text == "a=b"


def test_a_value_of_several_lines_is_one_text(site_file: Path) -> None:
    columns = load_site(site_file, 'data.columns.text="a"\nb = 1').data.columns
    assert columns.text == '"a"\nb = 1'


@pytest.mark.parametrize("override", ["", "federation.num_rounds", "=3"])
def test_an_override_without_key_or_value_is_refused(federation_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected --set section.key=value, got") as caught:
        load_federation(federation_file, override)
    assert "--set federation.num_rounds=4" in caught.value.hint


@pytest.mark.parametrize("override", ["federation.name.first=x", "sites.0.num_examples=3"])
def test_an_override_below_a_value_is_refused(federation_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a section at '\w+' in --set .*, got a value"):
        load_federation(federation_file, override)


@given(st.text())
def test_no_override_raises_anything_else(override: str) -> None:
    document = {"federation": {"name": "x"}, "sites": [1]}
    try:
        config_files._apply_override(document, override)
        parse_config(FederationConfig, document, origin="here")
    except ConfigError as error:
        assert error.exit_code == 2  # noqa: PT017


def test_the_same_configuration_has_one_digest(federation_file: Path) -> None:
    first = config_digest(load_federation(federation_file))
    assert config_digest(load_federation(federation_file)) == first


@pytest.mark.parametrize("override", ["simulation.workers=9", "simulation.threads_per_worker=2"])
def test_speed_does_not_change_the_digest(federation_file: Path, override: str) -> None:
    expected = config_digest(load_federation(federation_file))
    assert config_digest(load_federation(federation_file, override)) == expected


@pytest.mark.parametrize(
    "override",
    [
        "federation.seed=1",
        "model.n_layer=2",
        "train.learning_rate=0.02",
        "privacy.target_epsilon=7.9",
        "strategy.name=fedprox",
        "task.pooling=last",
        f"simulation.test_noise_key={'0' * 64}",
        "simulation.only=['north']",
    ],
)
def test_what_decides_the_result_changes_the_digest(federation_file: Path, override: str) -> None:
    before = config_digest(load_federation(federation_file))
    assert config_digest(load_federation(federation_file, override)) != before


def test_a_federation_without_simulation_has_a_digest(federation_file: Path) -> None:
    federation_file.write_text(FEDERATION.partition("[simulation]")[0])
    config = load_federation(federation_file)
    assert config.simulation is None
    assert len(config_digest(config)) == 64


@pytest.mark.parametrize(("declared", "largest"), [(1000, 1250), (10, 13), (1, 2)])
def test_a_declared_size_leaves_room_for_a_quarter_more(declared: int, largest: int) -> None:
    assert MemberSection(name="north", num_examples=declared).max_examples == largest


def test_a_configuration_cannot_be_changed(federation_file: Path) -> None:
    config = load_federation(federation_file)
    with pytest.raises(ValidationError, match="frozen"):
        config.federation.seed = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.learning_rate = 3.0  # type: ignore[misc]


def test_what_is_dumped_is_accepted_again(federation_file: Path) -> None:
    config = load_federation(federation_file)
    document = json.loads(config.model_dump_json())
    before = copy.deepcopy(document)
    assert parse_config(FederationConfig, document, origin="here") == config
    assert document == before


def sections() -> Iterator[type]:
    """Every section of a configuration file."""
    for value in vars(config_module).values():
        if isinstance(value, type) and issubclass(value, Section) and value is not Section:
            yield value
    yield from (ModelConfig, TrainConfig)


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_field_of_every_section_is_described(section: type) -> None:
    assert section.__doc__
    if issubclass(section, BaseModel):
        found = {name: field.description for name, field in section.model_fields.items()}
    else:
        properties = TypeAdapter(section).json_schema()["properties"]
        found = {name: field.get("description") for name, field in properties.items()}
        fields = dataclasses.fields(section)  # type: ignore[arg-type]
        assert found.keys() == {field.name for field in fields}
    for name, description in found.items():
        assert description, f"{section.__name__}.{name} has no description"
