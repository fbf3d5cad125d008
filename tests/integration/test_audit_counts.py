"""A finished simulation is asked for its counts, over the grid in this process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audit.federated_counts import counts_for, from_replies, local_counts
from audit.subject import Subject, open_subject
from cli.simulated_sites import open_sites
from client.app import build_client_app
from client.site import Site, Workshop
from coordinator.audit_exchange import Gathered, gather, write_counts
from coordinator.grids.in_process import InProcessGrid
from core.audit_messages import AuditOrder, audit_order
from core.blueprint import training_terms
from core.errors import SubjectError
from core.parameters import Arrays, to_arrays
from tests.support.audited import simulated_run
from tests.support.audited_site import WITHOUT_PRIVACY


def released(subject: Subject) -> Arrays:
    weights = to_arrays(subject.model.model, all_parameters=True)
    return {name: weights[name] for name in to_arrays(subject.blueprint.build())}


def ask(subject: Subject, workers: int = 2, attempt: int = 1, **policy: str) -> Gathered:
    """What the sites of the simulation say, whose ledgers go on."""
    config = subject.config
    assert config.simulation is not None
    terms = training_terms(config, subject.blueprint)
    members = sorted(config.sites, key=lambda member: member.name)
    sites: dict[str, Site] = open_sites(
        config, config.simulation, members, subject.blueprint, terms, subject.folder
    )
    for name, value in policy.items():
        changed = sites[name].policy.model_copy(update={"audit": value})
        sites[name] = replace(sites[name], policy=changed)
    app = build_client_app(
        lambda context: sites[str(context.node_config["site"])],
        Workshop(subject.blueprint, torch.device("cpu")),
    )
    nodes = {number: member.name for number, member in enumerate(members, start=1)}
    configs = {number: {"site": name} for number, name in nodes.items()}
    with InProcessGrid(app, configs, workers=workers) as grid:
        return gather(grid, nodes, order_of(subject, attempt), released(subject), timeout=120)


def order_of(subject: Subject, attempt: int = 1) -> AuditOrder:
    return audit_order(
        subject.config,
        training_terms(subject.config, subject.blueprint),
        run_id=subject.run_id,
        attempt=attempt,
        arrays_digest=subject.record.rounds[-1]["weights_digest"],
        site="north",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_run(tmp_path_factory.mktemp("audited"))


def test_the_sites_answer_once_and_pay(run: Path) -> None:
    subject = open_subject(run)
    before = {name: len(site.ledger or ()) for name, site in subject.sites.items()}
    found = ask(subject)
    assert list(found.replies) == ["north", "south", "west"]
    counts, truth = from_replies(order_of(subject), found.replies), local_counts(subject)
    for noised, exact in zip(counts.sites, truth.sites, strict=True):
        assert noised.scale == 4.0
        difference = np.concatenate(
            [(noised.cells - exact.cells).ravel(), (noised.histogram - exact.histogram).ravel()]
        )
        assert difference.any()
        assert np.abs(difference).max() < 20 * 4.0
    after = {name: len(site.ledger or ()) for name, site in open_subject(run).sites.items()}
    assert after == {name: entries + 4 for name, entries in before.items()}

    again = ask(subject)
    assert again.replies == {}
    assert {away.code for away in again.absent.values()} == {"message"}
    assert list(ask(subject, attempt=2).replies) == ["north", "south", "west"]


def test_a_site_that_answers_no_audit_is_named(run: Path) -> None:
    found = ask(open_subject(run), attempt=3, south="off")
    assert list(found.replies) == ["north", "west"]
    assert found.absent["south"].code == "policy-refused"


def test_the_file_belongs_to_the_run(run: Path, tmp_path: Path) -> None:
    subject = open_subject(run)
    order, found = order_of(subject, 4), ask(subject, attempt=4)
    write_counts(run, order, found)
    counts = counts_for(subject)
    assert counts is not None
    assert (counts.cells == from_replies(order, found.replies).cells).all()
    for changes in ({"run_id": "1" * 16}, {"arrays_digest": "1" * 64}, {"epsilon": 0.7}):
        replies = {
            name: reply.model_copy(
                update={key: value for key, value in changes.items() if key != "epsilon"}
            )
            for name, reply in found.replies.items()
        }
        write_counts(run, order.model_copy(update=changes), Gathered(replies, {}))
        with pytest.raises(SubjectError, match="expected the counts of this run's"):
            counts_for(subject)


def test_counts_that_claim_less_noise_are_refused(run: Path) -> None:
    subject = open_subject(run)
    order, found = order_of(subject, 5), ask(subject, attempt=5)
    for changes in ({"scale": None}, {"scale": 0.1}, {"task_digest": "1" * 64}):
        lie = found.replies["north"].model_copy(update=changes)
        write_counts(run, order, Gathered({**found.replies, "north": lie}, {}))
        with pytest.raises(SubjectError, match="under noise of scale 4"):
            counts_for(subject)


def test_without_privacy_the_counts_are_those_of_the_records(tmp_path: Path) -> None:
    run = simulated_run(
        tmp_path,
        federation=WITHOUT_PRIVACY,
        overrides={"simulation.allow_non_private": "true", "federation.num_rounds": "1"},
    )
    subject = open_subject(run)
    found = ask(subject, workers=1)
    counts, truth = from_replies(order_of(subject), found.replies), local_counts(subject)
    assert counts.exact
    assert (counts.cells == truth.cells).all()
    assert (counts.histogram == truth.histogram).all()
