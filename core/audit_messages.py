"""What the coordinator and a site say to each other in an audit: counts, and nothing else.

Encoded and parsed by ``core.messages.encode`` and ``decode``. The released weights travel with
the order, so that the site evaluates the very model that its people will meet.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from core.config import FederationConfig
from core.config_sections import AttributeName, Digest, GroupName, Name
from core.digests import json_digest
from core.messages import LedgerHead, RunId, SpentBudget, Text, TrainingTerms, WireMessage
from core.record_counts import MAX_CELLS, CountShape

AUDIT: Final = "query.audit"
"""Type of the message; it bears the released weights, and its answer no arrays."""
AUDIT_FILE: Final = "audit-counts.json"
"""What the sites said, in the run's folder."""
MAX_COUNT: Final = 2**53
MAX_CHECKPOINT_CHARACTERS: Final = 96 * 1024
MAX_COSIGNATURE_CHARACTERS: Final = 16 * 1024

Count = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]


class AuditedAttribute(WireMessage):
    """An attribute and all its values; in a list, because the keys of an object are converted."""

    name: AttributeName
    """The site's column."""
    values: Annotated[tuple[GroupName, ...], Field(min_length=2, max_length=32)]
    """In the order of the table's axis."""


class CountsQuestion(WireMessage):
    """What is asked, of which model: the same for all sites."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    run_id: RunId
    """The run that left the model."""
    attempt: int = Field(ge=1, le=2**53)
    """Higher each time that the sites are asked of the same model: each time costs anew."""
    arrays_digest: Digest
    """Digest of the released weights."""
    attributes: Annotated[tuple[AuditedAttribute, ...], Field(max_length=32)]
    """By name."""
    labels: Annotated[tuple[str, ...], Field(max_length=128)]
    """Of the task; none for a task without classes."""
    edges: Annotated[tuple[float, ...], Field(min_length=3, max_length=256)]
    """Of the histogram of losses, ascending."""
    epsilon: float = Field(gt=0)
    """What all of one site's answer costs."""

    @model_validator(mode="after")
    def _a_shape_that_can_be(self) -> Self:
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("expected `edges` in ascending order")
        names = [attribute.name for attribute in self.attributes]
        if names != sorted(set(names)):
            raise ValueError("expected `attributes` by name, each once")
        if any(len(set(a.values)) != len(a.values) for a in self.attributes):
            raise ValueError("expected `values` without repetition")
        if self.shape.num_cells > MAX_CELLS:
            raise ValueError(f"expected a table of at most {MAX_CELLS} cells")
        return self

    @property
    def shape(self) -> CountShape:
        """What is counted."""
        attributes = tuple((each.name, each.values) for each in self.attributes)
        return CountShape(attributes, self.labels, self.edges)


class AuditOrder(CountsQuestion):
    """The order for one site."""

    site: Name
    """Whom this is for."""
    terms: TrainingTerms
    """What the run's sites approved."""
    task_digest: Digest
    """Digest of ``terms``."""
    ledger_witness: LedgerHead | None = None
    """The last ledger head that the coordinator saw of this site."""
    checkpoint: str = Field(default="", max_length=MAX_CHECKPOINT_CHARACTERS)
    """A checkpoint of the federation's log, as JSON, for the site to verify and co-sign."""

    @property
    def server_round(self) -> int:
        """No round: what a refusal of this order says."""
        return 0

    @property
    def debit_id(self) -> str:
        """Whose debit it is in the ledger: not the run's, whose orders go on as they were.

        The same for whatever is asked of the same model, so that the attempts count up.
        """
        return json_digest(["audit", self.run_id, self.arrays_digest])[:16]


class AuditReply(WireMessage):
    """A site's counts. What was computed from records is in ``cells`` and ``histogram`` alone."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    run_id: RunId
    """The order's run."""
    attempt: int = Field(ge=1, le=2**53)
    """The order's attempt."""
    site: Name
    """Who replies."""
    task_digest: Digest
    """The order's ``task_digest``."""
    arrays_digest: Digest
    """The order's ``arrays_digest``."""
    cells: Annotated[tuple[Count, ...], Field(max_length=MAX_CELLS)]
    """The table, row by row; empty for a task without classes."""
    histogram: Annotated[tuple[Count, ...], Field(max_length=512)]
    """Members' bins, then those of the records held out."""
    scale: float | None = Field(gt=0)
    """Of the discrete Laplace noise on every number; ``None`` where nothing protects them."""
    spent: SpentBudget
    """The ledger after this audit."""
    ledger_head: LedgerHead
    """For the coordinator to remember."""
    cosignature: str = Field(default="", max_length=MAX_COSIGNATURE_CHARACTERS)
    """The site's signature of the order's checkpoint, as JSON; empty where there was none."""


class AbsentSite(WireMessage):
    """A site that gave no counts."""

    site: Name
    """Which."""
    code: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,63}$")]
    """The name of the reason, such as ``policy-refused``."""
    message: Text
    """The reason."""


class CountsDocument(WireMessage):
    """The file ``audit-counts.json``: what was asked and what each site said."""

    question: CountsQuestion
    """To all sites."""
    task_digest: Digest
    """What the sites approved."""
    replies: tuple[AuditReply, ...]
    """By site."""
    absent: tuple[AbsentSite, ...] = ()
    """By site."""


def audit_order(
    config: FederationConfig,
    terms: TrainingTerms,
    *,
    run_id: str,
    attempt: int,
    arrays_digest: str,
    site: str,
) -> AuditOrder:
    """What a federation's file has asked of the model that a run left.

    Raises:
        AuditError: Its attributes make too large a table.
    """
    shape = CountShape.of(config.audit, config.task, terms.model.vocab_size)
    return AuditOrder(
        run_id=run_id,
        attempt=attempt,
        arrays_digest=arrays_digest,
        attributes=tuple(AuditedAttribute(name=n, values=v) for n, v in shape.attributes),
        labels=shape.labels,
        edges=shape.edges,
        epsilon=config.audit.epsilon,
        site=site,
        terms=terms,
        task_digest=terms.digest(),
    )
