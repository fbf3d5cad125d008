"""One measure on a line: its value, its interval, and what it is held against."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from audit.report.words import number
from audit.verdicts import Measure

_WIDTH, _LEFT, _RIGHT, _Y = 240.0, 8.0, 232.0, 9.0


def spark(measure: Measure, others: Sequence[Measure] = ()) -> Markup:
    """A small line; for the eye only, since the same numbers stand beside it as text.

    Args:
        measure: What is drawn.
        others: All measures of the test: those of its kind (the last word of the name, such as
            ``auc``) share its scale, so that they can be compared.

    Returns:
        An ``svg`` element; empty where there is neither an interval nor a limit.
    """
    interval, value = measure.interval, measure.value
    if value is None or (interval is None and measure.limit is None):
        return Markup("")
    family = [item for item in others if _kind(item) == _kind(measure)]
    low, high = _scale([point for item in (measure, *family) for point in _points(item)])

    def x(point: float) -> str:
        return f"{_LEFT + (point - low) / (high - low) * (_RIGHT - _LEFT):.2f}"

    parts = [
        f'<svg class="spark" viewBox="0 0 {_WIDTH:g} 26" aria-hidden="true">',
        f'<path d="M{_LEFT} {_Y}H{_RIGHT}" stroke="var(--rule)" stroke-width="1"/>',
    ]
    if measure.limit is not None:
        parts.append(
            f'<path d="M{x(measure.limit)} 1V17" stroke="var(--ink)" stroke-width="1.4" '
            'stroke-dasharray="3 2"/>'
        )
    if interval is not None:
        parts.append(
            f'<path d="M{x(interval.low)} {_Y}H{x(interval.high)}" stroke="var(--series-1)" '
            'stroke-width="4" stroke-linecap="round" opacity="0.55"/>'
        )
    parts.append(f'<circle cx="{x(value)}" cy="{_Y}" r="4.2" fill="var(--series-1)"/>')
    parts.append(f'<text x="{_LEFT}" y="25" text-anchor="start">{number(low)}</text>')
    parts.append(f'<text x="{_RIGHT}" y="25" text-anchor="end">{number(high)}</text></svg>')
    return Markup("".join(parts))  # noqa: S704  # made of numbers only


def _kind(measure: Measure) -> tuple[str, str]:
    return measure.name.rsplit("-", 1)[-1], measure.unit


def _points(measure: Measure) -> list[float]:
    interval = measure.interval
    points = [measure.value, measure.limit]
    points += [] if interval is None else [interval.low, interval.high]
    return [point for point in points if point is not None]


def _scale(points: Sequence[float]) -> tuple[float, float]:
    """Round ends with some room on both sides of everything."""
    low, high = min(points), max(points)
    width = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(width))
    first = math.floor((low - 0.3 * width) / step) * step
    last = math.ceil((high + 0.3 * width) / step) * step
    # What cannot be negative does not look as if it could.
    return (0.0 if low >= 0 > first else first), last
