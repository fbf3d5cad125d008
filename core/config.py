"""The federation's file: shared with every site, and public."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from core.config_sections import (
    AuditSection,
    DataSection,
    MemberSection,
    Name,
    PolicySection,
    PrivacySection,
    Section,
    SecureAggregationSection,
    TaskSection,
)
from core.digests import json_digest
from core.model import ModelConfig
from core.train import TrainConfig
from core.update_codec import UpdateEncoding

# Strategies that compare the sites' updates with each other.
NEEDS_CLEAR_UPDATES = ("fedmedian", "krum")
# Poisson batches are cut at this many times their expected size; see docs on sampling.
MAX_BATCH_RATIO = 2


class FederationSection(Section):
    """Who trains together, and for how long."""

    name: Name
    """The federation's name."""
    num_rounds: int = Field(ge=1, le=100_000)
    """Rounds of the whole run; the noise is calibrated for this many."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Public seed of the initial weights, of the sampling of sites and of simulated partitions.
    Neither the noise nor the sampling of records ever comes from it."""


class PretrainedModel(Section):
    """Start from a checkpoint folder (``config.json`` and ``model.safetensors``)."""

    pretrained: Path
    """Folder of a BERT, GPT-2 or Llama checkpoint; relative to this file."""
    max_seq_len: int = Field(default=128, ge=1)
    """Texts are cut to this many tokens; at most what the checkpoint was made for."""


