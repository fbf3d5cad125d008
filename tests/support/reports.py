"""A report that has every part: a finding of each kind, and words that try to be markup."""

from collections.abc import Mapping
from typing import Any

from audit.attestation.auditor import Auditor
from audit.report.build import assemble_report
from audit.report.document import (
    Identity,
    PrivacyStatement,
    Report,
    SiteIdentity,
    SitePrivacy,
    Spending,
    sign_report,
)
from audit.report.privacy_statement import best_guess, epsilon_figure
from audit.suite import SuiteOutcome
from audit.verdicts import (
    CONFORMANCE,
    FULL,
    QUICK,
    Figure,
    Interval,
    Measure,
    NotRun,
    Series,
    SmallestEffect,
    Table,
    TestCard,
    TestResult,
    Verdict,
)
from core.audit_seed import AuditSeed
from core.config import FederationConfig
from core.config_files import parse_config
from core.messages import LedgerHead
from privacy.signing import SiteKey

ISSUED = "2026-03-01T09:30:00Z"
EVIL = "<script>alert(1)</script> & \"quoted\" | `code` ]]> $x_{$ <img src='https://example.org/x'>"
RUN = "00112233445566ff"
_DIGESTS = tuple(f"{number:x}" * 64 for number in range(1, 10))


def auditor_of(key: SiteKey, *, name: str = "Ada Example") -> Auditor:
    """Who signs with ``key``, for some years."""
    return Auditor(
        name=name,
        role="data-protection officer",
        public_key=key.public_hex,
        not_before="2026-01-01T00:00:00Z",
        not_after="2028-01-01T00:00:00Z",
    )


def federation(gates: Mapping[str, Any] | None = None) -> FederationConfig:
    """A federation whose gates are ``gates``."""
    return parse_config(
        FederationConfig,
        {
            "federation": {"name": "clinic", "num_rounds": 12},
            "model": {
                "vocab_size": 300,
                "max_seq_len": 16,
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
            },
            "task": {"kind": "classification", "labels": ["calm", "storm"]},
            "train": {
                "steps_per_round": 2,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "learning_rate": 1e-2,
            },
            "privacy": {"target_epsilon": 8.0},
            "audit": {"gates": dict(gates or {"max_membership_auc": 0.6, "max_gap": 0.1})},
            "sites": [{"name": "mercy", "num_examples": 4000}],
        },
        origin="a test",
    )


def rich_report(key: SiteKey, *, auc: float = 0.523, previous: Report | None = None) -> Report:
    """The report, signed with ``key``; ``auc`` is the value of one of its measures."""
    report = assemble_report(
        rich_outcome(auc),
        auditor_of(key),
        config=federation(),
        identity=_identity(),
        privacy=privacy_of(rich_outcome(auc)),
        records_at_hand=True,
        issued=ISSUED,
        cards=CARDS,
        purpose="Sorts referrals into five specialties. " + EVIL,
        previous=previous,
    )
    return sign_report(report, key)


def privacy_of(outcome: SuiteOutcome) -> PrivacyStatement:
    """Three sites: one with a second run and an audit, one that only replied."""
    sites = (
        _site("lakeside", 7.9965, 2.15, 0.2133, "ledger"),
        _site("mercy", 8.4021, 0.9191, 0.064, "ledger"),
        _site("riverside", 7.9927, 1.215, 0.1024, "reply"),
    )
    return PrivacyStatement(
        mode="local",
        private=True,
        unit="record",
        neighbouring="add_or_remove_one",
        secure_aggregation=False,
        trust="Each site adds all of its noise before anything leaves it.",
        odds="Someone who would be right half of the time by tossing a coin can be right at most "
        "99.98 times in 100.",
        sites=sites,
        figure=epsilon_figure(sites, outcome.results),
    )


def rich_outcome(auc: float = 0.523) -> SuiteOutcome:
    """Results of each verdict, with every kind of table and figure."""
    return SuiteOutcome(
        suite="quick",
        results=(_noise(), _one_run(), _membership(auc), _backdoor(), _gaps(), _cut()),
        not_run=(NotRun(test="M4", reason="No pack of texts was given: " + EVIL),),
    )


