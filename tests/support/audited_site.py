"""One real site whose records have groups, with an order to count them that it accepts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from client.audit_round import audit_round
from client.site import Site, TestRandomness, Workshop, fresh_randomness
from core.audit_messages import AuditOrder, AuditReply, audit_order
from core.blueprint import make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import load_config
from core.config_sections import ColumnsSection, DataSection, PolicySection
from core.data.dataset import TokenizedDataset
from core.data.held_out import hold_out
from core.data.sources import open_source
from core.digests import arrays_digest
from core.messages import TrainTask
from core.parameters import Arrays, to_arrays
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry
from privacy.random_source import RandomSource
from tests.support.audited import write_audited
from tests.support.federation import FEDERATION, TEST_KEY

WITHOUT_PRIVACY = FEDERATION.replace("noise_multiplier = 1.0", 'mode = "none"')
LANGUAGE_MODEL = FEDERATION.replace(
    'kind = "classification"\nlabels = ["calm", "storm"]', 'kind = "causal-lm"'
).replace("max_seq_len = 16", "max_seq_len = 16\ncausal = true")


@dataclass
class AuditedSite:
    """A site, what it works with, and an order."""

    site: Site
    workshop: Workshop
    order: AuditOrder
    arrays: Arrays
    config: FederationConfig

    def answer(self, **changes: Any) -> AuditReply:
        """What it answers to the order with some fields changed and nothing recomputed."""
        order = self.order.model_copy(update=changes)
        return audit_round(self.site, self.workshop, order, dict(self.arrays))

    def policy(self, **changes: Any) -> None:
        """Changes the site's policy."""
        self.site = replace(self.site, policy=self.site.policy.model_copy(update=changes))

    def entries(self) -> list[Entry]:
        """The ledger, but for its opening."""
        with self.site.open_ledger() as ledger:
            return list(ledger.entries())[1:]


def make_audited_site(
    folder: Path,
    *,
    overrides: tuple[str, ...] = (),
    policy: dict[str, Any] | None = None,
    test_noise: bool = False,
    federation: str = FEDERATION,
) -> AuditedSite:
    """The site ``north`` of the tiny federation with groups.

    Args:
        folder: For its files.
        overrides: For the federation's file.
        policy: Fields that differ from a policy that allows the order.
        test_noise: Answer under predictable noise.
        federation: The federation's file, without its section on audits.
    """
    config = load_config(FederationConfig, write_audited(folder, federation=federation), overrides)
    blueprint = make_blueprint(config)
    terms = training_terms(config, blueprint)
    columns = ColumnsSection(text="text", label="label", person="person", groups=("sex",))
    section = DataSection(format="jsonl", path=folder / "north.jsonl", columns=columns)
    source = open_source(section, labels=config.task.labels)
    split = hold_out(source, config.audit.holdout_fraction, bytes(32))
    randomness: Callable[[TrainTask], RandomSource] = fresh_randomness
    if test_noise:
        randomness = TestRandomness(bytes.fromhex(TEST_KEY))
    site = Site(
        name="north",
        policy=PolicySection(
            **{"max_epsilon": 100.0, "allowed_tasks": (terms.digest(),), **(policy or {})}
        ),
        data=TokenizedDataset(split.members, blueprint.task),
        num_examples=40,
        open_ledger=partial(Ledger.open, folder / "ledger.sqlite", site="north"),
        randomness=randomness,
        split=split,
        audit=config.audit,
    )
    arrays = to_arrays(blueprint.build())
    order = audit_order(
        config,
        terms,
        run_id="0" * 15 + "1",
        attempt=1,
        arrays_digest=arrays_digest(arrays),
        site="north",
    )
    return AuditedSite(site, Workshop(blueprint, torch.device("cpu")), order, arrays, config)