class TokenizerSection(Section):
    """How text becomes tokens. A vocabulary trained on private text leaks it: use a public one."""

    kind: Literal["bytes", "file", "clinic"] = "bytes"
    """``bytes`` needs no training; ``file`` reads a ``tokenizer.json``; ``clinic`` is the public
    word list of the embedded example."""
    path: Path | None = None
    """The ``tokenizer.json`` of kind ``file``; relative to this file."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError('expected `path` with kind "file" and only there')
        return self


class StrategySection(Section):
    """How sites are sampled and their updates aggregated."""

    name: Literal[
        "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "krum", "central"
    ] = "fedavg"
    """Flower's strategy. ``fedmedian`` and ``krum`` bear some lying sites and look at each update.
    ``central``: one step of ``train.optimizer`` at the coordinator, with
    ``privacy.mode = "distributed"`` and only there."""
    fraction_train: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the available sites sampled in a round. Gives no privacy credit."""
    min_train_nodes: int = Field(default=1, ge=1)
    """A round needs at least this many sites, and at least this many usable replies."""
    min_available_nodes: int = Field(default=1, ge=1)
    """A round starts when at least this many sites are there."""
    round_timeout_seconds: float = Field(default=3600.0, gt=0)
    """A reply that comes later than this is dropped by name."""
    max_update_norm: float | None = Field(default=None, gt=0)
    """A reply whose update has a larger L2 norm is dropped by name."""
    proximal_mu: float = Field(default=0.0, ge=0)
    """FedProx: pull towards the global model."""
    server_learning_rate: float = Field(default=1.0, gt=0)
    """FedAvgM, FedAdam, FedYogi: step size at the coordinator."""
    server_momentum: float = Field(default=0.9, ge=0, lt=1)
    """FedAvgM: momentum at the coordinator."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """FedAdam, FedYogi."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """FedAdam, FedYogi."""
    tau: float = Field(default=1e-3, gt=0)
    """FedAdam, FedYogi: adaptability."""
    num_malicious_nodes: int = Field(default=0, ge=0)
    """Krum: how many sites it is to bear."""


class EvaluationSection(Section):
    """Evaluation at the coordinator, on public data only."""

    holdout: DataSection | None = None
    """The public holdout; without it the run is not evaluated."""
    every: int = Field(default=1, ge=1)
    """Evaluate after every so many rounds, and after the last."""
    max_examples: int = Field(default=2000, ge=1)
    """Evaluate on at most so many records of the holdout, its first ones."""
    batch_size: int = Field(default=64, ge=1)
    """Records a forward pass."""


class SimulatedPartition(Section):
    """Sites cut out of one data file."""

    data: DataSection
    """The file."""
    scheme: Literal["iid", "dirichlet", "column"] = "iid"
    """Evenly at random; by label with skew ``alpha``; or by the values of ``column``."""
    alpha: float = Field(default=0.5, gt=0)
    """Dirichlet concentration: smaller is more skewed."""
    column: str | None = None
    """The column whose values go to one site each, whole."""
    policy: PolicySection
    """The policy of every simulated site."""

    @model_validator(mode="after")
    def _column_where_needed(self) -> Self:
        if (self.scheme == "column") != (self.column is not None):
            raise ValueError('expected `column` with scheme "column" and only there')
        return self


class SimulationSection(Section):
    """How ``cloister simulate`` plays the sites."""

    site_files: tuple[Path, ...] = ()
    """A site file for each site; relative to this file."""
    partition: SimulatedPartition | None = None
    """Or one data file to cut."""
    only: tuple[Name, ...] = ()
    """Simulate only these sites of the federation."""
    workers: int = Field(default=2, ge=1, le=1024)
    """Sites that train at the same time. Does not change the result."""
    threads_per_worker: int = Field(default=1, ge=1)
    """Threads inside one site's tensor operations. May change the last bits of the result."""
    allow_non_private: bool = False
    """Lets every simulated site take part in a run without privacy."""
    test_noise_key: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """For tests only: predictable noise. The run and the ledgers are marked as not private."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.site_files) == (self.partition is not None):
            raise ValueError("expected one of `site_files` and `partition`")
        return self


class TransportSection(Section):
    """How updates travel."""

    update_encoding: UpdateEncoding = "fp32"
    """Encoding of a site's update, applied after its noise, so that epsilon is untouched: weights
    in ``fp32``; or the difference to the global weights in ``bf16``, or in ``int8`` with a scale
    for each block."""


class FederationConfig(Section):
    """The federation's file: shared with every site, public."""

    federation: FederationSection
    """Who trains together, and for how long."""
    model: PretrainedModel | ModelConfig
    """The Transformer: a checkpoint folder, or a shape with new weights."""
    tokenizer: TokenizerSection = TokenizerSection()
    """How text becomes tokens."""
    task: TaskSection
    """What is learned."""
    train: TrainConfig
    """How each site trains."""
    privacy: PrivacySection
    """The privacy that every site gives its records."""
    strategy: StrategySection = StrategySection()
    """How sites are sampled and their updates aggregated."""
    evaluation: EvaluationSection = EvaluationSection()
    """What the coordinator evaluates on."""
    transport: TransportSection = TransportSection()
    """How updates travel."""
    secure_aggregation: SecureAggregationSection | None = None
    """Open sums alone; without this section the coordinator sees each site's update."""
    audit: AuditSection = AuditSection()
    """What is audited, and what must hold before the model is released."""
    sites: tuple[MemberSection, ...] = Field(min_length=1)
    """The members."""
    simulation: SimulationSection | None = None
    """Only for ``cloister simulate``."""

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("expected `sites` with distinct names")
        return self

    @model_validator(mode="after")
    def _settings_that_go_together(self) -> Self:
        if self.privacy.mode != "none" and self.train.max_update_norm > 0:
            raise ValueError(
                "expected train.max_update_norm only without privacy: "
                "privacy.max_grad_norm clips each example"
            )
        bears = 2 * self.strategy.num_malicious_nodes + 3
        if self.strategy.name == "krum" and self.strategy.min_train_nodes < bears:
            raise ValueError(
                f"expected strategy.min_train_nodes of at least {bears}, with which krum bears "
                f"{self.strategy.num_malicious_nodes} lying sites"
            )
        if isinstance(self.model, ModelConfig) and self.model.dropout > 0:
            raise ValueError(
                "expected model.dropout = 0: dropout draws from a generator that sites on worker "
                "threads share, so that runs could not be repeated"
            )
        return self

    @model_validator(mode="after")
    def _aggregation_that_can_be_done(self) -> Self:
        distributed = self.privacy.mode == "distributed"
        if distributed != (self.strategy.name == "central"):
            raise ValueError(
                'expected strategy.name = "central" with privacy.mode = "distributed", and only '
                "there"
            )
        if distributed and self.train.steps_per_round != 1:
            raise ValueError(
                'expected train.steps_per_round = 1 with privacy.mode = "distributed": a round is '
                "one step over all sites"
            )
        section = self.secure_aggregation
        if section is None:
            if distributed:
                raise ValueError(
                    'expected a section [secure_aggregation] with privacy.mode = "distributed": '
                    "one site's share of the noise protects nobody"
                )
            return self
        if self.strategy.name in NEEDS_CLEAR_UPDATES:
            raise ValueError(
                f"expected a strategy that works on sums with secure_aggregation, got "
                f"{self.strategy.name}, which looks at each site's update"
            )
        if self.transport.update_encoding != "fp32":
            raise ValueError(
                'expected transport.update_encoding = "fp32" with secure_aggregation, whose sums '
                "have a fixed point of their own"
            )
        return self


def config_digest(config: FederationConfig) -> str:
    """Digest of everything that decides a run's result."""
    speed = {"simulation": {"workers", "threads_per_worker"}}
    return json_digest(config.model_dump(mode="json", exclude=speed))