def _card(test: str, title: str, tier: Any, suites: Any = QUICK) -> TestCard:
    questions = {
        "conformance": "Is there as much noise as was debited?",
        "dp": "Can an attacker who plants canaries disprove the claimed epsilon?",
        "records": "Can someone with the model tell whose records were used?",
        "federation": "Can one site teach the model a hidden trigger?",
        "bias": "Is the model right equally often for all groups?",
    }
    threats = {
        "conformance": "Everyone: privacy rests on this noise, whoever looks at the model.",
        "dp": "A worst-case attacker who chooses records and sees every update.",
        "records": "Someone who has the released model and candidate records.",
        "federation": "A member of the federation that does not play by the rules.",
        "bias": "No attack: people of a group whom the model serves worse.",
    }
    return TestCard(
        id=test,
        title=title,
        question=questions[tier],
        tier=tier,
        threat_model=threats[tier],
        assumes=("Members and held-out records come from one population.", EVIL),
        suites=suites,
        cost_seconds=1.0,
    )


CARDS = (
    _card("C2", "Measured noise", "conformance", CONFORMANCE),
    _card("D1", "One-run audit with canaries", "dp"),
    _card("M1", "Membership inference", "records"),
    _card("M4", "Extraction of canaries", "records"),
    _card("M9", "Likelihood-ratio attack", "records", FULL),
    _card("F5", "Backdoor through one site", "federation"),
    _card("B1", "Accuracy by group", "bias"),
    _card("B4", "Counterfactual swap", "bias"),
)


def _noise() -> TestResult:
    return TestResult(
        test="C2",
        verdict=Verdict.PASS,
        headline="The noise that was measured is the noise that was debited.",
        measures=(
            Measure(
                name="noise-multiplier",
                label="Measured noise over clip",
                value=0.92034,
                interval=_interval(0.9144, 0.9263, "chi-square"),
                limit=0.9191,
            ),
        ),
        smallest_effect=SmallestEffect(
            measure="a lack of noise, as a share,", value=0.01, power=0.95, alpha=0.05
        ),
        p_value=0.71,
        figures=(
            Figure(
                kind="curve",
                title="Autocorrelation of the noise over steps",
                caption="Independent noise stays within the band.",
                alternative="A line that stays near zero over 20 lags.",
                x_label="lag",
                y_label="correlation",
                series=(
                    Series(
                        name="mercy",
                        x=tuple(float(lag) for lag in range(1, 21)),
                        y=tuple(0.01 * (-1) ** lag for lag in range(1, 21)),
                        low=(-0.04,) * 20,
                        high=(0.04,) * 20,
                    ),
                    Series(
                        name="lakeside",
                        x=tuple(float(lag) for lag in range(1, 21)),
                        y=tuple(0.015 * (lag % 3 - 1) for lag in range(1, 21)),
                    ),
                ),
                reference=0.0,
                reference_label="independent",
            ),
        ),
    )


def _one_run() -> TestResult:
    return TestResult(
        test="D1",
        verdict=Verdict.PASS,
        headline="The best attack proved an epsilon of 1.7; 8.4 is claimed, and stands.",
        measures=(
            Measure(
                name="epsilon-proven",
                label="Proven lower bound of epsilon",
                value=1.7402,
                interval=Interval(low=1.7402, high=11.2, confidence=0.95, method="one-run"),
                limit=8.4021,
            ),
            Measure(
                name="epsilon-estimate-gaussian",
                label="Estimate by Gaussian DP, no proof",
                value=3.0123456,
            ),
        ),
        smallest_effect=SmallestEffect(measure="epsilon", value=2.9, power=0.8, alpha=0.05),
        notes=("The bound assumes nothing but differential privacy.", EVIL),
    )


