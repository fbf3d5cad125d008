"""Rosters and orders for attempts at secure aggregation."""

from datetime import timedelta
from typing import Any

from core.config_sections import PrivacySection, SecureAggregationSection
from core.messages import AggregationOrder, TrainTask
from core.wire.documents import Roster, RosterMember
from privacy.identities.clock import write_timestamp
from privacy.identities.names import site_tls_name
from privacy.secure_aggregation.context import AttemptContext, roster_digest
from tests.support.certificates import NOW
from tests.support.messages import TASK, TERMS

SITES = ("east", "north", "south", "west")


def roster(names: tuple[str, ...] = SITES, **changes: Any) -> Roster:
    """Members with keys that nobody has, and sizes 1000, 2000, ..."""
    members = tuple(
        RosterMember(
            name=name,
            node_key=f"{index:064x}",
            tls_name=site_tls_name("clinic", name),
            num_examples=1000 * index,
        )
        for index, name in enumerate(names, start=1)
    )
    values = {
        "federation": "clinic",
        "epoch": 3,
        "issued": write_timestamp(NOW),
        "expires": write_timestamp(NOW + timedelta(days=90)),
        "members": members,
    }
    return Roster(**(values | changes))


def order(
    listed: Roster,
    *,
    section: SecureAggregationSection | None = None,
    **changes: Any,
) -> TrainTask:
    """An order for all of ``listed``; ``changes`` are those of its ``AggregationOrder``."""
    terms = TERMS.model_copy(
        update={
            "secure_aggregation": section or SecureAggregationSection(),
            "privacy": PrivacySection(target_epsilon=8.0),
        }
    )
    values = {
        "nonce": "6" * 64,
        "roster_epoch": listed.epoch,
        "roster_digest": roster_digest(listed),
        "members": tuple(sorted(member.name for member in listed.members)),
        "dimension": 1000,
        "deadline": write_timestamp(NOW + timedelta(hours=1)),
    }
    aggregation = AggregationOrder(**(values | changes))
    return TASK.model_copy(
        update={"terms": terms, "task_digest": terms.digest(), "aggregation": aggregation}
    )


def context(**changes: Any) -> AttemptContext:
    """A context that stands in no roster, every field set."""
    values: dict[str, Any] = {
        "federation": "clinic",
        "run_id": "0123456789abcdef",
        "server_round": 4,
        "attempt": 1,
        "nonce": "6" * 64,
        "roster_epoch": 3,
        "roster_digest": "7" * 64,
        "model_digest": "4" * 64,
        "task_digest": "8" * 64,
        "members": ("east", "north", "south"),
        "weights": (("east", 1000), ("north", 3000), ("south", 2000)),
        "dimension": 1000,
        "min_cohort": 3,
        "step": (2.0**-23).hex(),
        "bits": 24,
        "deadline": "2026-01-31T12:00:00Z",
        "protocol": "cloister-secagg/1",
        "noise_multiplier": (1.5).hex(),
    }
    return AttemptContext(**(values | changes))
