"""What is installed at a site: from its file to the data, the policy and the model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from client.crew import CrewPlan
from client.log_witness import ledger_witness
from client.site import Site, TestRandomness, Workshop, check_size, fresh_randomness
from client.standing import Standing
from core.audit_seed import AuditSeed
from core.blueprint import Blueprint, make_blueprint, training_terms
from core.config import FederationConfig
from core.config_files import load_config
from core.data.dataset import TokenizedDataset
from core.data.held_out import Split, hold_out
from core.data.records import RecordSource
from core.data.sources import open_source
from core.errors import ConfigError
from core.messages import TrainingTerms, TrainTask
from core.site_config import SiteConfig
from privacy.ledger import Ledger
from privacy.random_source import RandomSource


@dataclass(frozen=True)
class Installation:
    """A site's configuration and the federation's, as they are installed here."""

    config: SiteConfig
    federation: FederationConfig
    ledger_path: Path

    @classmethod
    def read(cls, path: Path, config: SiteConfig) -> "Installation":
        """Reads the federation's file that the site's file names.

        Args:
            path: The site's file.
            config: What it says.

        Raises:
            ConfigError: It names none, or one that does not fit the site.
        """
        if config.site.federation is None:
            raise ConfigError(
                f"expected site.federation in {path}, got none",
                hint="name the federation's file that is installed here",
            )
        federation = load_config(FederationConfig, config.site.federation)
        _check_membership(config, federation)
        return cls(config, federation, ledger_path(path, config))

    def blueprint(self) -> Blueprint:
        """How the model is built."""
        return make_blueprint(self.federation)

    def terms(self, blueprint: Blueprint) -> TrainingTerms:
        """What the site's people approve."""
        return training_terms(self.federation, blueprint)

    def split(self) -> Split:
        """The site's records, opened and checked, and those that it holds out of training.

        Raises:
            DataError: They cannot be used.
            AuditError: The key that holds records out cannot be kept beside the ledger.
        """
        source = open_source(self.config.data, labels=self.federation.task.labels)
        fraction = self.federation.audit.holdout_fraction
        if fraction == 0.0:
            return hold_out(source, fraction, b"")
        seed = AuditSeed.of_folder(self.ledger_path.parent)
        return hold_out(source, fraction, seed.key(f"hold-out/{self.config.site.name}"))

    def records(self) -> RecordSource:
        """The records that the site trains on; errors as for ``split``."""
        return self.split().members

    def open_site(self, blueprint: Blueprint, standing: Standing | None = None) -> Site:
        """The site, ready for its first round.

        Raises:
            DataError: The data cannot be used.
            PrivacyError: There are more records than the declared size stands for.
        """
        config, split = self.config, self.split()
        open_ledger = partial(Ledger.open, self.ledger_path, site=config.site.name)
        site = Site(
            name=config.site.name,
            policy=config.policy,
            data=TokenizedDataset(split.members, blueprint.task),
            open_ledger=open_ledger,
            randomness=self._randomness(),
            num_examples=config.site.num_examples,
            standing=standing,
            split=split,
            audit=self.federation.audit,
            witness=ledger_witness(open_ledger),
        )
        if self.federation.privacy.mode != "none":
            check_size(site)
        return site

    def open_workshop(self, blueprint: Blueprint, *, rank: int = 0, size: int = 1) -> Workshop:
        """The model, on this machine's accelerator where there is one.

        Args:
            blueprint: How the model is built.
            rank: This process's number, where several share a round.
            size: How many do.

        Raises:
            ConfigError: There are accelerators, and fewer than processes.
        """
        if not torch.cuda.is_available():
            return Workshop(blueprint, torch.device("cpu"))
        if torch.cuda.device_count() < size:
            raise ConfigError(
                f"expected a GPU for each of {size} processes, got {torch.cuda.device_count()}",
                hint="lower service.processes, or hide the GPUs: CUDA_VISIBLE_DEVICES=",
            )
        return Workshop(blueprint, torch.device("cuda", rank) if size > 1 else torch.device("cuda"))

    def crew_plan(self, blueprint: Blueprint, size: int) -> CrewPlan:
        """What the processes of this site hold to."""
        # Terms take a whole model to make, and a lone process agrees with itself.
        task_digest = self.terms(blueprint).digest() if size > 1 else ""
        return CrewPlan(
            size=size,
            service=self.config.service,
            task_digest=task_digest,
            micro_batch_size=self.federation.train.micro_batch_size,
        )

    def _randomness(self) -> Callable[[TrainTask], RandomSource]:
        key = self.config.site.test_noise_key
        return fresh_randomness if key is None else TestRandomness(bytes.fromhex(key))


def ledger_path(path: Path, config: SiteConfig) -> Path:
    """Where the ledger of the site of the file ``path`` lies."""
    return (path.parent / config.ledger.path).resolve()


def _check_membership(config: SiteConfig, federation: FederationConfig) -> None:
    site = config.site
    sizes = {member.name: member.num_examples for member in federation.sites}
    if site.name not in sizes:
        raise ConfigError(
            f"expected {site.name} among the federation's sites, got {', '.join(sorted(sizes)[:8])}"
        )
    if site.num_examples is None and federation.privacy.mode != "none":
        raise ConfigError(
            "expected site.num_examples for a private run, got none",
            hint=f"declare it: the federation's file says {sizes[site.name]}",
        )
    if site.num_examples is not None and site.num_examples != sizes[site.name]:
        raise ConfigError(
            f"expected site.num_examples = {sizes[site.name]} as in the federation's file, "
            f"got {site.num_examples}",
            hint="the federation's file must name the size that the site declared",
        )
    if site.test_noise_key is not None and not config.policy.allow_test_noise:
        raise ConfigError(
            "expected policy.allow_test_noise = true beside site.test_noise_key, got false",
            hint="remove the key: with it, the noise protects nobody",
        )
