"""What a site brings to a round: its data, its policy, its ledger and its randomness."""

import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from client.standing import Standing
from core.array_codec import manifest_of
from core.blueprint import Blueprint
from core.config_sections import AuditSection, PolicySection, largest_data_set
from core.data.dataset import TokenizedDataset
from core.data.held_out import Split
from core.digests import DigestMemory
from core.errors import CheckpointError, ConfigError, PrivacyError, TokenizerError
from core.messages import TrainingTerms, TrainTask
from core.parallel.team import SOLO, Team
from core.parameters import base_digest, to_arrays
from core.tasks.interface import Batch
from privacy.ledger import Ledger
from privacy.random_source import RandomSource


def fresh_randomness(order: TrainTask) -> RandomSource:
    """What every real run uses: keys from the operating system, new at every attempt."""
    return RandomSource.fresh()


@dataclass(frozen=True)
class TestRandomness:
    """Predictable keys, equal wherever the same task runs; marks the ledger as not private."""

    __test__ = False  # pytest: not a test case

    key: bytes

    def __call__(self, order: TrainTask) -> RandomSource:
        """A function of task, round and site: a repeated attempt draws the same noise."""
        return self.source(f"{order.task_digest}/{order.server_round}/{order.site}")

    def source(self, context: str) -> RandomSource:
        """Streams that no other context shares."""
        return RandomSource.for_tests(self.key, context)

    def __repr__(self) -> str:
        return "TestRandomness(key=***)"


@dataclass(frozen=True)
class OnDevice:
    """A data set whose batches arrive where the model is."""

    dataset: TokenizedDataset
    device: torch.device

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """The examples at ``indices``, padded."""
        return self.dataset.fetch(indices).to(self.device)


@dataclass(frozen=True)
class Site:
    """One site. Opened before the first round, so that broken data shows before training."""

    name: str
    policy: PolicySection
    data: TokenizedDataset
    open_ledger: Callable[[], Ledger]
    randomness: Callable[[TrainTask], RandomSource] = fresh_randomness
    num_examples: int | None = None
    """The public size that it declared; without one it takes part in no private run."""
    standing: Standing | None = None
    """Its key and the roster that it believes; without them it takes part in no secure
    aggregation."""
    split: Split | None = None
    """Its records, those held out of training too; without them it answers no audit."""
    audit: AuditSection | None = None
    """What may be counted, as the federation's file that is installed here has it; without it the
    site answers no audit."""
    witness: Callable[[str], str] | None = None
    """Verifies a checkpoint of the federation's log and signs it, both as JSON; raises a
    ``CloisterError`` where it is not to be signed. Without it the site signs none."""


def check_size(site: Site) -> None:
    """Refuses, before any round, more records than the declared size stands for.

    A no in a round would tell the coordinator something about the number of records.

    Raises:
        PrivacyError: There are more; the message does not say how many.
    """
    if site.num_examples is None:
        return
    largest = largest_data_set(site.num_examples)
    if len(site.data) > largest:
        raise PrivacyError(
            f"expected at most {largest} records at {site.name}, for which its declared public "
            f"num_examples = {site.num_examples} stands; it holds more",
            hint="declare a larger num_examples for this site",
        )


class Workshop:
    """One model for each worker thread, however many sites it plays.

    Args:
        blueprint: How the model is built; from what the site installed, never from a message.
        device: Where it trains.
    """

    def __init__(self, blueprint: Blueprint, device: torch.device) -> None:
        self.blueprint = blueprint
        self.device = device
        self.team: Callable[[], Team] = lambda: SOLO
        """The processes that share a round; whole, or it raises WorkerLostError."""
        model = blueprint.build()
        self._digest = base_digest(model)
        self.manifest = manifest_of(to_arrays(model))
        self.digests = DigestMemory()
        self._thread = threading.local()

    def model(self, terms: TrainingTerms) -> nn.Module:
        """This thread's model, if it is the one that ``terms`` speak of.

        Raises:
            TokenizerError: The sites do not share a tokenizer.
            CheckpointError: The initial weights here differ from the coordinator's.
            ConfigError: The task, or what is trained, is not what was installed here.
        """
        if terms.tokenizer_digest != self.blueprint.tokenizer_digest:
            raise TokenizerError(
                f"expected the tokenizer {terms.tokenizer_digest[:16]}..., got "
                f"{self.blueprint.tokenizer_digest[:16]}...",
                hint="install the same tokenizer file at every site",
            )
        if terms.base_digest != self._digest or terms.model != self.blueprint.config:
            raise CheckpointError(
                f"expected initial weights {terms.base_digest[:16]}..., got {self._digest[:16]}...",
                hint="install the same configuration, checkpoint and versions at every site",
            )
        blueprint = self.blueprint
        installed = (blueprint.section, blueprint.frozen, blueprint.lora)
        if (terms.task, terms.train.freeze, terms.train.lora) != installed:
            raise ConfigError(
                "expected the task and the trained parameters that are installed here, got others",
                hint="install the same configuration at every site",
            )
        return self.own_model()

    def own_model(self) -> nn.Module:
        """This thread's model, as it is installed here."""
        if not hasattr(self._thread, "model"):
            self._thread.model = self.blueprint.build().to(self.device)
        model: nn.Module = self._thread.model
        return model

    def release(self) -> None:
        """Frees this thread's model; the next round builds it anew, with the same weights."""
        self._thread.__dict__.clear()
        self.digests = DigestMemory()  # which keeps the last order's weights
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
