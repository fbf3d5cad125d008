"""The run as pictures: PNG files and one page that needs neither network nor script.

The same record gives the same bytes: no time, no path and no version enters.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.summary import is_private, site_rows
from core.errors import RunError
from core.run_record import Line, RunRecord, read_record

CURVES_FOLDER: Final = "curves"
PAGE_FILE: Final = "curves.html"
# More lines than this cannot be told apart: the sites with the largest epsilon are drawn.
_MAX_LINES: Final = 12
_METRICS: Final = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "accuracy": "Accuracy",
}

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class _Picture:
    """A figure with its words."""

    name: str
    title: str
    alt: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def write_curves(folder: Path) -> list[Path]:
    """Draws the record of the run directory ``folder`` into it.

    Returns:
        The page and the PNG files.

    Raises:
        RunError: There is no record, or the files cannot be written.
    """
    record = read_record(folder)
    pictures = _pictures(record)
    page = folder / PAGE_FILE
    outputs = {page: _render(record, pictures).encode("utf-8")}
    outputs |= {folder / CURVES_FOLDER / f"{item.name}.png": item.png for item in pictures}
    try:
        (folder / CURVES_FOLDER).mkdir(exist_ok=True)
        for path, data in outputs.items():
            path.write_bytes(data)
    except OSError as error:
        raise RunError(f"cannot write the curves in {folder}: {error.strerror}") from error
    return list(outputs)


def _pictures(record: RunRecord) -> list[_Picture]:
    pictures = []
    for name, title in _METRICS.items():
        points = _metric_points(record.rounds, name)
        if points:
            pictures.append(_metric_picture(name, title, points))
    epsilons = _epsilon_points(record.rounds)
    if epsilons:
        pictures.append(_epsilon_picture(epsilons))
    return pictures


def _metric_points(rounds: Sequence[Line], name: str) -> Points:
    return [
        (line["server_round"], line["metrics"][name])
        for line in rounds
        if line["metrics"] is not None and line["metrics"].get(name) is not None
    ]


def _epsilon_points(rounds: Sequence[Line]) -> dict[str, Points]:
    """Epsilon by site; a site whose ledger bounds nothing has none."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in rounds:
        for site, spent in line["spent"].items():
            if spent["private"] and spent["epsilon"] is not None:
                points.setdefault(site, []).append((line["server_round"], spent["epsilon"]))
    return {site: points[site] for site in sorted(points)}


def _metric_picture(name: str, title: str, points: Points) -> _Picture:
    (first, start), (last, end) = points[0], points[-1]

    def draw(axes: Axes) -> None:
        axes.plot(*_columns(points), marker="o", markersize=3)

    return _Picture(
        name=name,
        title=title,
        alt=f"Line chart of {title.lower()} by round: {start:.4g} in round {first}, "
        f"{end:.4g} in round {last}.",
        caption=f"{title} on the public holdout after each round; round 0 is the model before "
        "training.",
        png=_png(title, title, draw),
    )


def _epsilon_picture(epsilons: Mapping[str, Points]) -> _Picture:
    largest = sorted(epsilons, key=lambda site: (-epsilons[site][-1][1], site))[:_MAX_LINES]

    def draw(axes: Axes) -> None:
        for site in sorted(largest):
            axes.plot(*_columns(epsilons[site]), marker="o", markersize=3, label=site)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")

    ends = ", ".join(f"{site} {epsilons[site][-1][1]:.3g}" for site in largest)
    left_out = len(epsilons) - len(largest)
    return _Picture(
        name="epsilon",
        title="Epsilon by site",
        alt=f"Line chart of epsilon by round for each site; at the end: {ends}.",
        caption="Epsilon of each site over its ledger's whole life, after each round that it "
        "took part in."
        + (f" The {left_out} sites with a smaller epsilon are not drawn." if left_out else ""),
        png=_png("Epsilon by site", "Epsilon", draw),
    )


def _png(title: str, label: str, draw: Callable[[Axes], None]) -> bytes:
    # Not what a matplotlibrc of the machine says.
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.set_xlabel("Round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _render(record: RunRecord, pictures: Sequence[_Picture]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("coordinator").joinpath("templates/curves.html.j2").read_text("utf-8")
    federation: Mapping[str, Any] = record.header["config"]["federation"]
    return environment.from_string(source).render(
        name=federation["name"],
        num_rounds=federation["num_rounds"],
        server_round=max((line["server_round"] for line in record.rounds), default=0),
        run_id=record.header["run_id"],
        task_digest=record.header["task_digest"],
        private=is_private(record),
        pictures=pictures,
        sites=site_rows(record),
        dropped=_dropped(record),
    )


def _dropped(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {"server_round": line["server_round"], "what": what, **item}
        for line in record.rounds + record.unfinished
        for what, kind in (("refused", "refusals"), ("dropped", "rejected"))
        for item in line[kind]
    ]
