"""What attestations rest on besides the report: the run's log, the ledgers, the model's files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from audit.attestation.run_log import read_log
from audit.subject import MODEL_FOLDER, Subject
from core.config import FederationConfig
from core.errors import AttestationError
from core.log_messages import SignedLog
from core.model import ModelConfig
from privacy.ledger_entries import Entry


@dataclass(frozen=True)
class ModelFacts:
    """What is public of a model, for cards."""

    name: str
    task: str
    """Such as ``classification``."""
    labels: tuple[str, ...]
    architecture: str
    """In words."""
    num_rounds: int
    files: Mapping[str, str]
    """SHA-256 of each file of its folder, by name."""

    @classmethod
    def of(cls, config: FederationConfig, folder: Path) -> "ModelFacts":
        """The facts of the model in ``folder``.

        Raises:
            AttestationError: A file cannot be read.
        """
        model = config.model
        try:
            files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
        except OSError as error:
            raise AttestationError(f"cannot read the model {folder}: {error.strerror}") from error
        if isinstance(model, ModelConfig):
            shape = f"{model.n_layer} layers of width {model.n_embd} with {model.n_head} heads"
        else:
            shape = f"fine-tuned from {model.pretrained.name}"
        return cls(
            name=config.federation.name,
            task=config.task.kind,
            labels=config.task.labels,
            architecture=f"Transformer, {shape}",
            num_rounds=config.federation.num_rounds,
            files=files,
        )


@dataclass(frozen=True)
class Evidence:
    """What an auditor has at hand."""

    record: bytes
    """The run's ``record.jsonl``."""
    log: SignedLog
    """Who signed it."""
    ledgers: Mapping[str, tuple[Entry, ...]]
    """The sites' ledgers that are at hand, verified."""
    model: ModelFacts


def gather_evidence(subject: Subject) -> Evidence:
    """What lies in the run's folder.

    **Guarantees**: Returns only where the record is, byte for byte, what the run's log key signed,
    and every cosignature is of it.

    Raises:
        LogTamperedError: It is not.
        AttestationError: The run has no signed log, or a file cannot be read.
    """
    record, log = read_log(subject.folder)
    return Evidence(
        record=record,
        log=log,
        ledgers={n: site.ledger for n, site in subject.sites.items() if site.ledger is not None},
        model=ModelFacts.of(subject.config, subject.folder / MODEL_FOLDER),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
