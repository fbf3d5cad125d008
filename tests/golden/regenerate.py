"""Writes the golden files anew: ``python -m tests.golden.regenerate --overwrite``.

A changed golden file is a changed promise to peers of another version: look at the difference,
and raise the schema version where it is one.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from audit.report.document import report_schema
from core.digests import canonical_json
from core.messages import encode
from tests.support import golden_secagg
from tests.support.attempts import context
from tests.support.golden_attempts import ATTEMPTS, golden_attempt
from tests.support.golden_log import golden_log
from tests.support.messages import EXAMPLES

FOLDER = Path(__file__).parent


def golden_files() -> dict[Path, bytes]:
    """Every golden file with what stands in it by the code of today."""
    messages = {
        FOLDER / "messages" / f"{type(example).__name__}.json": encode(example)
        for example in EXAMPLES
    }
    # Raise the protocol's version where one of these changes: two versions would mask apart.
    attempt = {"fields": asdict(context()), "digest": context().hexdigest()}
    secure_aggregation = {
        FOLDER / "secure_aggregation" / "context.json": canonical_json(attempt),
        FOLDER / "secure_aggregation" / "derived.json": canonical_json(golden_secagg.derived()),
        **{
            FOLDER / "secure_aggregation" / file: canonical_json(golden_attempt(file))
            for file in ATTEMPTS
        },
    }
    audit = {FOLDER / "audit" / "report-1.schema.json": canonical_json(report_schema())}
    # Signatures of old audits are checked against these forms.
    log = {FOLDER / "transparency_log" / "log.json": canonical_json(golden_log())}
    return messages | secure_aggregation | audit | log


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
