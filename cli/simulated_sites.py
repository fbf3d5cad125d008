"""The sites of a simulation: their data, policies and ledgers, opened before any training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from client.log_witness import ledger_witness
from client.site import Site, TestRandomness, check_size, fresh_randomness
from client.standing import PinnedInMemory, Standing
from core.audit_seed import AuditSeed
from core.blueprint import Blueprint
from core.config import EvaluationSection, FederationConfig, SimulationSection
from core.config_files import load_config
from core.config_sections import AuditSection, DataSection, MemberSection, PolicySection
from core.data.dataset import TokenizedDataset
from core.data.held_out import Split, hold_out
from core.data.partition import partition
from core.data.records import RecordSource
from core.data.sources import open_source
from core.errors import ConfigError
from core.messages import TrainingTerms
from core.site_config import SiteConfig
from core.wire.documents import Roster, RosterMember, SignedRoster
from privacy.identities.clock import utc_now, write_timestamp
from privacy.identities.roster import sign_roster
from privacy.ledger import Ledger
from privacy.signing import SiteKey

_LONGEST_SIMULATION: Final = timedelta(days=3650)


def simulation_of(config: FederationConfig, path: Path) -> SimulationSection:
    """How the sites of the federation's file at ``path`` are played.

    Raises:
        ConfigError: The file does not say.
    """
    if config.simulation is None:
        raise ConfigError(
            f"expected a section [simulation] in {path}, got none",
            hint="name a site file for each site, or a data file to cut",
        )
    return config.simulation


def chosen_members(config: FederationConfig, simulation: SimulationSection) -> list[MemberSection]:
    """The members to simulate, by name.

    Raises:
        ConfigError: A name in ``simulation.only`` is no member's.
    """
    names = {site.name for site in config.sites}
    if unknown := sorted(set(simulation.only) - names):
        raise ConfigError(
            f"expected simulation.only to name sites of the federation, got {', '.join(unknown)}",
            hint=f"the sites are {', '.join(sorted(names)[:8])}",
        )
    chosen = set(simulation.only) or names
    return sorted((s for s in config.sites if s.name in chosen), key=lambda s: s.name)


@dataclass(frozen=True)
class SimulatedFederation:
    """Keys of the simulated sites, and the roster that a simulated admin signed."""

    admin_key: str
    keys: Mapping[str, SiteKey]
    roster: SignedRoster

    @classmethod
    def of(cls, name: str, members: Sequence[MemberSection]) -> "SimulatedFederation":
        """New keys, which live as long as the simulation."""
        admin = SiteKey.generate()
        keys = {member.name: SiteKey.generate() for member in members}
        now = utc_now()
        roster = Roster(
            federation=name,
            epoch=1,
            issued=write_timestamp(now),
            expires=write_timestamp(now + _LONGEST_SIMULATION),
            members=tuple(
                RosterMember(
                    name=member.name,
                    node_key=keys[member.name].public_hex,
                    tls_name=f"{member.name}.simulated",
                    num_examples=member.num_examples,
                )
                for member in sorted(members, key=lambda member: member.name)
            ),
        )
        return cls(admin.public_hex, keys, sign_roster(roster, admin))

    def standing(self, site: str) -> PinnedInMemory:
        """A site's place in it."""
        return PinnedInMemory(site, self.keys[site], self.admin_key, self.roster.roster.federation)


def open_sites(
    config: FederationConfig,
    simulation: SimulationSection,
    members: list[MemberSection],
    blueprint: Blueprint,
    terms: TrainingTerms,
    folder: Path,
    federation: SimulatedFederation | None = None,
) -> dict[str, Site]:
    """Opens the data of ``members``, so that whatever is wrong with it shows before training.

    Args:
        config: The federation's file.
        simulation: Its section.
        members: The sites to open.
        blueprint: How the model is built.
        terms: What whoever simulates the sites approves in their name.
        folder: The run's folder; ledgers lie in it, unless a site's file says otherwise.
        federation: The sites' keys and roster; without them no site takes part in secure
            aggregation.

    Raises:
        CloisterError: A site's file or data cannot be used, or holds too many records.
    """
    if simulation.partition is not None:
        _check_public(config.evaluation, [simulation.partition.data])
        parts = _cut(config, simulation)
        policies = dict.fromkeys(parts, simulation.partition.policy)
        ledgers = {name: Path("ledger.sqlite") for name in parts}
    else:
        files = [load_config(SiteConfig, path) for path in simulation.site_files]
        by_name = {file.site.name: file for file in files}
        if missing := sorted({m.name for m in members} - set(by_name)):
            raise ConfigError(
                f"expected a site file for each site, got none for {', '.join(missing)}",
                hint="add it to simulation.site_files, or name others in simulation.only",
            )
        labels = config.task.labels
        chosen = [by_name[member.name] for member in members]
        _check_public(config.evaluation, [file.data for file in chosen])
        parts = {file.site.name: open_source(file.data, labels=labels) for file in chosen}
        policies = {file.site.name: file.policy for file in chosen}
        ledgers = {file.site.name: file.ledger.path for file in chosen}
    held_out = config.audit.holdout_fraction
    seed = AuditSeed.of_folder(folder) if held_out else None
    sites = {
        member.name: _site(
            member,
            hold_out(
                parts[member.name],
                held_out,
                b"" if seed is None else seed.key(f"hold-out/{member.name}"),
            ),
            blueprint,
            _approve(policies[member.name], simulation, terms),
            folder / "sites" / member.name / ledgers[member.name],
            simulation,
            config.audit,
            federation.standing(member.name) if federation else None,
        )
        for member in members
    }
    if terms.privacy.mode != "none":
        for site in sites.values():
            check_size(site)
    return sites


def _check_public(evaluation: EvaluationSection, private: Sequence[DataSection]) -> None:
    """Metrics of the holdout leave without noise."""
    public = evaluation.holdout
    if public and any((d.path, d.hospital) == (public.path, public.hospital) for d in private):
        raise ConfigError(
            "expected a public holdout, got the records that a site trains on",
            hint="evaluation.holdout needs records of its own; its metrics are not private",
        )


def _cut(config: FederationConfig, simulation: SimulationSection) -> dict[str, RecordSource]:
    """One data file, cut into all the federation's sites."""
    cut = simulation.partition
    if cut is None:
        raise ConfigError("expected [simulation.partition], got none")
    source = open_source(cut.data, labels=config.task.labels)
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


def _approve(
    policy: PolicySection, simulation: SimulationSection, terms: TrainingTerms
) -> PolicySection:
    """What whoever simulates a site approves in its name; a list of tasks in its file stands."""
    approved = {
        "allowed_tasks": policy.allowed_tasks or (terms.digest(),),
        "allow_non_private": policy.allow_non_private or simulation.allow_non_private,
        "allow_test_noise": policy.allow_test_noise or simulation.test_noise_key is not None,
    }
    return policy.model_copy(update=approved)


def _site(
    member: MemberSection,
    split: Split,
    blueprint: Blueprint,
    policy: PolicySection,
    ledger: Path,
    simulation: SimulationSection,
    audit: AuditSection,
    standing: Standing | None,
) -> Site:
    key = simulation.test_noise_key
    open_ledger = partial(Ledger.open, ledger, site=member.name)
    return Site(
        name=member.name,
        policy=policy,
        data=TokenizedDataset(split.members, blueprint.task),
        open_ledger=open_ledger,
        randomness=fresh_randomness if key is None else TestRandomness(bytes.fromhex(key)),
        num_examples=member.num_examples,
        standing=standing,
        split=split,
        audit=audit,
        witness=ledger_witness(open_ledger),
    )
