"""Writes the golden files anew: ``python -m tests.golden.regenerate --overwrite``.

A changed golden file is a changed promise to peers of another version: look at the difference,
and raise the schema version where it is one.
"""

import argparse
import sys
from pathlib import Path

from core.messages import encode
from tests.support.messages import EXAMPLES

FOLDER = Path(__file__).parent


def golden_files() -> dict[Path, bytes]:
    """Every golden file with what stands in it by the code of today."""
    return {
        FOLDER / "messages" / f"{type(example).__name__}.json": encode(example)
        for example in EXAMPLES
    }


def main(arguments: list[str] | None = None) -> int:
    """Writes the files if, and only if, told to overwrite."""
    parser = argparse.ArgumentParser(description=__doc__, prog="tests.golden.regenerate")
    parser.add_argument("--overwrite", action="store_true", help="write over what is there")
    if not parser.parse_args(arguments).overwrite:
        sys.stderr.write("refused: golden files are promises; pass --overwrite to change them\n")
        return 2
    for path, content in golden_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
