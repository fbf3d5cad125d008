"""A run to audit, put together without a simulation: real ledgers, a record that fits them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from audit.subject import AuditedSite, Subject
from coordinator.orders import dp_sgd_terms
from core.audit_seed import AuditSeed
from core.blueprint import make_blueprint
from core.config import FederationConfig
from core.config_files import load_config
from core.messages import DpSgdTerms
from core.model_folder import LoadedModel
from core.run_record import RunRecord
from core.tokenizer import load_tokenizer
from privacy.events import DpSgdEvent, Event, NonPrivateEvent
from privacy.ledger import Ledger
from tests.support.audited import write_audited
from tests.support.federation import FEDERATION, SITES

RUN_ID = "0123456789abcdef"
TASK_DIGEST = "ab" * 32
DELTA = 1e-5


@dataclass(frozen=True)
class Played:
    """What is written into a ledger for one round, real or forged."""

    server_round: int
    event: Event
    executed: int | None
    run_id: str = RUN_ID
    attempt: int = 1
    outcome: str = "completed"


def made_up_subject(folder: Path, *, federation: str = FEDERATION, seed: int = 1) -> Subject:
    """The tiny federation after its rounds: every one charged, run and recorded as it must be."""
    config = load_config(FederationConfig, write_audited(folder, federation=federation))
    blueprint = make_blueprint(config)
    model = LoadedModel(blueprint.build(), blueprint.task, load_tokenizer(config.tokenizer), {})
    terms = dp_sgd_terms(config, config.sites)
    sites = {name: AuditedSite(name, 40, terms[name], ledger=None, split=None) for name in SITES}
    subject = Subject(
        folder=folder,
        config=config,
        record=RunRecord({"run_id": RUN_ID}, []),
        blueprint=blueprint,
        model=model,
        sites=sites,
        seed=AuditSeed(bytes([seed]) * 32),
        device=torch.device("cpu"),
    )
    return played(subject, {name: rounds_of(subject, name) for name in SITES})


def rounds_of(subject: Subject, site: str) -> list[Played]:
    """One debit, settled, for each round."""
    event = event_of(subject, site)
    return [
        Played(number, event, subject.config.train.steps_per_round)
        for number in range(1, subject.config.federation.num_rounds + 1)
    ]


def event_of(subject: Subject, site: str) -> Event:
    """What one round costs."""
    terms = subject.sites[site].terms
    if terms is None:
        return NonPrivateEvent("no-privacy")
    return dp_sgd(subject, terms)


def dp_sgd(subject: Subject, terms: DpSgdTerms, **changes: Any) -> DpSgdEvent:
    """Of one round, by its terms."""
    settings: dict[str, Any] = {
        "noise_multiplier": terms.noise_multiplier,
        "sample_rate": terms.sample_rate,
        "max_batch_size": terms.max_batch_size,
        "max_examples": terms.max_examples,
        "steps": subject.config.train.steps_per_round,
        "max_grad_norm": subject.config.privacy.max_grad_norm,
    }
    return DpSgdEvent(**settings | changes)


def played(subject: Subject, script: dict[str, Sequence[Played]]) -> Subject:
    """The subject with ledgers that hold just this, and the record that follows from them."""
    sites, spent, heads = dict(subject.sites), {}, {}
    for name, rounds in script.items():
        path = (
            subject.folder / f"{name}-{len(list(subject.folder.glob(f'{name}-*.sqlite')))}.sqlite"
        )
        with Ledger.open(path, site=name) as ledger:
            for one in rounds:
                _play(ledger, one)
                report = ledger.spent(DELTA)
                finite = report.epsilon if report.private else None
                key = name, one.server_round
                spent[key] = {"epsilon": finite, "delta": DELTA, "private": report.private}
                heads[key] = ledger.head().model_dump(mode="json")
            sites[name] = replace(sites[name], ledger=ledger.entries())
    lines = [
        {
            "kind": "round",
            "server_round": number,
            "used": sorted(script),
            "spent": {name: spent[name, number] for name in script if (name, number) in spent},
            "ledger_heads": {n: heads[n, number] for n in script if (n, number) in heads},
        }
        for number in range(1, subject.config.federation.num_rounds + 1)
    ]
    return replace(subject, sites=sites, record=RunRecord({"run_id": RUN_ID}, lines))


def _play(ledger: Ledger, one: Played) -> None:
    sequence = ledger.reserve(
        one.event,
        run_id=one.run_id,
        server_round=one.server_round,
        attempt=one.attempt,
        task_digest=TASK_DIGEST,
        max_epsilon=1000.0,
        delta=DELTA,
    )
    if one.executed is not None:
        ledger.settle(sequence, one.executed, one.outcome)


def with_ledger(subject: Subject, site: str, **changes: Any) -> Subject:
    """The subject with another ledger, or none, at one site."""
    sites = dict(subject.sites)
    sites[site] = replace(sites[site], **changes)
    return replace(subject, sites=sites)


def with_spent(subject: Subject, site: str, **changes: Any) -> Subject:
    """The subject whose record states something else of one site, in every round."""
    lines = []
    for line in subject.record.lines:
        said = {**line["spent"], site: {**line["spent"][site], **changes}}
        lines.append({**line, "spent": said})
    return replace(subject, record=replace(subject.record, lines=lines))
