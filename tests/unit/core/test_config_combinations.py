"""Settings that go together, and those that do not: refused before anything runs, by name."""

from typing import Any

import pytest

from core.config import FederationConfig
from core.config_files import parse_config
from core.errors import ConfigError


def config(**sections: Any) -> FederationConfig:
    document: dict[str, Any] = {
        "federation": {"name": "trial", "num_rounds": 3},
        "model": {"vocab_size": 8, "max_seq_len": 4, "n_layer": 1, "n_head": 1, "n_embd": 4},
        "task": {"kind": "causal-lm"},
        "train": {"steps_per_round": 2, "global_batch_size": 10, "learning_rate": 0.1},
        "privacy": {"noise_multiplier": 1.0},
        "sites": [{"name": name, "num_examples": 40} for name in ("east", "north", "south")],
    }
    return parse_config(FederationConfig, document | sections, origin="a test")


def refused(words: str, **sections: Any) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**sections)


ONE_STEP = {"steps_per_round": 1, "global_batch_size": 10, "learning_rate": 0.1}
DISTRIBUTED: dict[str, Any] = {
    "privacy": {"mode": "distributed", "noise_multiplier": 1.0},
    "strategy": {"name": "central"},
    "train": ONE_STEP,
    "secure_aggregation": {},
}


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_strategies_on_sums_go_with_secure_aggregation(name: str) -> None:
    assert config(strategy={"name": name}, secure_aggregation={}).secure_aggregation is not None


@pytest.mark.parametrize("name", ["fedmedian", "krum"])
def test_strategies_that_look_at_each_update_do_not(name: str) -> None:
    strategy = {"name": name, "min_train_nodes": 3}
    assert config(strategy=strategy).strategy.name == name
    refused(f"works on sums with secure_aggregation, got {name}", strategy=strategy,
            secure_aggregation={})  # fmt: skip


@pytest.mark.parametrize("encoding", ["bf16", "int8"])
def test_a_masked_update_has_no_other_encoding(encoding: str) -> None:
    words = 'expected transport.update_encoding = "fp32" with secure_aggregation'
    refused(words, transport={"update_encoding": encoding}, secure_aggregation={})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_cohort", 2),
        ("bits", 25),
        ("bits", 7),
        ("max_update_norm", 0.0),
        ("colluding_sites", -1),
    ],
)
def test_a_sum_has_its_limits(key: str, value: float) -> None:
    refused(f"secure_aggregation.{key}", secure_aggregation={key: value})


def test_noise_in_shares_is_one_step_under_secure_aggregation() -> None:
    assert config(**DISTRIBUTED).privacy.mode == "distributed"
    for key, other, words in (
        ("secure_aggregation", None, r"expected a section \[secure_aggregation\]"),
        ("strategy", {"name": "fedavg"}, 'expected strategy.name = "central"'),
        ("train", ONE_STEP | {"steps_per_round": 2}, "expected train.steps_per_round = 1"),
        ("train", ONE_STEP | {"max_update_norm": 1.0}, "expected train.max_update_norm only"),
        ("privacy", {"mode": "distributed"}, "expected one of `target_epsilon`"),
        ("privacy", {"noise_multiplier": 1.0}, 'expected strategy.name = "central"'),
    ):
        sections = {**DISTRIBUTED, key: other}
        refused(words, **{name: value for name, value in sections.items() if value is not None})


@pytest.mark.parametrize(("lying", "fewest"), [(0, 3), (1, 5), (2, 7)])
def test_krum_bears_as_many_as_the_round_has_sites_for(lying: int, fewest: int) -> None:
    strategy = {"name": "krum", "num_malicious_nodes": lying, "min_train_nodes": fewest}
    assert config(strategy=strategy).strategy.num_malicious_nodes == lying
    refused(
        f"expected strategy.min_train_nodes of at least {fewest}",
        strategy=strategy | {"min_train_nodes": fewest - 1},
    )