def _membership(auc: float) -> TestResult:
    return TestResult(
        test="M1",
        verdict=Verdict.INCONCLUSIVE,
        headline="No attack told members from others, but a weak one would not have been seen.",
        measures=(
            Measure(
                name="membership-auc",
                label="Best attack: area under the curve",
                value=auc,
                interval=_interval(0.4812, 0.5648, "DeLong"),
                limit=0.5,
            ),
            Measure(
                name="control-auc",
                label="The same attack on a model that saw neither set",
                value=0.5081,
                interval=_interval(0.466, 0.5502, "DeLong"),
            ),
            Measure(
                name="baseline-auc",
                label="Without any model: length and words",
                value=0.4976,
                interval=_interval(0.4551, 0.5401, "DeLong"),
            ),
            Measure(name="tpr-at-fpr-0-1", label="Hits at 0.1 % false alarms", value=None),
        ),
        smallest_effect=SmallestEffect(
            measure="an area under the curve", value=0.56, power=0.8, alpha=0.05
        ),
        p_value=0.1875,
        figures=(
            Figure(
                kind="intervals",
                title="Every attack beside its control",
                caption="An attack that learns from the model lies right of its control and of "
                "chance.",
                alternative="Four attacks, each with its control; all intervals hold 0.5.",
                x_label="attack",
                y_label="area under the curve",
                series=(
                    Series(
                        name="released model",
                        x=("loss", "zlib", "Min-K % ++", "reference models, offline RMIA"),
                        y=(0.512, 0.515, 0.503, auc),
                        low=(0.47, 0.473, 0.461, 0.4812),
                        high=(0.554, 0.557, 0.545, 0.5648),
                    ),
                    Series(
                        name="control model",
                        x=("loss", "zlib", "Min-K % ++", "reference models, offline RMIA"),
                        y=(0.508, 0.51, 0.5, 0.508),
                        low=(0.466, 0.468, 0.458, 0.466),
                        high=(0.55, 0.552, 0.542, 0.55),
                    ),
                ),
                reference=0.5,
                reference_label="chance",
            ),
            Figure(
                kind="bars",
                title="Losses of members and of others",
                caption="Two histograms that lie over each other tell nothing.",
                alternative="Two histograms of the same shape, with their tops at 1.1.",
                x_label="loss",
                y_label="share of records",
                series=(
                    Series(
                        name="members",
                        x=tuple(0.2 * n for n in range(12)),
                        y=(0.02, 0.05, 0.1, 0.14, 0.17, 0.16, 0.13, 0.1, 0.06, 0.04, 0.02, 0.01),
                    ),
                    Series(
                        name="held out",
                        x=tuple(0.2 * n for n in range(12)),
                        y=(0.02, 0.04, 0.1, 0.13, 0.17, 0.17, 0.13, 0.1, 0.07, 0.04, 0.02, 0.01),
                    ),
                ),
            ),
        ),
        notes=("Sites released nothing but histograms.",),
    )


def _backdoor() -> TestResult:
    return TestResult(
        test="F5",
        verdict=Verdict.FAIL,
        headline="One site of six can teach the model a trigger that the others do not notice.",
        measures=(
            Measure(
                name="trigger-gain",
                label="Gain of the trigger in log-probability",
                value=0.2504,
                unit="nats",
                interval=_interval(0.2237, 0.2771, "bootstrap"),
                limit=0.0,
            ),
        ),
        smallest_effect=SmallestEffect(measure="a gain", value=0.03, power=0.9, alpha=0.05),
        p_value=0.0004,
        tables=(
            Table(
                title="Gain by arm",
                columns=("Arm", "Gain", "Half-width", "Clean accuracy"),
                rows=(
                    ("clean", -0.014, 0.031, 0.77),
                    ("one poisoned site", 0.2504, 0.0267, 0.769),
                    (EVIL, None, None, None),
                ),
            ),
            Table(title="Sites that noticed", columns=("Site", "How"), rows=()),
            Table(
                title="Gain by site and round, which is wider than any page",
                columns=("Site", *(f"Round number {n}" for n in range(1, 13))),
                rows=(("mercy", *(0.12345 * n for n in range(1, 13))),),
                note="A long note that would make its table wide if it were not broken into "
                "several lines, as it must be on a phone, on a screen and on paper alike.",
            ),
        ),
    )


