"""Writes the embedded example's records with a bias planted in them, for an audit to find.

    python examples/audit/planted_bias.py runs/biased-data

Of one group, a share of the labels is replaced by another, at random: as if that group's notes had
been coded carelessly at every hospital. Whatever is trained on them serves that group worse.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from core.data.clinic import CLINIC_HOLDOUT, CLINIC_HOSPITALS, CLINIC_LABELS, clinic_source
from core.data.records import Record, iterate

FEDERATION = Path(__file__).with_name("federation.toml")


def main(arguments: list[str] | None = None) -> int:
    """Writes a new folder; 1 where it cannot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="new folder for the federation and its data")
    parser.add_argument("--attribute", default="age_group", choices=("age_group", "sex"))
    parser.add_argument("--group", default="elder", help="whose labels are damaged")
    parser.add_argument("--rate", type=float, default=0.4, help="share of damaged labels")
    chosen = parser.parse_args(arguments)
    try:
        damaged = write_folder(chosen.output, chosen.attribute, chosen.group, chosen.rate)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{damaged} labels of {chosen.attribute} {chosen.group} damaged in {chosen.output}")
    return 0


def write_folder(output: Path, attribute: str, group: str, rate: float) -> int:
    """Writes data, the federation's file and the sites' files, wholly or not at all.

    Returns:
        How many labels were damaged.

    Raises:
        ValueError: The folder is there already, nobody is of that group, or the rate is no share.
        OSError: The disk cannot be written.
    """
    if output.exists():
        raise ValueError(f"expected a folder that does not exist yet, got {output}")
    if not 0 <= rate <= 1:
        raise ValueError(f"expected a rate from 0 to 1, got {rate}")
    output.parent.mkdir(parents=True, exist_ok=True)
    damaged = people = 0
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".planted-") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        for hospital in (*CLINIC_HOSPITALS, CLINIC_HOLDOUT):
            lines = []
            for number, record in enumerate(iterate(clinic_source(hospital, seed=0))):
                label = str(record.label)
                if record.groups[attribute] == group:
                    people += 1
                    label = damaged_label(record, f"{hospital}/{number}", rate)
                damaged += label != record.label
                lines.append(json.dumps(as_row(record, label)) + "\n")
            (folder / f"{hospital}.jsonl").write_text("".join(lines), encoding="utf-8")
        if not people:
            raise ValueError(f"expected a group of {attribute}, got {group!r}")
        for file in (FEDERATION, *(FEDERATION.with_name(f"{h}.toml") for h in CLINIC_HOSPITALS)):
            shutil.copyfile(file, folder / file.name)
        folder.rename(output)
    return damaged


def as_row(record: Record, label: str) -> dict[str, str]:
    """A record as a line of the file."""
    return {
        "text": record.text,
        "label": label,
        "person": str(record.person),
        **record.groups,
    }


def damaged_label(record: Record, name: str, rate: float) -> str:
    """The label, or with chance ``rate`` another; the same at every call for the same name."""
    digest = hashlib.sha256(f"planted-bias/1/{name}".encode()).digest()
    if int.from_bytes(digest[:8], "big") >= rate * 2**64:
        return str(record.label)
    others = [label for label in CLINIC_LABELS if label != record.label]
    return others[int.from_bytes(digest[8:16], "big") % len(others)]


if __name__ == "__main__":
    sys.exit(main())
