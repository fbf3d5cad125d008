"""One real site on tiny data, with an order that it accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from client.site import Site, TestRandomness, Workshop, fresh_randomness
from core.blueprint import make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import load_config
from core.config_sections import ColumnsSection, DataSection, PolicySection
from core.data.dataset import TokenizedDataset
from core.data.records import RecordSource
from core.data.sources import open_source
from core.digests import arrays_digest
from core.messages import DpSgdTerms, TrainTask
from core.parameters import Arrays, to_arrays
from privacy.ledger import Ledger
from privacy.random_source import RandomSource
from tests.support.federation import TEST_KEY, write_federation


@dataclass
class SiteAtWork:
    """A site, what it works with, and the first order of a run."""

    site: Site
    workshop: Workshop
    order: TrainTask
    arrays: Arrays

    def change(self, **changes: Any) -> TrainTask:
        """The order with some fields changed and nothing recomputed."""
        return self.order.model_copy(update=changes)

    def change_terms(self, **changes: Any) -> TrainTask:
        """The order with changed terms and their true digest."""
        terms = self.order.terms.model_copy(update=changes)
        return self.change(terms=terms, task_digest=terms.digest())


def make_site(
    folder: Path,
    *,
    overrides: tuple[str, ...] = (),
    policy: dict[str, Any] | None = None,
    test_noise: bool = False,
) -> SiteAtWork:
    """The site `north` of the tiny federation.

    Args:
        folder: For its files.
        overrides: For the federation's file.
        policy: Fields that differ from a policy that allows the order.
        test_noise: Train with predictable noise.
    """
    config = load_config(FederationConfig, write_federation(folder), overrides)
    blueprint = make_blueprint(config)
    terms = training_terms(config, blueprint)
    data = load_data(folder, config.task.labels)
    randomness: Callable[[TrainTask], RandomSource] = fresh_randomness
    if test_noise:
        randomness = TestRandomness(bytes.fromhex(TEST_KEY))
    site = Site(
        name="north",
        policy=PolicySection(
            **{"max_epsilon": 100.0, "allowed_tasks": (terms.digest(),), **(policy or {})}
        ),
        data=TokenizedDataset(data, blueprint.task),
        num_examples=40,
        open_ledger=partial(Ledger.open, folder / "ledger.sqlite", site="north"),
        randomness=randomness,
    )
    arrays = to_arrays(blueprint.build())
    order = TrainTask(
        run_id="0" * 15 + "1",
        server_round=1,
        attempt=1,
        site="north",
        arrays_digest=arrays_digest(arrays),
        terms=terms,
        task_digest=terms.digest(),
        num_examples=40,
        dp_sgd=None
        if terms.privacy.mode == "none"
        else DpSgdTerms(noise_multiplier=1.0, sample_rate=0.2, max_batch_size=16, max_examples=50),
    )
    return SiteAtWork(site, Workshop(blueprint, torch.device("cpu")), order, arrays)


def load_data(folder: Path, labels: tuple[str, ...]) -> RecordSource:
    """The records of `north`."""
    columns = ColumnsSection(text="text", label="label")
    section = DataSection(format="jsonl", path=folder / "north.jsonl", columns=columns)
    return open_source(section, labels=labels)
