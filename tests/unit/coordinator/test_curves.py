import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from coordinator.curves import write_curves
from coordinator.run_directory import RunDirectory
from core.config import FederationConfig
from core.errors import RunError
from core.messages import SpentBudget
from core.run_record import RoundResult, SiteRefusal
from tests.support.sites import config_of

SIZES = {"north": 100, "south": 300}
CONFIG = config_of(SIZES)


def _record(
    folder: Path,
    *,
    private: bool = True,
    refusal: str = "no",
    config: FederationConfig = CONFIG,
    evaluated: bool = True,
) -> Path:
    with RunDirectory.open(folder, config, task_digest="d" * 64, run_id="0" * 16) as run:
        for server_round in range(4):
            sites = [site.name for site in config.sites] if server_round else []
            epsilon = 0.5 * server_round if private else None
            spent = SpentBudget(epsilon=epsilon, delta=1e-5, private=private)
            line = RoundResult(
                server_round=server_round,
                attempts=1,
                used=sites,
                spent=dict.fromkeys(sites, spent),
                refusals=[SiteRefusal("south", "policy-refused", refusal)] if server_round else [],
                rejected=[],
                weights_digest="a" * 64,
                seconds=1.0,
                metrics={"loss": 2.0 / (server_round + 1), "perplexity": float("inf")}
                if evaluated
                else None,
            ).line()
            run.append(line.pop("kind"), **line)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(folder: Path) -> Page:
    return Page((folder / "curves.html").read_text("utf-8"))


def test_the_page_holds_the_very_png_files_with_words_for_each(tmp_path: Path) -> None:
    paths = write_curves(_record(tmp_path))

    assert [path.name for path in paths] == ["curves.html", "loss.png", "epsilon.png"]
    images = [attributes for tag, attributes in _page(tmp_path).tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Line chart of loss by round: 2 in round 0, 0.5 in round 3.",
        "Line chart of epsilon by round for each site; at the end: north 1.5, south 1.5.",
    ]
    for image, path in zip(images, paths[1:], strict=True):
        data = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert data == path.read_bytes()
        assert data.startswith(b"\x89PNG")


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    one = [path.read_bytes() for path in write_curves(_record(tmp_path / "one"))]
    two = [path.read_bytes() for path in write_curves(_record(tmp_path / "two"))]

    assert one == two


def test_the_page_needs_no_script_and_no_network(tmp_path: Path) -> None:
    write_curves(_record(tmp_path, refusal='<script src="https://evil.example/x.js"></script>'))

    page = _page(tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "evil.example" in page.text
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_table_names_sites_budgets_and_refusals(tmp_path: Path) -> None:
    write_curves(_record(tmp_path, refusal="too much"))

    text = re.sub(r"\s+", " ", _page(tmp_path).text)
    assert "3 of 3 rounds" in text
    assert "north10031.5001e-05yes 00" in text.replace(" 1", "1")
    assert "policy-refused: too much" in text


def test_a_private_run_is_not_marked(tmp_path: Path) -> None:
    write_curves(_record(tmp_path))

    assert "NOT PRIVATE" not in (tmp_path / "curves.html").read_text("utf-8")


@pytest.mark.parametrize("mode", ["local", "none"])
def test_a_run_without_privacy_is_marked_in_title_and_head(tmp_path: Path, mode: str) -> None:
    privacy = {"mode": "none"} if mode == "none" else {"mode": "local", "noise_multiplier": 1.0}
    config = config_of(SIZES, privacy=privacy)
    write_curves(_record(tmp_path, private=False, config=config))

    page = _page(tmp_path)
    assert page.text.count("NOT PRIVATE") == 2
    assert ("p", {"class": "not-private", "role": "alert"}) in page.tags
    assert "no bound" in page.text
    assert not (tmp_path / "curves" / "epsilon.png").exists()


def test_more_sites_than_can_be_told_apart_are_counted(tmp_path: Path) -> None:
    config = config_of({f"site-{n}": 100 for n in range(20)} | {"south": 100})
    write_curves(_record(tmp_path, config=config))

    assert "The 9 sites with a smaller epsilon are not drawn." in _page(tmp_path).text


def test_a_run_with_nothing_to_draw_says_so(tmp_path: Path) -> None:
    paths = write_curves(_record(tmp_path, private=False, evaluated=False))

    assert [path.name for path in paths] == ["curves.html"]
    assert "there is nothing to draw" in _page(tmp_path).text


def test_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run at"):
        write_curves(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _record(tmp_path)
    (tmp_path / "curves.html").mkdir()

    with pytest.raises(RunError, match="cannot write the curves"):
        write_curves(tmp_path)
