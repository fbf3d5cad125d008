"""The services' logs: one JSON object a line."""

import json
import logging
import sys
from typing import Any

import pytest

from cli.logs import JsonLines, log_json_lines


def line(message: str, *args: object, **settings: Any) -> dict[str, Any]:
    record = logging.LogRecord("a.b", logging.WARNING, "file", 1, message, args, None)
    for name, value in settings.items():
        setattr(record, name, value)
    text = JsonLines().format(record)
    assert "\n" not in text
    assert text.isascii()
    document: dict[str, Any] = json.loads(text)
    return document


def test_a_line_says_when_how_bad_who_and_what() -> None:
    found = line("%s is away", "north")
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "a.b", "message": "north is away"}


def test_fields_are_kept_apart() -> None:
    found = line("round", server_round=3, where=complex(1, 2))
    assert found["fields"] == {"server_round": 3, "where": "(1+2j)"}


def test_what_a_peer_says_cannot_forge_a_line() -> None:
    assert line("%s", '\n{"level": "info"}\x1b[31m\u2028')["message"].startswith("\n")


def test_an_exception_is_told_within_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        found = line("failed", exc_info=sys.exc_info())
    assert "ValueError: broken" in found["exception"]


@pytest.mark.parametrize(("verbose", "lines"), [(0, 1), (1, 2)])
def test_the_level_is_the_command_s(
    verbose: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        log_json_lines(verbose)
        logging.getLogger("x").debug("detail")
        logging.getLogger("x").info("news")
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        root.handlers.extend(handlers)
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    assert len(capsys.readouterr().err.splitlines()) == lines
