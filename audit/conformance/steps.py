"""C7: was every step that ran charged, in each round at each site, over restarts and failures?"""

import itertools
from dataclasses import dataclass
from typing import Final

from audit.conformance.claims import (
    COMPLETED,
    Debit,
    debits,
    listed,
    statements,
    steps_of_a_round,
    used_rounds,
)
from audit.subject import AuditedSite, Subject
from audit.verdicts import (
    CONFORMANCE,
    AuditTest,
    Budget,
    Cell,
    Measure,
    NotRun,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.run_record import Line

CARD: Final = TestCard(
    id="C7",
    title="Steps executed and charged",
    question="Was each site charged for every step that it took, also in rounds that failed?",
    tier="conformance",
    threat_model="A budget that starts again after a restart, or a round that nobody charged.",
    assumes=("A site's ledger is its own: whoever has its key and all its files can rewrite it.",),
    suites=CONFORMANCE,
    cost_seconds=0.2,
)


@dataclass(frozen=True)
class _Site:
    """What the ledger and the record of one site come to."""

    name: str
    rounds: int
    charged: int
    executed: int
    failed: int
    """Debits whose update counts in no round."""
    faults: tuple[str, ...]


@dataclass(frozen=True)
class ChargedSteps:
    """The test."""

    @property
    def card(self) -> TestCard:
        """What it declares."""
        return CARD

    def run(self, subject: Subject, budget: Budget) -> TestResult | NotRun:
        """Compares each round of the record with the debits of its sites' ledgers."""
        here = [site for _, site in sorted(subject.sites.items()) if site.ledger is not None]
        # Who refused every round has nothing in the model, and opened no ledger for it.
        used = [name for name in sorted(subject.sites) if used_rounds(subject, name)]
        away = [name for name in used if subject.sites[name].ledger is None]
        found = [_compare(subject, site) for site in here]
        heads = [_heads(subject, name) for name in away]
        broken = [fault for faults in heads for fault in faults]
        if not found and not broken:
            return NotRun(test=CARD.id, reason="The ledgers lie at the sites, not here.")
        return _result(found, broken, away)


def _compare(subject: Subject, site: AuditedSite) -> _Site:
    own = [d for d in debits(site.ledger or ()) if d.run_id == subject.run_id]
    rounds = used_rounds(subject, site.name)
    faults = [
        *(fault for line in rounds for fault in _round(subject, site, line, own)),
        *(fault for debit in own for fault in _overdrawn(debit)),
        *_order(own),
        *_known_heads(subject, site),
        *_heads(subject, site.name),
    ]
    completed = {d.server_round for d in own if d.outcome == COMPLETED}
    counted = {line["server_round"] for line in rounds} & completed
    return _Site(
        name=site.name,
        rounds=len(rounds),
        charged=sum(debit.event.steps or 0 for debit in own),
        executed=sum(debit.executed or 0 for debit in own),
        failed=len(own) - len(counted),
        faults=tuple(faults),
    )


def _round(subject: Subject, site: AuditedSite, line: Line, own: list[Debit]) -> list[str]:
    """A round that took an update: there is a debit for it, and as many steps as were charged."""
    number = line["server_round"]
    of_round = [debit for debit in own if debit.server_round == number]
    if not of_round:
        return [f"round {number} took an update that no debit stands for"]
    done = [debit for debit in of_round if debit.outcome == COMPLETED]
    if not done:
        return [f"round {number} took an update of a debit that was never completed"]
    wanted = steps_of_a_round(subject)
    faults = []
    for debit in done:
        charged = debit.event.steps
        if debit.executed != wanted:
            faults.append(f"round {number} ran {debit.executed} steps, the run says {wanted}")
        if charged is not None and debit.executed != charged:
            faults.append(f"round {number} ran {debit.executed} steps and was charged {charged}")
    if (head := line.get("ledger_heads", {}).get(site.name)) is not None and not any(
        debit.sequence <= head["sequence"] for debit in done
    ):
        faults.append(f"round {number} was charged after its update had been sent")
    return faults


def _overdrawn(debit: Debit) -> list[str]:
    charged = debit.event.steps
    if charged is not None and debit.executed is not None and debit.executed > charged:
        return [f"entry {debit.sequence} ran {debit.executed} steps and was charged {charged}"]
    return []


def _order(own: list[Debit]) -> list[str]:
    """Each attempt is a debit of its own, and newer than the one before."""
    orders = [(debit.server_round, debit.attempt) for debit in own]
    if any(later <= earlier for earlier, later in itertools.pairwise(orders)):
        return ["the ledger has a round's attempt twice, or an older one after a newer"]
    return []


def _known_heads(subject: Subject, site: AuditedSite) -> list[str]:
    """The ledger is the one that the record saw: it was neither cut nor started again."""
    entries = site.ledger or ()
    faults = []
    for line in used_rounds(subject, site.name):
        head = line.get("ledger_heads", {}).get(site.name)
        if head is None:
            continue
        number = head["sequence"]
        if number > len(entries):
            faults.append(f"the ledger is shorter than it was in round {line['server_round']}")
        elif not number or entries[number - 1].digest != head["digest"]:
            faults.append(f"the ledger has another past than in round {line['server_round']}")
    return faults


def _heads(subject: Subject, site: str) -> list[str]:
    """What the record alone shows: a ledger only grows, and so does what was spent."""
    heads = [
        line["ledger_heads"][site]["sequence"]
        for line in used_rounds(subject, site)
        if site in line.get("ledger_heads", {})
    ]
    faults = []
    # A round is a debit and what came of it: two entries.
    if any(later < earlier + 2 for earlier, later in itertools.pairwise(heads)):
        faults.append(f"the ledger of {site} did not grow by a debit from one round to the next")
    epsilons = [said.epsilon for said in statements(subject, site)]
    numbers = [epsilon for epsilon in epsilons if epsilon is not None]
    if any(later < earlier - 1e-9 for earlier, later in itertools.pairwise(numbers)):
        faults.append(f"what {site} has spent falls from one round to the next")
    return faults


def _result(found: list[_Site], broken: list[str], away: list[str]) -> TestResult:
    bad = [site for site in found if site.faults]
    failed = bool(bad or broken)
    verdict = Verdict.INCONCLUSIVE if away else Verdict.PASS
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (site.name, fault) for site in bad for fault in site.faults[:20]
    ) + tuple(("", fault) for fault in broken)
    return TestResult(
        test=CARD.id,
        verdict=Verdict.FAIL if failed else verdict,
        headline=_headline(found, bad, broken, away),
        measures=(
            Measure(
                name="uncharged-rounds",
                label="Findings of rounds, steps or entries that do not match",
                value=float(len(rows)),
                limit=0.0,
            ),
        ),
        smallest_effect=SmallestEffect(
            measure="steps that ran without a charge", value=1, power=0.99, alpha=1e-3
        ),
        tables=(
            Table(
                title="Steps by site",
                columns=("site", "rounds used", "steps charged", "steps run", "charged in vain"),
                rows=tuple((s.name, s.rounds, s.charged, s.executed, s.failed) for s in found),
                note="Charged in vain: debits of attempts whose update counts in no round. They "
                "stay charged. Without privacy no number of steps is charged.",
            ),
            Table(title="What does not match", columns=("site", "finding"), rows=rows),
        ),
        notes=(
            "Steps are those that the training counted as it added noise; C2 shows that a counted "
            "step is a noised one.",
            *([f"The ledger of {listed(away)} lies elsewhere."] if away else []),
        ),
    )


def _headline(found: list[_Site], bad: list[_Site], broken: list[str], away: list[str]) -> str:
    if bad:
        return (
            f"Steps ran that were not charged as they should be: {bad[0].name}, {bad[0].faults[0]}."
        )
    if broken:
        return f"The record contradicts itself: {broken[0]}."
    if away:
        return f"Where ledgers are at hand every step was charged; those of {listed(away)} are not."
    steps = sum(site.executed for site in found)
    failed = sum(site.failed for site in found)
    more = f"; {failed} attempts that failed stay charged" if failed else ""
    return f"All {steps} steps of all sites were charged before they ran{more}."


TESTS: Final[tuple[AuditTest, ...]] = (ChargedSteps(),)
