"""From what was audited and what the tests said to one report. No times and no places enter."""

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Final

from audit.attestation.auditor import Auditor
from audit.gates import gates_of
from audit.report.compare import compare
from audit.report.conclusion import conclude, worst_first
from audit.report.document import (
    Identity,
    Omission,
    PrivacyStatement,
    Report,
    Reproduction,
    SiteIdentity,
    TestRecord,
    Version,
)
from audit.report.privacy_statement import privacy_statement
from audit.report.risks import risks_of
from audit.subject import AuditedSite, Subject
from audit.suite import SuiteOutcome, all_tests
from audit.verdicts import TestCard
from core.config import FederationConfig
from core.data.records import RecordSource, iterate
from core.digests import json_digest
from core.errors import AuditError
from core.messages import LedgerHead

_TOOL: Final = "cloister"
_LIBRARIES: Final = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "fairlearn",
    "opacus",
    "dp-accounting",
)


def build_report(
    subject: Subject,
    outcome: SuiteOutcome,
    auditor: Auditor,
    *,
    issued: str,
    purpose: str = "",
    legal_basis: str = "",
    previous: Report | None = None,
    cards: Iterable[TestCard] | None = None,
) -> Report:
    """Puts together all that a reader needs; not yet signed.

    **Guarantees**: The same arguments give the same report. Every test there is stands in it: with
    its result, or with why it did not run.

    Args:
        subject: What was audited.
        outcome: What the tests said.
        auditor: The responsible person.
        issued: UTC, as ``2026-01-31T12:00:00Z``.
        purpose: What the model is for; stays visibly empty where nobody says.
        legal_basis: On what basis the records were used; stays visibly empty where nobody says.
        previous: The report before this one, to say what changed.
        cards: The cards of all tests; ``None`` for those of all tests there are.

    Raises:
        AuditError: A result is of a test that no card is of, or a test has two results.
        CloisterError: A ledger's events cannot be accounted for.
    """
    return assemble_report(
        outcome,
        auditor,
        config=subject.config,
        identity=_identity(subject),
        privacy=privacy_statement(subject, outcome.results),
        records_at_hand=bool(subject.with_records),
        issued=issued,
        purpose=purpose,
        legal_basis=legal_basis,
        previous=previous,
        cards=[test.card for test in all_tests()] if cards is None else cards,
    )


def assemble_report(
    outcome: SuiteOutcome,
    auditor: Auditor,
    *,
    config: FederationConfig,
    identity: Identity,
    privacy: PrivacyStatement,
    records_at_hand: bool,
    issued: str,
    cards: Iterable[TestCard],
    purpose: str = "",
    legal_basis: str = "",
    previous: Report | None = None,
) -> Report:
    """What ``build_report`` does once it is known what was audited and what was promised."""
    known = _by_id(cards)
    tests = _records(outcome, known)
    not_run = _omissions(outcome, known)
    gates = gates_of(config, outcome.results, cards=known.values(), cut=outcome.cut)
    report = Report(
        issued=issued,
        auditor=auditor,
        tool_version=metadata.version(_TOOL),
        identity=identity,
        purpose=purpose,
        legal_basis=legal_basis,
        conclusion=conclude(tests, gates, privacy, not_run),
        gates=gates,
        privacy=privacy,
        tests=tests,
        not_run=not_run,
        risks=risks_of(tests, privacy, records_at_hand=records_at_hand),
        reproduction=_reproduction(outcome),
    )
    if previous is None:
        return report
    return report.model_copy(update={"changes": compare(previous, report)})


def _by_id(cards: Iterable[TestCard]) -> dict[str, TestCard]:
    known: dict[str, TestCard] = {}
    for card in cards:
        if card.id in known:
            raise AuditError(f"expected tests with distinct ids, got {card.id} twice")
        known[card.id] = card
    return known


def _card(known: dict[str, TestCard], test: str) -> TestCard:
    card = known.get(test)
    if card is None:
        raise AuditError(f"expected a result of a test that is known, got one of {test!r}")
    return card


def _records(outcome: SuiteOutcome, known: dict[str, TestCard]) -> tuple[TestRecord, ...]:
    found: dict[str, TestRecord] = {}
    for result in outcome.results:
        card = _card(known, result.test)
        if card.id in found:
            raise AuditError(f"expected one result of the test {card.id}, got two")
        found[card.id] = TestRecord(
            title=card.title,
            question=card.question,
            tier=card.tier,
            threat_model=card.threat_model,
            assumes=card.assumes,
            result=result,
        )
    return worst_first(list(found.values()))


def _omissions(outcome: SuiteOutcome, known: dict[str, TestCard]) -> tuple[Omission, ...]:
    rows = [
        Omission(test=item.test, title=_card(known, item.test).title, reason=item.reason)
        for item in outcome.not_run
    ]
    told = {result.test for result in outcome.results} | {item.test for item in outcome.not_run}
    rows.extend(
        Omission(test=card.id, title=card.title, reason=_not_chosen(card, outcome))
        for card in known.values()
        if card.id not in told
    )
    return tuple(rows)


def _not_chosen(card: TestCard, outcome: SuiteOutcome) -> str:
    if outcome.suite in card.suites:
        return "It was left out of this audit."
    return (
        f"The suite {outcome.suite!r} does not have it; it runs with "
        + " or ".join(f"--suite {suite}" for suite in sorted(card.suites))
        + "."
    )


def _identity(subject: Subject) -> Identity:
    header, rounds = subject.record.header, subject.record.rounds
    public = subject.public_records()
    first = rounds[0] if rounds and rounds[0]["server_round"] == 0 else None
    return Identity(
        run_id=subject.run_id,
        federation=subject.config.federation.name,
        task_digest=header["task_digest"],
        config_digest=header["config_digest"],
        model_digest=rounds[-1]["weights_digest"],
        initial_digest=None if first is None else first["weights_digest"],
        holdout_digest=None if public is None else _records_digest(public),
        sites=tuple(_site(site, subject) for _, site in sorted(subject.sites.items())),
        audit_commitment=header["audit_commitment"],
        audit_seed=subject.seed.reveal(),
    )


def _site(site: AuditedSite, subject: Subject) -> SiteIdentity:
    head = None
    if site.ledger:
        head = site.ledger[-1].head
    else:
        for line in reversed(subject.record.rounds):
            if site.name in line.get("ledger_heads", {}):
                head = LedgerHead(**line["ledger_heads"][site.name])
                break
    return SiteIdentity(
        site=site.name,
        num_examples=site.num_examples,
        ledger_head=head,
        records_at_hand=site.split is not None,
    )


def _records_digest(records: RecordSource) -> str:
    """Of public records, in their order."""
    return json_digest([[item.text, item.label] for item in iterate(records)])


def _reproduction(outcome: SuiteOutcome) -> Reproduction:
    versions = [Version(name="python", version=platform.python_version())]
    versions += [Version(name=name, version=metadata.version(name)) for name in _LIBRARIES]
    return Reproduction(
        suite=outcome.suite,
        commands=(
            f"cloister audit run RUN --suite {outcome.suite}",
            "cloister audit verify REPORT",
        ),
        versions=tuple(versions),
        note="All randomness of the tests follows from the audit's seed above, which was "
        "committed to before the first round. Noise of differential privacy comes from the "
        "operating system and cannot be repeated: where a test trains with it, figures differ "
        "a little from one audit to the next.",
    )
