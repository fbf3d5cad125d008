"""Figures as inline SVG: the same data give the same bytes, in the page's own colours.

matplotlib draws with colours that stand for roles; what comes out has the page's variables in
their place, so that one picture serves light, dark and paper. Text stays text.
"""

import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape

from audit.verdicts import Figure, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Colours that nothing else has, and what the page puts in their place.
_INK, _MUTED, _RULE, _SURFACE = "#a000f0", "#a000f1", "#a000f2", "#a000f3"
_SERIES: Final = ("#a00001", "#a00002", "#a00003", "#a00004", "#a00005", "#a00006")
_ROLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _SURFACE: "var(--surface)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(_SERIES, start=1)},
}
# No two series differ by colour alone.
_MARKERS: Final = ("o", "D", "s", "^", "v", "P")
_LINES: Final = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_HATCHES: Final = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
_WIDTH_INCHES: Final = 4.2
_ROW_INCHES: Final = 0.3
_MAX_LABEL: Final = 22
_STYLE: Final = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 10,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw(figure: Figure, *, key: str) -> Markup:
    """One figure.

    **Guarantees**: Equal arguments give equal bytes. It fetches nothing, and whatever its words
    are, they stay words.

    Args:
        figure: The data.
        key: Letters, digits and hyphens; ids within the page begin with it.

    Returns:
        An ``svg`` element with a title and a description for who does not see it.
    """
    painter = _PAINTERS[figure.kind]
    text = _svg(figure, painter, key)
    return _accessible(text, figure, key)


def _svg(figure: Figure, painter: Callable[["Axes", Figure], float], key: str) -> str:
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    # Not what a matplotlibrc of the machine says.
    with (
        matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": key}]),
        warnings.catch_warnings(),
    ):
        # The browser has the glyphs; matplotlib only measures them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=(_WIDTH_INCHES, 3.0), layout="constrained")
        axes = canvas.add_subplot()
        canvas.set_figheight(painter(axes, figure))
        _legend(canvas, axes)
        buffer = StringIO()
        canvas.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return buffer.getvalue()


def _intervals(axes: "Axes", figure: Figure) -> float:
    """A row for each category, its points one under the other."""
    rows = _categories(figure.series)
    count = _abreast(figure.series)
    for number, series in enumerate(figure.series):
        colour, offset = _colour(number), _offset(number, count)
        places = [rows[_name(x)] + offset for x in series.x]
        if series.low:
            axes.hlines(places, series.low, series.high, color=colour, linewidth=2.2)
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(
            series.y, places, marker, color=colour, markersize=6.5, label=series.name, zorder=3
        )
    _rows(axes, figure, rows)
    return _height(figure, len(rows) * max(1.0, 0.6 * count))


def _bars(axes: "Axes", figure: Figure) -> float:
    """Lying bars by category; standing ones over numbers."""
    if all(isinstance(x, float) for series in figure.series for x in series.x):
        return _histogram(axes, figure)
    rows = _categories(figure.series)
    count = _abreast(figure.series)
    for number, series in enumerate(figure.series):
        places = [rows[_name(x)] + _offset(number, count) for x in series.x]
        hatch = _HATCHES[number % len(_HATCHES)]
        colour = _colour(number)
        axes.barh(places, series.y, height=0.78 / count, facecolor=colour, alpha=0.4, linewidth=0)
        axes.barh(
            places,
            series.y,
            height=0.78 / count,
            facecolor="none",
            edgecolor=colour,
            hatch=hatch,
            label=series.name,
        )
        if series.low:
            axes.hlines(places, series.low, series.high, color=_INK, linewidth=1.4)
    _rows(axes, figure, rows)
    return _height(figure, len(rows) * max(1.0, 0.7 * count))