def _gaps() -> TestResult:
    cells = (
        ("mercy", "female", "adult", 412, 0.8131, 0.7727, 0.8479),
        ("mercy", "female", "elder", 96, 0.6146, 0.5145, 0.7059),
        ("mercy", "male", "adult", 398, 0.8065, 0.7649, 0.8423),
        ("lakeside", "female", "elder", None, None, None, None),
        ("lakeside", "male", "adult", 130, 0.7923, 0.7147, 0.8532),
        ("riverside", "female", "adult", 260, 0.8038, 0.7512, 0.8477),
        ("riverside", "male", "elder", None, None, None, None),
    )
    known = [row for row in cells if row[3] is not None]
    names = tuple(f"{row[0]}: {row[1]}, {row[2]}" for row in known)
    return TestResult(
        test="B1",
        verdict=Verdict.FAIL,
        headline="Elderly women are served worse: right 61 times in 100 instead of 81.",
        measures=(
            Measure(
                name="accuracy-gap",
                label="Largest gap in accuracy",
                value=0.1985,
                unit="(share)",
                interval=_interval(0.1127, 0.2843, "Newcombe"),
                limit=0.1,
            ),
        ),
        smallest_effect=SmallestEffect(
            measure="a gap in accuracy", value=0.14, power=0.8, alpha=0.05
        ),
        p_value=0.0012,
        tables=(
            Table(
                title="Accuracy by site, sex and age",
                columns=("Site", "Sex", "Age", "Records", "Accuracy", "Low", "High"),
                rows=cells,
                note="Cells of fewer than 30 records are suppressed.",
            ),
        ),
        figures=(
            Figure(
                kind="bars",
                title="Accuracy by group",
                caption="Bars should be of one length; the lines are 95 % intervals.",
                alternative="Five bars near 0.8 and one, elderly women at mercy, at 0.61.",
                x_label="group",
                y_label="accuracy",
                series=(
                    Series(
                        name="accuracy",
                        x=names,
                        y=tuple(row[4] for row in known),
                        low=tuple(row[5] for row in known),
                        high=tuple(row[6] for row in known),
                    ),
                ),
                reference=0.77,
                reference_label="all records",
            ),
        ),
    )


def _cut() -> TestResult:
    return TestResult(
        test="B4",
        verdict=Verdict.INCONCLUSIVE,
        headline="There was no time left for this test.",
        notes=("The time limit of the suite cut it; run it with a larger one.",),
    )


def _interval(low: float, high: float, method: str) -> Interval:
    return Interval(low=low, high=high, confidence=0.95, method=method)


def _identity() -> Identity:
    return Identity(
        run_id=RUN,
        federation="clinic",
        task_digest=_DIGESTS[0],
        config_digest=_DIGESTS[1],
        model_digest=_DIGESTS[2],
        initial_digest=_DIGESTS[3],
        holdout_digest=_DIGESTS[4],
        sites=tuple(
            SiteIdentity(
                site=name,
                num_examples=size,
                ledger_head=LedgerHead(sequence=25, digest=_DIGESTS[5]),
                records_at_hand=name != "riverside",
            )
            for name, size in (("lakeside", 1200), ("mercy", 4000), ("riverside", 2500))
        ),
        audit_commitment=AuditSeed(bytes.fromhex(_DIGESTS[7])).commitment,
        audit_seed=_DIGESTS[7],
    )


def _site(name: str, epsilon: float, sigma: float, rate: float, origin: Any) -> SitePrivacy:
    run = Spending(
        run_id=RUN,
        kind="dp-sgd",
        private=True,
        releases=12,
        steps=240,
        noise_multiplier=sigma,
        max_grad_norm=0.5,
        sample_rate=rate,
    )
    audit = Spending(
        run_id=RUN, kind="laplace-counts", private=True, releases=1, steps=1, scale=2.0
    )
    return SitePrivacy(
        site=name,
        private=True,
        epsilon=epsilon,
        delta=1e-5,
        origin=origin,
        rdp=epsilon + 0.92 if origin == "ledger" else None,
        prv=epsilon + 0.01 if origin == "ledger" else None,
        best_guess=best_guess(epsilon, 1e-5),
        spending=(run, audit) if origin == "ledger" else (),
    )
