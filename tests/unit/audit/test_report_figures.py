"""Figures: the same bytes for the same data, in the page's colours, and words stay words."""

from typing import Any
from xml.etree import ElementTree

import pytest

from audit.report.figures import draw
from audit.report.sparks import spark
from audit.verdicts import Figure, Interval, Measure, Series
from tests.support.reports import EVIL


def figure(kind: Any, **changes: Any) -> Figure:
    x: tuple[Any, ...] = (EVIL, "b") if kind != "curve" else (1.0, 2.0)
    fields: dict[str, Any] = {
        "kind": kind,
        "title": EVIL,
        "caption": "A caption.",
        "alternative": "In words: " + EVIL,
        "x_label": EVIL,
        "y_label": EVIL,
        "series": (
            Series(name=EVIL, x=x, y=(0.5, 0.7), low=(0.4, 0.6), high=(0.6, 0.8)),
            Series(name="other", x=x, y=(0.2, 0.3)),
        ),
        "reference": 0.5,
        "reference_label": EVIL,
    }
    return Figure(**{**fields, **changes})


KINDS = ("intervals", "bars", "curve")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_give_the_same_bytes(kind: str) -> None:
    assert draw(figure(kind), key="f") == draw(figure(kind), key="f")
    moved = (Series(name="other", x=(1.0, 2.0), y=(0.2, 0.31)),)
    assert draw(figure(kind), key="f") != draw(figure(kind, series=moved), key="f")


@pytest.mark.parametrize("kind", KINDS)
def test_words_stay_words_and_nothing_is_fetched(kind: str) -> None:
    root = ElementTree.fromstring(draw(figure(kind), key="f"))  # noqa: S314  # our own
    tags = {element.tag.split("}")[-1] for element in root.iter()}
    assert tags <= {
        "svg",
        "title",
        "desc",
        "g",
        "path",
        "use",
        "defs",
        "text",
        "clipPath",
        "rect",
        "pattern",
    }
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith("#f-")
            assert "https://" not in value
    # Long labels are wrapped, so that each word is looked for by itself.
    assert "<script>alert(1)</script>" in " ".join(root.itertext())


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_a_title_and_a_description(kind: str) -> None:
    root = ElementTree.fromstring(draw(figure(kind), key="k-1"))  # noqa: S314  # our own
    assert root.get("role") == "img"
    named = {element.get("id"): element.text for element in root}
    labels = str(root.get("aria-labelledby")).split()
    assert [named[label] for label in labels] == [EVIL, "In words: " + EVIL]
    assert all(str(e.get("id")).startswith("k-1-") for e in root.iter() if e.get("id"))


@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_the_page_s_and_the_machine_leaves_no_trace(kind: str) -> None:
    text = draw(figure(kind), key="f")
    assert "var(--series-1)" in text
    assert "var(--ink)" in text
    assert "#a000" not in text
    for trace in ("matplotlib.org", "<metadata", "dc:date", "DejaVu", "<style"):
        assert trace not in text


@pytest.mark.parametrize("kind", KINDS)
def test_names_in_any_script_are_drawn(kind: str) -> None:
    words = "\u60a3\u8005 \u0645\u0631\u064a\u0636 \U0001f3e5"
    assert "\u60a3\u8005" in draw(figure(kind, y_label=words), key="f")


def test_bars_over_numbers_are_a_histogram() -> None:
    series = (Series(name="members", x=(0.0, 0.5, 1.0), y=(1.0, 3.0, 2.0)),)
    text = draw(figure("bars", series=series, reference=None), key="f")
    assert "var(--series-1)" in text


def interval_of(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, confidence=0.95, method="made up")


def test_measures_of_one_kind_share_a_scale() -> None:
    model = Measure(name="membership-auc", label="", value=0.8, interval=interval_of(0.7, 0.9))
    control = Measure(name="control-auc", label="", value=0.5, interval=interval_of(0.4, 0.6))
    other = Measure(name="epsilon-proven", label="", value=900.0, limit=1000.0)
    family = (model, control, other)
    scales = [
        [e.text for e in ElementTree.fromstring(spark(m, family)).iter("text")]  # noqa: S314
        for m in family
    ]
    assert scales[0] == scales[1] != scales[2]


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.0, 0.0, 0.0), (-3.0, -4.0, 2.0), (1e-9, 0.0, 1.0)]
)
def test_a_line_holds_whatever_is_measured(value: float, low: float, high: float) -> None:
    item = Measure(name="gap", label="", value=value, interval=interval_of(low, high), limit=0.0)
    root = ElementTree.fromstring(spark(item, (item,)))  # noqa: S314  # our own
    (dot,) = root.iter("circle")
    assert 8.0 <= float(str(dot.get("cx"))) <= 232.0
    assert root.get("aria-hidden") == "true"


def test_nothing_is_drawn_of_a_number_alone_or_of_none() -> None:
    assert spark(Measure(name="gap", label="", value=1.0)) == ""
    assert spark(Measure(name="gap", label="", value=None, limit=1.0)) == ""
