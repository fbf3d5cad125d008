"""What is audited: a run directory, checked to be whole before any test looks at it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from core.audit_seed import AuditSeed
from core.blueprint import Blueprint, make_blueprint
from core.config import FederationConfig, config_digest
from core.config_files import load_config, parse_config
from core.config_sections import DataSection
from core.data.held_out import Split, hold_out
from core.data.partition import partition
from core.data.records import RecordSource
from core.data.sources import open_source
from core.digests import arrays_digest
from core.errors import CloisterError, SubjectError
from core.messages import DpSgdTerms
from core.model_folder import LoadedModel, load_model
from core.parameters import to_arrays
from core.run_record import (
    RECORD_FILE,
    RUN_FILE,
    TERMS_FILE,
    Line,
    RoundResult,
    RunRecord,
    beginning_of,
    read_record,
    read_terms,
)
from core.site_config import SiteConfig
from privacy.dp_sgd import DpSgdPlan
from privacy.ledger import Ledger
from privacy.ledger_entries import Entry

MODEL_FOLDER: Final = "model"


@dataclass(frozen=True)
class AuditedSite:
    """One site, as far as it is at hand."""

    name: str
    num_examples: int
    """Its public size."""
    terms: DpSgdTerms | None
    """Its public constants; ``None`` without privacy."""
    ledger: tuple[Entry, ...] | None
    """Its ledger, verified; ``None`` where it lies elsewhere."""
    split: Split | None = field(repr=False)
    """Its records; ``None`` where they are not at hand, as with any deployed site."""

    @property
    def members(self) -> RecordSource:
        """The records that it trained on.

        Raises:
            SubjectError: They are not at hand.
        """
        return self._present().members

    @property
    def held_out(self) -> RecordSource:
        """The records that no training saw.

        Raises:
            SubjectError: They are not at hand.
        """
        return self._present().held_out

    def _present(self) -> Split:
        if self.split is None:
            raise SubjectError(f"expected the records of {self.name} at hand, got none")
        return self.split


@dataclass(frozen=True)
class Subject:
    """All that tests may look at."""

    folder: Path
    config: FederationConfig
    record: RunRecord
    blueprint: Blueprint
    model: LoadedModel
    """The model that is to be released; its digest is the run's."""
    sites: Mapping[str, AuditedSite]
    seed: AuditSeed
    """Every test takes its randomness from here; see ``AuditSeed.generator``."""
    device: torch.device
    packs: Mapping[str, Path] = field(default_factory=dict)
    """Files of optional packs of texts, by name."""
    federated: Any = None
    """What the sites said of themselves; see ``audit.federated_counts``."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.record.header["run_id"])

    @property
    def with_records(self) -> dict[str, AuditedSite]:
        """The sites whose records are at hand."""
        return {name: site for name, site in self.sites.items() if site.split is not None}

    @property
    def private(self) -> bool:
        """Whether the run had differential privacy."""
        return self.config.privacy.mode != "none"

    def public_records(self) -> RecordSource | None:
        """The public holdout; ``None`` where there is none or it is not at hand."""
        section = self.config.evaluation.holdout
        return None if section is None else _open(section, self.config)

    def plan(self, site: AuditedSite, *, steps: int | None = None) -> DpSgdPlan | None:
        """The constants of one round at ``site``, as they were debited; of mode ``local``."""
        if site.terms is None or self.config.privacy.mode != "local":
            return None
        return DpSgdPlan(
            noise_multiplier=site.terms.noise_multiplier,
            max_grad_norm=self.config.privacy.max_grad_norm,
            sample_rate=site.terms.sample_rate,
            expected_batch_size=self.config.train.global_batch_size,
            max_batch_size=site.terms.max_batch_size,
            max_examples=site.terms.max_examples,
            steps=self.config.train.steps_per_round if steps is None else steps,
            gradient_mode=self.config.privacy.gradient_mode,
            clipping=self.config.privacy.clipping,
        )

    def initial_model(self) -> nn.Module:
        """The model before the first round."""
        return self.blueprint.build().to(self.device)


def open_subject(
    folder: Path, *, device: torch.device | None = None, packs: Mapping[str, Path] | None = None
) -> Subject:
    """Reads a run directory of ``simulate``, or one that a coordinator exported.

    **Guarantees**: Returns only where configuration, gates and privacy constants are those that the
    first line of the record names, the seed the one that was committed to, the model the one that
    the last round left, and every ledger that lies here whole and signed. That the record is what
    was signed, ``read_log`` checks.

    Raises:
        SubjectError: It is not a run's directory, is not whole, or its parts do not belong
            together.
        CloisterError: A ledger, a checkpoint or a data file cannot be used.
    """
    try:
        record = read_record(folder)
    except CloisterError as error:
        raise SubjectError(
            error.message, hint="name the folder that simulate or export wrote"
        ) from error
    header = record.header
    config = _config(folder, header)
    _check_beginning(folder, record)
    seed = AuditSeed.existing(folder)
    if seed.commitment != header["audit_commitment"]:
        raise SubjectError(
            f"expected the audit's seed that the run in {folder} committed to, got another",
            hint="a run directory is copied whole, with its audit.seed",
        )
    rounds = _rounds(folder, record)
    if not rounds or rounds[-1]["server_round"] < config.federation.num_rounds:
        raise SubjectError(
            f"expected a run that has ended in {folder}, got one that has not",
            hint="run the same command again: an interrupted run goes on",
        )
    blueprint = make_blueprint(config)
    model = _checked_model(folder, blueprint, rounds[-1]["weights_digest"], header["run_id"])
    return Subject(
        folder=folder,
        config=config,
        record=record,
        blueprint=blueprint,
        model=model,
        sites=_open_sites(folder, config, seed),
        seed=seed,
        device=device or torch.device("cpu"),
        packs=packs or {},
    )


def _config(folder: Path, header: Line) -> FederationConfig:
    try:
        config = parse_config(FederationConfig, header["config"], origin=str(folder / RUN_FILE))
    except CloisterError as error:
        raise SubjectError(error.message, hint="another version may have made this run") from error
    if config_digest(config) != header["config_digest"]:
        raise SubjectError(
            f"expected the configuration that the run in {folder} recorded, got another",
            hint=f"restore {RUN_FILE}: what a run is held to is not changed after it",
        )
    return config


def _rounds(folder: Path, record: RunRecord) -> list[Line]:
    """The rounds that count, each of them whole: tests take what they need without asking."""
    try:
        rounds = record.rounds
        for line in rounds:
            RoundResult.from_line(line)
    except (KeyError, TypeError, ValueError, AttributeError, CloisterError) as error:
        raise SubjectError(
            f"expected the rounds of a run in {folder / RECORD_FILE}, got other lines",
            hint="restore the file: a record is not changed after the run",
        ) from error
    return rounds


def _check_beginning(folder: Path, record: RunRecord) -> None:
    """Else whoever has the folder could choose gates, held-out records and claims afterwards."""
    if not record.beginning:
        raise SubjectError(
            f"expected a record in {folder} that begins with what the run is held to, got none",
            hint="an older version made this run, and it cannot be audited: run it again",
        )
    if record.beginning != beginning_of(folder):
        raise SubjectError(
            f"expected {RUN_FILE} and {TERMS_FILE} in {folder} as the run began with them, "
            "got others",
            hint="restore the two files: what a run is held to is not changed after it",
        )


def _checked_model(folder: Path, blueprint: Blueprint, digest: str, run_id: str) -> LoadedModel:
    model = load_model(folder / MODEL_FOLDER)
    trained = to_arrays(blueprint.build()).keys()
    weights = to_arrays(model.model, all_parameters=True)
    if not trained <= weights.keys() or model.metadata.get("run_id") != run_id:
        raise SubjectError(f"expected the model of run {run_id} in {folder}, got another")
    found = arrays_digest({name: weights[name] for name in trained})
    if found != digest:
        raise SubjectError(
            f"expected the weights {digest[:16]}... of the run's last round in {folder}, "
            f"got {found[:16]}...",
            hint="this model is not what the run left: an audit of it would say nothing of the run",
        )
    model.model.eval()
    return model


def _open_sites(folder: Path, config: FederationConfig, seed: AuditSeed) -> dict[str, AuditedSite]:
    terms = read_terms(folder)
    files = _site_files(config)
    parts = _parts(config)
    sites = {}
    for member in config.sites:
        if member.name not in terms:
            continue  # not asked in this run
        file = files.get(member.name)
        source = parts.get(member.name)
        if file is not None:
            source = _open(file.data, config)
        split = None
        if source is not None:
            key = seed.key(f"hold-out/{member.name}")
            split = hold_out(source, config.audit.holdout_fraction, key)
        place = Path("ledger.sqlite") if file is None else file.ledger.path
        sites[member.name] = AuditedSite(
            name=member.name,
            num_examples=member.num_examples,
            terms=terms[member.name],
            ledger=_ledger(folder / "sites" / member.name / place, member.name),
            split=split,
        )
    return sites


def _site_files(config: FederationConfig) -> dict[str, SiteConfig]:
    """The sites' files, where they lie on this machine."""
    if config.simulation is None:
        return {}
    found = [path for path in config.simulation.site_files if path.exists()]
    return {file.site.name: file for file in (load_config(SiteConfig, path) for path in found)}


def _parts(config: FederationConfig) -> Mapping[str, RecordSource]:
    """The sites that a simulation cut out of one file, where that lies on this machine."""
    cut = None if config.simulation is None else config.simulation.partition
    source = None if cut is None else _open(cut.data, config)
    if cut is None or source is None:
        return {}
    names = sorted(site.name for site in config.sites)
    parts = partition(
        source,
        len(names),
        scheme=cut.scheme,
        alpha=cut.alpha,
        column=cut.column,
        seed=config.federation.seed,
    )
    return dict(zip(names, parts, strict=True))


def _open(section: DataSection, config: FederationConfig) -> RecordSource | None:
    if section.path is not None and not section.path.exists():
        return None
    return open_source(section, labels=config.task.labels)


def _ledger(path: Path, site: str) -> tuple[Entry, ...] | None:
    if not path.exists():
        return None
    with Ledger.open(path, site=site) as ledger:
        return ledger.entries()