def _histogram(axes: "Axes", figure: Figure) -> float:
    for number, series in enumerate(figure.series):
        colour, line = _colour(number), _LINES[number % len(_LINES)]
        axes.step(series.x, series.y, where="mid", color=colour, linestyle=line, label=series.name)
        axes.fill_between(series.x, series.y, step="mid", color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    _numeric(axes, figure)
    return _height(figure, 9)


def _curve(axes: "Axes", figure: Figure) -> float:
    """Lines over x, with bands where there are intervals."""
    for number, series in enumerate(figure.series):
        colour, line = _colour(number), _LINES[number % len(_LINES)]
        marker = _MARKERS[number % len(_MARKERS)] if len(series.x) <= 25 else None
        x: Sequence[Any] = series.x
        axes.plot(
            x,
            series.y,
            color=colour,
            linestyle=line,
            marker=marker,
            markersize=4,
            label=series.name,
        )
        if series.low:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    _numeric(axes, figure)
    return _height(figure, 9)


_PAINTERS: Final[dict[str, Callable[["Axes", Figure], float]]] = {
    "intervals": _intervals,
    "bars": _bars,
    "curve": _curve,
}


def _rows(axes: "Axes", figure: Figure, rows: dict[str, int]) -> None:
    axes.set_yticks(list(rows.values()), [_wrapped(name) for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(figure.y_label)
    if figure.reference is not None:
        axes.axvline(figure.reference, color=_INK, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.text(
            figure.reference,
            -0.62,
            _wrapped(figure.reference_label),
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _numeric(axes: "Axes", figure: Figure) -> None:
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if figure.reference is not None:
        label = figure.reference_label or None
        axes.axhline(
            figure.reference, color=_INK, linestyle=(0, (4, 2)), linewidth=1.2, label=label
        )


def _legend(canvas: "Canvas", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = 1 if max(map(len, labels)) > _MAX_LABEL else 2
        canvas.legend(handles, labels, loc="outside lower center", ncols=columns)


def _height(figure: Figure, rows: float) -> float:
    legend = 0.24 * len(figure.series) if len(figure.series) > 1 else 0.0
    reference = 0.25 if figure.reference is not None else 0.0
    return 0.75 + _ROW_INCHES * rows + legend + reference


def _categories(series: Sequence[Series]) -> dict[str, int]:
    names = dict.fromkeys(_name(x) for item in series for x in item.x)
    return {name: row for row, name in enumerate(names)}


def _name(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def _abreast(series: Sequence[Series]) -> int:
    """How many series share a row: all, or none where no category is in two of them."""
    names = [_name(x) for item in series for x in set(item.x)]
    return len(series) if len(set(names)) < len(names) else 1


def _offset(number: int, count: int) -> float:
    if count == 1:
        return 0.0
    return (number - (count - 1) / 2) * 0.78 / count


def _colour(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, _MAX_LABEL, max_lines=3, placeholder=" ...")
    return "\n".join(lines)


def _accessible(text: str, figure: Figure, key: str) -> Markup:
    """Puts the page's colours, fonts and names of ids into what matplotlib wrote."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Within tags only: what stands between them are the figure's own words.
    text = re.sub(r"<[^>]*>", lambda tag: _in_the_page(tag.group(), key), text)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    view = box.group(1) if box else "0 0 100 100"
    words = Markup(
        '<svg viewBox="{}" role="img" aria-labelledby="{k}-title {k}-desc" '
        'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{k}-title">{}</title>'
        '<desc id="{k}-desc">{}</desc>'
    ).format(view, figure.title, figure.alternative, k=escape(key))
    return words + Markup(rest)  # noqa: S704  # matplotlib escaped every word of it


def _in_the_page(tag: str, key: str) -> str:
    tag = re.sub(r"\bid=\"", f'id="{key}-', tag)
    tag = re.sub(r"(xlink:href=\"#|url\(#)", rf"\g<1>{key}-", tag)
    tag = re.sub(r"font: ([^;\"]*?)([0-9.]+px)[^;\"]*", r"font-size: \2", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    for colour, role in _ROLES.items():
        tag = tag.replace(colour, role)
    return tag
