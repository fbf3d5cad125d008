"""The first page: what a person must know who reads nothing else."""

from collections.abc import Sequence
from typing import Final

from audit.gates import Gate
from audit.report.document import Conclusion, Omission, PrivacyStatement, TestRecord
from audit.report.words import at_most, number
from audit.verdicts import Tier, Verdict

_TIER_ORDER: Final[tuple[Tier, ...]] = ("conformance", "dp", "records", "federation", "bias")
_VERDICT_ORDER: Final = tuple(Verdict)
_LIMITS: Final = (
    "PASS means: an effect of the size that the test names would probably have been found. It "
    "does not mean that there is none.",
    "INCONCLUSIVE is not good news: the test could not have decided, or it found something that "
    "was never promised not to be there; its finding says which.",
    "A FAIL is wrong for one sound run in 20 at the most (of conformance, one in 500), test by "
    "test: of so many tests one may fail by chance.",
    "Attacks that nobody knows yet were not tried. Only the promise of differential privacy "
    "covers them, and only as far as its epsilon goes.",
    "The findings are about this model and this run, by the digests below, and about no other "
    "model from the same records.",
    "Whether the purpose is lawful, the records correct or the model good enough for its use is "
    "not examined.",
)


def worst_first(tests: Sequence[TestRecord]) -> tuple[TestRecord, ...]:
    """FAIL before INCONCLUSIVE before PASS; of one verdict, what breaks most first."""

    def key(test: TestRecord) -> tuple[int, int]:
        return _VERDICT_ORDER.index(test.result.verdict), _TIER_ORDER.index(test.tier)

    return tuple(sorted(tests, key=key))


def conclude(
    tests: Sequence[TestRecord],
    gates: Sequence[Gate],
    privacy: PrivacyStatement,
    not_run: Sequence[Omission],
) -> Conclusion:
    """The first page's words; ``tests`` worst first."""
    counts = {v: sum(test.result.verdict is v for test in tests) for v in Verdict}
    closed = [gate for gate in gates if not gate.passed]
    verdict = _overall(counts, bool(closed), privacy.private)
    return Conclusion(
        verdict=verdict,
        title=_title(verdict, counts, len(closed)),
        summary=(
            *_gate_words(gates, closed),
            _privacy_words(privacy),
            *(test.result.headline for test in tests if test.result.verdict is Verdict.FAIL),
            _count_words(counts, len(not_run)),
        ),
        limits=_LIMITS,
    )


def _overall(counts: dict[Verdict, int], closed: bool, private: bool) -> Verdict:
    if closed or counts[Verdict.FAIL] or not private:
        return Verdict.FAIL
    return (
        Verdict.PASS
        if counts[Verdict.PASS] and not counts[Verdict.INCONCLUSIVE]
        else (Verdict.INCONCLUSIVE)
    )


def _title(verdict: Verdict, counts: dict[Verdict, int], closed: int) -> str:
    if closed:
        return f"Not to be released: {_so_many(closed, 'gate')} did not hold"
    if counts[Verdict.FAIL]:
        return f"The gates hold, but {_so_many(counts[Verdict.FAIL], 'test')} found a problem"
    if verdict is Verdict.FAIL:
        return "No privacy was promised, and none can be relied on"
    if verdict is Verdict.INCONCLUSIVE:
        undecided = _so_many(counts[Verdict.INCONCLUSIVE], "test")
        return f"No test failed, but {undecided} came to no verdict"
    return "No test failed"


def _gate_words(gates: Sequence[Gate], closed: Sequence[Gate]) -> list[str]:
    if not gates:
        return ["The federation agreed on no gates: nothing stands between this model and release."]
    if not closed:
        return [f"All {len(gates)} gates that the federation agreed on hold."]
    return [f"Gate not passed: {gate.label}. {gate.reason}" for gate in closed]


def _privacy_words(privacy: PrivacyStatement) -> str:
    claims = [site.epsilon for site in privacy.sites if site.epsilon is not None]
    if not privacy.private or not claims:
        return "The model was trained without a promise of privacy that covers every site."
    delta = number(max(site.delta for site in privacy.sites))
    return (
        f"Each record was promised differential privacy with an epsilon of at most "
        f"{at_most(max(claims))} at delta {delta}, over the whole life of its site's ledger."
    )


def _count_words(counts: dict[Verdict, int], not_run: int) -> str:
    return (
        f"Of {_so_many(sum(counts.values()), 'test')} {counts[Verdict.FAIL]} failed, "
        f"{counts[Verdict.INCONCLUSIVE]} came to no verdict and {counts[Verdict.PASS]} passed; "
        f"{not_run} did not run."
    )


def _so_many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
