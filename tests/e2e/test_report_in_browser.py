"""The report's page in a real browser: it runs nothing, fetches nothing, fits and can be read."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from audit.report.writing import write_report
from privacy.signing import SiteKey
from tests.support.browser import CHROMIUM, Browser
from tests.support.reports import rich_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: `make browser` installs it"
)
WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")

# Every text with less contrast than WCAG 2.2 AA (1.4.3) asks for, and every line of a picture with
# less than 1.4.11 asks for. Colours are taken as the browser computed them.
CONTRAST = """
(() => {
  const parse = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return n.length === 3 ? [...n, 1] : n;
  };
  const over = (top, under) =>
    [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    if (!element) return [255, 255, 255, 1];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map(v => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const bad = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || ['STYLE', 'TITLE', 'title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const inPicture = element.closest('svg');
    const colour = parse(inPicture ? style.fill : style.color);
    const under = ground(inPicture ? inPicture.parentElement : element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = ratio(over(colour, under), under);
    seen += 1;
    if (found < (large ? 3 : 4.5)) bad.push([text.slice(0, 40), found.toFixed(2)]);
  }
  for (const element of document.querySelectorAll('figure svg path, figure svg use')) {
    if (!(element.getAttribute('style') || '').includes('--series')) continue;
    const style = getComputedStyle(element);
    const under = ground(element.closest('svg').parentElement);
    for (const name of ['fill', 'stroke']) {
      const faint = Number(style[name + 'Opacity']) * Number(style.opacity) < 1;
      if (!(element.getAttribute('style')).includes(name + ': var(--series') || faint) continue;
      seen += 1;
      const found = ratio(parse(style[name]), under);
      if (found < 3) bad.push([name, found.toFixed(2)]);
    }
  }
  return {seen, bad};
})()
"""
# What sticks out to the right, outside of a box that scrolls by itself.
OVERFLOW = """
(() => {
  const bad = [];
  for (const element of document.querySelectorAll('body *')) {
    if (element.closest('.scroll table, pre code, defs')) continue;
    const box = element.getBoundingClientRect();
    if (box.width > 0 && box.right > innerWidth + 0.5) bad.push(element.tagName);
  }
  return {page: document.documentElement.scrollWidth - innerWidth, bad};
})()
"""
FIGURES = """
[...document.querySelectorAll('svg')].map(svg => ({
  hidden: svg.getAttribute('aria-hidden') === 'true',
  role: svg.getAttribute('role'),
  words: (svg.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean)
    .map(id => document.getElementById(id)?.textContent || ''),
  caption: svg.closest('figure')?.querySelector('figcaption')?.textContent.trim() || '',
}))
"""
HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
BAD_PAGE = """<!DOCTYPE html><html lang="en" style="--series-1: #eee">
<body style="background: #fff">
<img src="file:///nowhere.png"><p style="color: #999">faint</p>
<div style="width: 2000px">wide</div>
<figure><svg role="img" viewBox="0 0 9 9"><path d="M0 0H9" style="stroke: var(--series-1)"/></svg>
</figure><script>document.title = "ran"</script></body></html>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report") / "out"
    key = SiteKey.generate()
    write_report(folder, rich_report(key, previous=rich_report(key, auc=0.61)))
    return (folder / "report.html").as_uri()


def test_the_checks_find_what_is_wrong_with_a_bad_page(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(BAD_PAGE)
    browser.open(page.as_uri(), width=360)
    assert len(browser.requests()) == 2
    assert browser.evaluate("document.title") == "ran"
    assert browser.evaluate(OVERFLOW)["page"] > 1000
    assert [what for what, _ in browser.evaluate(CONTRAST)["bad"]] == ["faint", "stroke"]
    (figure,) = browser.evaluate(FIGURES)
    assert (figure["words"], figure["caption"]) == ([], "")


def test_it_runs_no_script_and_asks_for_nothing(browser: Browser, address: str) -> None:
    browser.open(address, width=1280)
    assert browser.requests() == [address]
    assert browser.complaints() == []
    assert browser.evaluate("document.scripts.length") == 0
    policy = browser.evaluate(
        "document.querySelector('meta[http-equiv=Content-Security-Policy]').content"
    )
    assert policy.startswith("default-src 'none'")


def test_its_policy_stops_what_somebody_would_put_into_it(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    page = Path(address.removeprefix("file://")).read_text()
    poisoned = "<script>document.title = 'ran'</script><img src='https://example.org/x.png'></body>"
    (tmp_path / "poisoned.html").write_text(page.replace("</body>", poisoned))
    browser.open((tmp_path / "poisoned.html").as_uri(), width=1280)
    assert browser.evaluate("document.title") != "ran"
    # Blocked before it left: the browser says so, and no answer came.
    assert len(browser.complaints()) == 2
    assert all("Content Security Policy" in text for text in browser.complaints())


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_at_any_width(browser: Browser, address: str, width: int) -> None:
    browser.open(address, width=width)
    assert browser.evaluate(OVERFLOW) == {"page": 0, "bad": []}


def test_nothing_is_cut_off_on_paper(browser: Browser, address: str) -> None:
    # A4 without the margins of the page, in CSS pixels.
    browser.open(address, width=688, media="print", scheme="dark")
    assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    wide = (
        "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1)"
    )
    assert browser.evaluate(wide + ".length") == 0
    assert (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("media", ["screen", "print"])
def test_every_text_and_line_has_contrast_aa(
    browser: Browser, address: str, scheme: str, media: str
) -> None:
    browser.open(address, width=1280, scheme=scheme, media=media)
    found: dict[str, Any] = browser.evaluate(CONTRAST)
    assert found["seen"] > 400
    assert found["bad"] == []


def test_light_and_dark_are_two_pages(browser: Browser, address: str) -> None:
    grounds = []
    for scheme in SCHEMES:
        browser.open(address, width=1280, scheme=scheme)
        grounds.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


def test_every_figure_has_a_caption_and_an_alternative_text(browser: Browser, address: str) -> None:
    browser.open(address, width=1280)
    found = browser.evaluate(FIGURES)
    drawn = [figure for figure in found if not figure["hidden"]]
    assert len(drawn) == 5
    for figure in drawn:
        assert figure["role"] == "img"
        assert len(figure["words"]) == 2
        assert all(figure["words"])
        assert figure["caption"]


def test_headings_skip_no_level_and_verdicts_are_words(browser: Browser, address: str) -> None:
    browser.open(address, width=1280)
    levels = browser.evaluate(HEADINGS)
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    words = browser.evaluate(
        "[...document.querySelectorAll('.verdict')].map(v => v.innerText.trim())"
    )
    assert set(words) == {"FAIL", "INCONCLUSIVE", "PASS", "PASSED", "NOT PASSED"}
    shapes = browser.evaluate(
        "[...document.querySelectorAll('.card .verdict')].map(v => [v.innerText.trim(), "
        "v.querySelector('path').getAttribute('d')])"
    )
    assert len({json.dumps(pair) for pair in shapes}) == len({word for word, _ in shapes}) == 3


def test_boxes_that_scroll_can_be_reached_by_keyboard(browser: Browser, address: str) -> None:
    browser.open(address, width=360)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.scroll, pre')].filter(b => b.scrollWidth > b.clientWidth)"
        ".map(b => b.tabIndex)"
    )
    assert len(boxes) > 5
    assert set(boxes) == {0}
