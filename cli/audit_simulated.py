"""The sites of a simulation, asked once more: for their counts, and to sign the run's log."""

import contextlib
from collections.abc import Mapping

from audit.attestation.run_log import cosign_all
from audit.federated_counts import shape_of
from audit.subject import Subject
from cli.simulated_sites import SimulatedFederation, chosen_members, open_sites, simulation_of
from client.app import build_client_app
from client.site import Site, Workshop
from coordinator.audit_exchange import gather, write_counts
from coordinator.grids.in_process import InProcessGrid
from coordinator.planning import training_device
from coordinator.run_directory import held_folder
from core.audit_messages import AUDIT_FILE, audit_order
from core.blueprint import training_terms
from core.data.records import iterate
from core.digests import arrays_digest
from core.errors import DataError, RunError
from core.parameters import to_arrays
from core.run_record import RUN_FILE
from privacy.ledger import Ledger


def ask_simulated_sites(subject: Subject, *, counts: bool) -> bool:
    """Asks the simulated sites whose records and ledgers lie on this machine.

    Counts are asked for once: what a first audit was told, the next ones use too.

    Args:
        subject: The run.
        counts: For counts too, which costs; else for the sites' signatures alone.

    Returns:
        Whether anybody was asked; ledgers may have grown.

    Raises:
        DataError: A site's records lack a column of groups.
        RunError: No site answers, or another command works on the run.
        CloisterError: A site's ledger or the log is not what it was.
    """
    present = {name for name, site in subject.with_records.items() if site.ledger is not None}
    if subject.config.simulation is None or not present:
        return False
    hint = "wait for the other command: two audits at once would pay for the counts twice"
    with held_folder(subject.folder, hint=hint):
        sites = _sites(subject, present)
        if counts and not (subject.folder / AUDIT_FILE).exists():
            _check_columns(subject)
            _count(subject, sites)
        _sign(subject, sites)
    return True


def _sign(subject: Subject, sites: Mapping[str, Site]) -> None:
    with contextlib.ExitStack() as stack:
        ledgers: dict[str, Ledger] = {}
        for name, site in sites.items():
            ledgers[name] = stack.enter_context(site.open_ledger())
        cosign_all(subject.folder, ledgers)


def _check_columns(subject: Subject) -> None:
    """Before anything is debited: a record without its group is counted in no group."""
    wanted = {attribute for attribute, _ in shape_of(subject).attributes}
    for name, site in subject.with_records.items():
        # Every record of a site has the same columns.
        first = next(iterate(site.members), None)
        missing = wanted - first.groups.keys() if first else None
        if missing:
            raise DataError(
                f"expected columns of groups {', '.join(sorted(missing))} at site {name}, got none",
                hint="audit.attributes names them: name the site's columns under [data.columns] "
                "groups",
            )


def _sites(subject: Subject, present: set[str]) -> Mapping[str, Site]:
    config = subject.config
    simulation = simulation_of(config, subject.folder / RUN_FILE)
    members = [m for m in chosen_members(config, simulation) if m.name in present]
    terms = training_terms(config, subject.blueprint)
    federation = SimulatedFederation.of(config.federation.name, members)
    return open_sites(
        config, simulation, members, subject.blueprint, terms, subject.folder, federation
    )


def _count(subject: Subject, sites: Mapping[str, Site]) -> None:
    """Over the in-process grid: the very exchange of a deployment."""
    config = subject.config
    simulation = simulation_of(config, subject.folder / RUN_FILE)
    weights = to_arrays(subject.model.model, all_parameters=True)
    arrays = {name: weights[name] for name in to_arrays(subject.blueprint.build())}
    order = audit_order(
        config,
        training_terms(config, subject.blueprint),
        run_id=subject.run_id,
        attempt=1,
        arrays_digest=arrays_digest(arrays),
        site=min(sites),
    )
    app = build_client_app(
        lambda context: sites[str(context.node_config["site"])],
        Workshop(subject.blueprint, training_device()),
    )
    names = dict(enumerate(sorted(sites), start=1))
    nodes = {number: {"site": name} for number, name in names.items()}
    with InProcessGrid(
        app,
        nodes,
        workers=simulation.workers,
        threads_per_worker=simulation.threads_per_worker,
    ) as grid:
        gathered = gather(grid, names, order, arrays)
    if not gathered.replies:
        reasons = "; ".join(f"{away.site}: {away.message}" for away in gathered.absent.values())
        raise RunError(
            f"expected the counts of a site or more, got none: {reasons}",
            hint="a site's policy or its remaining budget may not allow audit.epsilon",
        )
    write_counts(subject.folder, order, gathered)
