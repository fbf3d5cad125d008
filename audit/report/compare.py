"""What changed between two reports."""

from audit.report.document import (
    Comparison,
    MeasureChange,
    OtherChange,
    Report,
    VerdictChange,
    report_bytes,
)
from audit.report.words import number
from audit.verdicts import Measure, Verdict
from core.digests import sha256_hex

_NONE = "not there"


def compare(before: Report, after: Report) -> Comparison:
    """What is not the same in ``after`` as it was in ``before``.

    **Guarantees**: Every test and measure that is in one of the two and differs is named, once.
    """
    return Comparison(
        previous_run=before.identity.run_id,
        previous_issued=before.issued,
        previous_digest=sha256_hex(report_bytes(before)),
        verdicts=_verdicts(before, after),
        measures=_measures(before, after),
        others=tuple(
            OtherChange(what=what, before=was.get(what, _NONE), after=now.get(what, _NONE))
            for was, now in [(_facts(before), _facts(after))]
            for what in dict.fromkeys([*was, *now])
            if was.get(what) != now.get(what)
        ),
    )


def _verdicts(before: Report, after: Report) -> tuple[VerdictChange, ...]:
    was, now = _verdict_by_test(before), _verdict_by_test(after)
    return tuple(
        VerdictChange(test=test, before=was.get(test), after=now.get(test))
        for test in sorted({*was, *now})
        if was.get(test) is not now.get(test)
    )


def _measures(before: Report, after: Report) -> tuple[MeasureChange, ...]:
    was, now = _measure_by_name(before), _measure_by_name(after)
    changes = []
    for key in sorted({*was, *now}):
        old, new = was.get(key), now.get(key)
        both = old is not None and new is not None
        if both and old is not None and new is not None and old.value == new.value:
            continue
        test, name, place = key
        changes.append(
            MeasureChange(
                test=test,
                measure=name if place == 0 else f"{name}/{place + 1}",
                before=None if old is None else old.value,
                after=None if new is None else new.value,
                apart=_apart(old, new),
            )
        )
    return tuple(changes)


def _apart(old: Measure | None, new: Measure | None) -> bool:
    first = None if old is None else old.interval
    second = None if new is None else new.interval
    if first is None or second is None:
        return False
    return first.high < second.low or second.high < first.low


def _verdict_by_test(report: Report) -> dict[str, Verdict]:
    return {test.result.test: test.result.verdict for test in report.tests}


def _measure_by_name(report: Report) -> dict[tuple[str, str, int], Measure]:
    """A test may have several measures of one name: they are told apart by their order."""
    found: dict[tuple[str, str, int], Measure] = {}
    for test in report.tests:
        seen: dict[str, int] = {}
        for item in test.result.measures:
            place = seen.get(item.name, 0)
            seen[item.name] = place + 1
            found[test.result.test, item.name, place] = item
    return found


def _facts(report: Report) -> dict[str, str]:
    """All else that a reader compares, in words."""
    identity = report.identity
    facts = {
        "run": identity.run_id,
        "task": identity.task_digest,
        "configuration": identity.config_digest,
        "model": identity.model_digest,
        "suite": report.reproduction.suite,
        "tool": report.tool_version,
    }
    for gate in report.gates:
        facts[f"gate {gate.name}"] = "passed" if gate.passed else "not passed"
    for site in report.privacy.sites:
        facts[f"epsilon of {site.site}"] = number(site.epsilon) if site.private else "no bound"
    return facts
