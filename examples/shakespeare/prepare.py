"""Turns a play script into speeches: a training file and a public holdout.

    python examples/shakespeare/prepare.py input.txt runs/shakespeare-data

The script is plain text: a line with a speaker and a colon, the speech, a blank line. The same
file gives the same split on every machine. The folder is written wholly or not at all.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HOLDOUT_PERCENT = 20
_MAX_SPEAKER = 60  # characters; a longer first line is a speech that lost its speaker


class Speech(NamedTuple):
    """What one speaker says at one go."""

    speaker: str
    text: str


def main() -> int:
    """Reads the arguments, writes the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Cut a play script into speeches.")
    parser.add_argument("script", type=Path, help="the text, such as tiny Shakespeare's input.txt")
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    options = parser.parse_args()
    try:
        speeches = list(read_speeches(options.script))
        distinct = without_repetitions(speeches)
        train, holdout = split(distinct)
        write_folder(options.output, train, holdout)
    except (OSError, ValueError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.output}: {len(train)} speeches of {len({s.speaker for s in train})} speakers to "
        f"train on, {len(holdout)} in the public holdout; "
        f"{len(speeches) - len(distinct)} repetitions left out"
    )
    return 0


def read_speeches(path: Path) -> Iterator[Speech]:
    """The speeches of a script; a speaker who says nothing is passed over.

    Raises:
        ValueError: The file is not UTF-8, or a speech has no speaker; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got another byte at {error.start}") from None
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line.rstrip())
        elif block:
            speech = _speech(block, f"{path}, line {number - len(block)}")
            if speech.text:
                yield speech
            block = []


def _speech(block: list[str], place: str) -> Speech:
    speaker = block[0].removesuffix(":")
    if speaker == block[0] or not 0 < len(speaker) <= _MAX_SPEAKER:
        raise ValueError(
            f"{place}: expected a speaker and a colon, got another line\n"
            "hint: a blank line ends a speech; the next line names the next speaker"
        )
    return Speech(speaker, "\n".join(block[1:]))


def without_repetitions(speeches: Iterable[Speech]) -> list[Speech]:
    """The first of those that differ in letter case and spaces only."""
    first: dict[str, Speech] = {}
    for speech in speeches:
        first.setdefault(_key(speech.text), speech)
    return list(first.values())


def split(speeches: Iterable[Speech]) -> tuple[list[Speech], list[Speech]]:
    """Training and holdout, by a hash of the text: no speech moves when others are added.

    Raises:
        ValueError: One of them is empty.
    """
    parts: tuple[list[Speech], list[Speech]] = ([], [])
    for speech in speeches:
        digest = hashlib.sha256(_key(speech.text).encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % 100 < HOLDOUT_PERCENT].append(speech)
    if not all(parts):
        raise ValueError(
            "expected speeches enough for training and holdout, got "
            f"{len(parts[0])} and {len(parts[1])}"
        )
    return parts


def _key(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


def write_folder(output: Path, train: list[Speech], holdout: list[Speech]) -> None:
    """Writes both files and the federation's, which names them, into a new folder.

    Raises:
        ValueError: The folder is there already.
        OSError: The disk cannot be written.
    """
    if output.exists():
        raise ValueError(f"expected a folder that does not exist yet, got {output}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".prepare-") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        for name, speeches in (("train", train), ("holdout", holdout)):
            lines = (json.dumps(speech._asdict()) + "\n" for speech in speeches)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("federation.toml"), folder / "federation.toml")
        folder.rename(output)


if __name__ == "__main__":
    sys.exit(main())
