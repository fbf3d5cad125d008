"""Numbers and verdicts as people read them; the JSON keeps them in full."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Final

from audit.verdicts import Cell, Interval, Measure, SmallestEffect, Tier, Verdict

SUPPRESSED: Final = "suppressed"
TIERS: Final[dict[Tier, str]] = {
    "conformance": "Does the mechanism do what it says?",
    "dp": "Can an attack disprove the promise?",
    "records": "What the model tells of a record",
    "federation": "What the updates tell, and who can bend the model",
    "bias": "Who is served worse",
}
VERDICT_ORDER: Final = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def number(value: float | None) -> str:
    """Three significant digits; whole numbers up to a million in full.

    >>> number(0.51234), number(1200), number(1e-05), number(None)
    ('0.512', '1200', '1e-5', 'suppressed')
    """
    if value is None:
        return SUPPRESSED
    if not math.isfinite(value):
        return "no bound"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    # Zeros at the end say how exact the figure is.
    text = f"{value:#.3g}" if 1e-3 <= abs(value) < 1000 else f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text.removesuffix(".")


def at_most(value: float) -> str:
    """Three significant digits, never rounded down."""
    return number(float(Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(value)))


def at_least(value: float) -> str:
    """Three significant digits, never rounded up."""
    return number(float(Context(prec=3, rounding=ROUND_FLOOR).create_decimal_from_float(value)))


def full(value: float) -> str:
    """As it stands in the JSON."""
    return float.__repr__(value) if isinstance(value, float) else int.__repr__(value)


def cell(value: Cell) -> str:
    """A table's cell."""
    return value if isinstance(value, str) else number(value)


def percent(share: float) -> str:
    """A probability as so many in a hundred; never rounded up to a certainty."""
    hundred = 100 * share
    digits = 1
    while digits < 6 and share < 1 and float(f"{hundred:.{digits}f}") >= 100:
        digits += 1
    if share < 1 and float(f"{hundred:.{digits}f}") >= 100:
        return "100 (to six digits)"
    text = f"{hundred:.{digits}f}"
    return text.removesuffix(".0")


def interval(value: Interval) -> str:
    """Such as ``0.48 to 0.56 (95 %, DeLong)``."""
    return (
        f"{number(value.low)} to {number(value.high)} ({percent(value.confidence)} %, "
        f"{value.method})"
    )


def measure(value: Measure) -> str:
    """The value and its unit."""
    unit = "" if value.value is None or not value.unit else f" {value.unit}"
    return number(value.value) + unit


def power(effect: SmallestEffect) -> str:
    """What the test could have seen."""
    return (
        f"{effect.measure} of {number(effect.value)} would have been found in "
        f"{percent(effect.power)} of 100 audits, at {percent(effect.alpha)} false alarms in 100"
    )
