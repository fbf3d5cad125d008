"""Orders for steps over all sites, and what such a step must come to."""

from typing import Any

from core.config_sections import PrivacySection, SecureAggregationSection
from core.messages import AggregationOrder, DpSgdTerms, TrainTask
from privacy.distributed import DistributedGrid
from tests.support.messages import TASK, TERMS
from tests.support.tiny import train_config

SITES = ("east", "north", "south", "west")
TINY_DIMENSION = 467
"""Trained parameters of ``TinyModel()``."""


def distributed_order(
    *,
    members: tuple[str, ...] = SITES,
    dimension: int = TINY_DIMENSION,
    privacy: dict[str, Any] | None = None,
    section: dict[str, Any] | None = None,
    constants: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
) -> TrainTask:
    """An order for the site ``north``."""
    terms = TERMS.model_copy(
        update={
            "train": train_config(steps_per_round=1, **(train or {})),
            "privacy": PrivacySection(
                mode="distributed",
                **{"noise_multiplier": 0.8, "max_grad_norm": 0.5, **(privacy or {})},
            ),
            "proximal_mu": 0.0,
            "num_rounds": 3,
            "secure_aggregation": SecureAggregationSection(**(section or {})),
        }
    )
    settings: dict[str, Any] = {
        "noise_multiplier": 0.8,
        "sample_rate": 0.4,
        "max_batch_size": 50,
        "max_examples": 5000,
    }
    return TASK.model_copy(
        update={
            "site": "north",
            "terms": terms,
            "task_digest": terms.digest(),
            "dp_sgd": DpSgdTerms(**settings | (constants or {})),
            "aggregation": AggregationOrder(
                nonce="6" * 64,
                roster_epoch=1,
                roster_digest="7" * 64,
                members=members,
                dimension=dimension,
                deadline="2030-01-31T12:00:00Z",
            ),
        }
    )


def grid(**changes: Any) -> DistributedGrid:
    """Four sites, one of which may collude: at least three survive, and two are counted on."""
    settings: dict[str, Any] = {
        "noise_multiplier": 0.8,
        "max_grad_norm": 0.5,
        "max_batch_size": 50,
        "dimension": 1000,
        "members": 4,
        "min_cohort": 3,
        "colluding_sites": 1,
    }
    return DistributedGrid(**settings | changes)
