"""What every benchmark prints: a table for people, one JSON object for programs."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number; ``target`` says in words what is wanted of it, ``holds`` whether it is so."""

    name: str
    value: float
    unit: str
    target: str | None = None
    holds: bool | None = None


@dataclass
class Report:
    """The figures of one run, and why others are missing."""

    figures: list[Figure] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        values: Sequence[float],
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """The median of ``values``, and beside it the smallest and the largest."""
        value = median(values)
        target, holds = None, None
        if at_most is not None:
            target, holds = f"<= {at_most:g}", value <= at_most
        elif at_least is not None:
            target, holds = f">= {at_least:g}", value >= at_least
        self.figures.append(Figure(name, value, unit, target, holds))
        self.figures.append(Figure(f"{name}_min", min(values), unit))
        self.figures.append(Figure(f"{name}_max", max(values), unit))

    def leave_out(self, names: Sequence[str], reason: str) -> None:
        """Names figures that could not be measured."""
        self.left_out += [{"name": name, "reason": reason} for name in names]

    def print(self, versions_of: Sequence[str], *, as_json: bool) -> None:
        """To stdout."""
        machine, versions = _machine(), _versions(versions_of)
        if as_json:
            document = {"machine": machine, "versions": versions, **asdict(self)}
            json.dump(document, sys.stdout, indent=2)
            print()
            return
        print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
        print("versions: " + ", ".join(f"{key} {value}" for key, value in versions.items()))
        for figure in self.figures:
            held = {None: "", True: "holds", False: "falls short"}[figure.holds]
            target = f"{figure.target or '':>8}"
            print(f"{figure.name:36} {figure.value:10.3f} {figure.unit:6} {target}  {held}")
        for item in self.left_out:
            print(f"{item['name']:36} left out: {item['reason']}")
        for note in self.notes:
            print(f"note: {note}")


def _machine() -> dict[str, Any]:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
