"""The federation's file (shared, public), and the sections that a site's file shares with it.

Pydantic stands in the modules of configuration and messages only. Every model is frozen and strict,
refuses unknown keys, NaN and infinity. The text under each field is its reference documentation.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.digests import json_digest
from core.model import ModelConfig
from core.train import TrainConfig
from core.update_codec import UpdateEncoding

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# A site may hold this many times its public size before it must declare a larger one.
MAX_EXAMPLES_RATIO = 1.25
# Poisson batches are cut at this many times their expected size; see docs on sampling.
MAX_BATCH_RATIO = 2


class Section(BaseModel):
    """What all parts of a configuration share."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


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


class TaskSection(Section):
    """What is learned."""

    kind: Literal["causal-lm", "classification"]
    """The task."""
    labels: tuple[str, ...] = ()
    """Classification: the label values, in the order of their class numbers. Public."""
    pooling: Literal["first", "mean", "last"] = "mean"
    """Classification: which hidden state the head reads."""

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Self:
        if (self.kind == "classification") != (len(self.labels) >= 2):
            raise ValueError("expected two or more `labels` for classification and none elsewhere")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("expected `labels` without repetition")
        return self


class PrivacySection(Section):
    """The privacy that every site gives its records."""

    mode: Literal["local", "none"] = "local"
    """``local``: DP-SGD at each site with its full noise. ``none``: no privacy at all; a site
    takes part only if its policy says ``allow_non_private``."""
    unit: Literal["record"] = "record"
    """Unit of privacy; neighbouring data sets differ by adding or removing one."""
    target_epsilon: float | None = Field(default=None, gt=0)
    """Epsilon of a site over the whole run; the noise is calibrated to it."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Noise over clip, instead of ``target_epsilon``."""
    target_delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """Delta; smaller than one over the number of records of any site."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Bound on the L2 norm of what each example adds to a step's sum."""
    clipping: Literal["flat", "per_layer", "automatic"] = "flat"
    """How that bound is kept. ``flat``: an example's whole gradient is scaled down to it if it is
    longer. ``per_layer``: each trained parameter's to an equal share, the bound over the root of
    their number. ``automatic``: each example's whole gradient is normalised to it, so that the
    bound becomes a part of the learning rate. The noise for one epsilon is the same."""
    gradient_mode: Literal["hooks", "ghost", "one_backward"] = "hooks"
    """How per-sample clipping is computed: Opacus hooks, Opacus ghost clipping, or one backward
    pass that computes no gradient but what is summed."""

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> Self:
        given = (self.target_epsilon is not None) + (self.noise_multiplier is not None)
        if self.mode == "local" and given != 1:
            raise ValueError("expected one of `target_epsilon` and `noise_multiplier`")
        if self.mode == "none" and given:
            raise ValueError('mode "none" has no epsilon: remove it, or set mode = "local"')
        return self


class StrategySection(Section):
    """How sites are sampled and their updates aggregated."""

    name: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    """Flower's strategy."""
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


class ColumnsSection(Section):
    """Which column means what."""

    text: str = "text"
    """The text."""
    label: str | None = None
    """The label, for classification."""
    person: str | None = None
    """Whom the record is about."""
    groups: tuple[str, ...] = ()
    """Attributes for fairness, such as sex; they never leave the site."""


class DataSection(Section):
    """Where records come from."""

    format: Literal["jsonl", "csv", "parquet", "text", "clinic"]
    """``text``: one record a line. ``clinic``: the embedded generated example."""
    path: Path | None = None
    """The data file; relative to this file."""
    hospital: str | None = None
    """``clinic``: which hospital, or ``holdout`` for the public one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """``clinic``: seed of the generated records."""
    columns: ColumnsSection = ColumnsSection()
    """The columns; the embedded example brings its own."""

    @model_validator(mode="after")
    def _a_place_to_read_from(self) -> Self:
        if (self.format == "clinic") != (self.path is None):
            raise ValueError('expected `path` for a file format and none for "clinic"')
        if (self.format == "clinic") != (self.hospital is not None):
            raise ValueError('expected `hospital` for "clinic" and only there')
        return self


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


def largest_data_set(num_examples: int) -> int:
    """The largest data set that a declared size stands for."""
    return math.ceil(num_examples * MAX_EXAMPLES_RATIO)


class MemberSection(Section):
    """What the federation knows of a site."""

    name: Name
    """The site's name."""
    num_examples: int = Field(ge=1, le=10**12)
    """The site's *public* size: a rounded figure that it declares and that does not follow its
    data. Weight of its update, and denominator of its sampling rate."""

    @property
    def max_examples(self) -> int:
        """The largest data set that the declared size stands for."""
        return largest_data_set(self.num_examples)


class PolicySection(Section):
    """What a site allows. Everything not allowed here is refused."""

    allowed_tasks: tuple[Digest, ...] = ()
    """Task hashes the site's people have read and approved (``cloister simulate --print-task``)."""
    max_epsilon: float = Field(gt=0)
    """Cap over the site's whole life, over all runs."""
    max_delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """The delta at which the cap holds; no task may ask for a larger one."""
    max_rounds: int = Field(default=1000, ge=0)
    """Rounds of one run."""
    max_steps_per_round: int = Field(default=10_000, ge=1)
    """Steps of one round."""
    max_grad_norm: float = Field(default=10.0, gt=0)
    """The largest clip a task may ask for."""
    min_noise_multiplier: float = Field(default=0.3, gt=0)
    """The smallest noise a task may ask for."""
    allow_non_private: bool = False
    """Take part in runs without privacy. The ledger then says that nothing is protected."""
    allow_test_noise: bool = False
    """Take part in tests with predictable noise. The ledger then says that nothing is protected."""


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
        if self.privacy.mode == "local" and self.train.max_update_norm > 0:
            raise ValueError(
                "expected train.max_update_norm only without privacy: "
                "privacy.max_grad_norm clips each example"
            )
        if isinstance(self.model, ModelConfig) and self.model.dropout > 0:
            raise ValueError(
                "expected model.dropout = 0: dropout draws from a generator that sites on worker "
                "threads share, so that runs could not be repeated"
            )
        return self


def config_digest(config: FederationConfig) -> str:
    """Digest of everything that decides a run's result."""
    speed = {"simulation": {"workers", "threads_per_worker"}}
    return json_digest(config.model_dump(mode="json", exclude=speed))
