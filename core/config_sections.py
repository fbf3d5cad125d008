"""Sections that the federation's file, a site's file and messages share, and what all are made of.

Every model is frozen and strict, refuses unknown keys, NaN and infinity. The text under each field
is its reference documentation.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# A site may hold this many times its public size before it must declare a larger one.
MAX_EXAMPLES_RATIO = 1.25


class Section(BaseModel):
    """What all parts of a configuration share."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


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

    mode: Literal["local", "distributed", "none"] = "local"
    """``local``: DP-SGD at each site with its full noise. ``distributed``: each round is one step
    of DP-SGD over the union of the sites, whose noise is the sum of their shares; only under
    secure aggregation. ``none``: no privacy at all; a site takes part only if its policy says
    ``allow_non_private``."""
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
        if self.mode != "none" and given != 1:
            raise ValueError("expected one of `target_epsilon` and `noise_multiplier`")
        if self.mode == "none" and given:
            raise ValueError('mode "none" has no epsilon: remove it, or set mode = "local"')
        return self


class SecureAggregationSection(Section):
    """Secure aggregation: the coordinator opens the sum of the updates and nothing else."""

    min_cohort: int = Field(default=3, ge=3)
    """The sum holds the updates of at least so many sites, or is not opened."""
    max_update_norm: float = Field(default=1.0, gt=0, le=1e12)
    """A site whose update is longer (L2) scales it down to this norm: it is the range of the fixed
    point. Not used with ``privacy.mode = "distributed"``."""
    bits: int = Field(default=24, ge=8, le=24)
    """Of one coordinate of one update; fewer where so many sites would overflow 32 bits. Not used
    with ``privacy.mode = "distributed"``."""
    colluding_sites: int = Field(default=1, ge=0)
    """The masks hold although so many sites side with the coordinator, and with
    ``privacy.mode = "distributed"`` the noise suffices without theirs. A site takes no part in a
    cohort too small for that."""
    exchange_timeout_seconds: float = Field(default=60.0, gt=0)
    """A site that answers later than this in one of the four exchanges after the training counts
    as dropped out."""


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
    secure_aggregation: Literal["required", "allowed", "off"] = "allowed"
    """Take part only where the coordinator opens sums alone; or also where it sees this site's
    update; or only there."""
    min_cohort: int = Field(default=3, ge=3)
    """Under secure aggregation: sums of fewer sites than this are refused."""
    audit: Literal["noised", "off"] = "noised"
    """Answer an audit that asks for counts and histograms, noised and debited; or refuse."""
    allow_non_private: bool = False
    """Take part in runs without privacy. The ledger then says that nothing is protected."""
    allow_test_noise: bool = False
    """Take part in tests with predictable noise. The ledger then says that nothing is protected."""


# Without hyphens: keys of objects are converted on the wire.
AttributeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,63}$")]
GroupName = Annotated[str, Field(min_length=1, max_length=64)]


class GatesSection(Section):
    """What must hold before a model counts as released; a gate that cannot be decided fails."""

    max_membership_auc: float | None = Field(default=None, ge=0.5, le=1)
    """Upper confidence limit of the best membership attack's area under the curve."""
    max_gap: float | None = Field(default=None, gt=0, le=1)
    """Lower confidence limit of the largest gap between groups, in accuracy."""
    epsilon_proven_within_claim: bool = True
    """No lower bound on epsilon that an attack proved lies above the claimed epsilon."""
    conformance: bool = True
    """No test of conformance failed."""


class AuditSection(Section):
    """What the federation agreed to have audited; public."""

    holdout_fraction: float = Field(default=0.0, ge=0, lt=0.9)
    """Each site keeps this share of its records (of its persons, where it names them) out of
    training, so that membership can be tested on the released model. Chosen by a secret key of the
    site's own, record by record."""
    attributes: dict[
        Name, Annotated[tuple[GroupName, ...], Field(min_length=2, max_length=32)]
    ] = {}
    """The attributes, among the sites' columns of ``groups``, by which fairness is tested, each
    with all its values: written down here, so that no table's shape follows from records."""
    epsilon: float = Field(default=0.5, gt=0)
    """What a site's counts and histograms for one audit cost, in all, by the discrete Laplace
    mechanism; debited in its ledger like everything else."""
    tolerance: float = Field(default=0.1, gt=0, le=1)
    """A gap between groups fails where it is surely larger than this."""
    gates: GatesSection = GatesSection()
    """What must hold before a model counts as released."""
