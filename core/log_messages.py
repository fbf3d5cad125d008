"""Documents of a run's log: what its holder signs, and what a site is shown and signs in turn."""

from typing import Annotated, Final, Literal

from pydantic import Field

from core.config_sections import Digest, Name
from core.messages import RunId, WireMessage
from core.wire.documents import PublicKey, Signature

LOG_KEY_FILE: Final = "log.key"
CHECKPOINT_FILE: Final = "log.checkpoint"
SIGNED_LOG_FILE: Final = "log.signed"

# A tree of 2^63 leaves has no longer one.
Proof = Annotated[tuple[Digest, ...], Field(max_length=64)]
Size = Annotated[int, Field(ge=0, lt=2**53)]


class Checkpoint(WireMessage):
    """A log's length and root, as its holder stands by them."""

    run_id: RunId
    """The run whose record the log is."""
    size: Size
    """Leaves."""
    root: Digest
    """Root of the tree over them."""
    signature: Signature
    """By the run's log key (purpose ``log-checkpoint``)."""


class LogLine(WireMessage):
    """One leaf, and the proof that it is in the tree."""

    index: Size
    """Its place, from 0."""
    line: Annotated[str, Field(max_length=128 * 1024)]
    """The record's line, without its newline."""
    proof: Proof
    """Inclusion in the checkpoint's tree."""


class WitnessOrder(WireMessage):
    """Asks a site to sign a checkpoint, with what it needs to check it."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    site: Name
    """Whom this is for."""
    log_key: PublicKey
    """The run's log key."""
    checkpoint: Checkpoint
    """What is to be signed."""
    since: Size
    """The size that this continues: of the checkpoint that the site signed last; 0 for none."""
    consistency: Proof
    """That the tree continues the one of that size."""
    lines: Annotated[tuple[LogLine, ...], Field(max_length=4096)]
    """All lines since that name the site."""


class CosignBody(WireMessage):
    """What a site's ledger says of a run's log."""

    site: Name
    """The site."""
    run_id: RunId
    """The run."""
    log_key: PublicKey
    """Of the run's log, pinned with the first of these entries."""
    size: Size
    """Of the checkpoint."""
    root: Digest
    """Of the checkpoint."""
    lines: Size
    """How many lines name the site up to there, all of them checked by it. Who has the whole log
    counts them: none was kept from the site."""


class Cosignature(WireMessage):
    """An entry of a site's ledger that signs a checkpoint, verifiable without the ledger."""

    public_key: PublicKey
    """The ledger's key."""
    sequence: int = Field(ge=2)
    """The entry's place in the ledger."""
    time: Annotated[str, Field(max_length=32)]
    """By the site's clock."""
    body: CosignBody
    """What it says."""
    previous: Digest
    """Hash of the entry before: the cosignature stands for the whole ledger up to there."""
    signature: Signature
    """The entry's."""


class WitnessReply(WireMessage):
    """What a site has signed of a run's log."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    cosignature: Cosignature | None
    """The newest; of another size than was asked where the order did not continue it. ``None``
    where the site has signed none and the order continues one."""


class SignedLog(WireMessage):
    """A log's newest checkpoint and who has signed it."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    log_key: PublicKey
    """The run's log key."""
    checkpoint: Checkpoint
    """By the log's holder."""
    cosignatures: Annotated[tuple[Cosignature, ...], Field(max_length=4096)] = ()
    """By the sites, in the order of their names."""
