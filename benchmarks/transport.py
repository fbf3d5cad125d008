"""Transport: a deployment's sessions over loopback and mutual TLS, and the naive way beside it.

    python benchmarks/transport.py [--quick] [--json]

Coordinator and sites are processes of their own (benchmarks/parts/ says what each does), fresh for
each measurement. No time is reported before the digests of what arrived were found equal to those
of what was sent. docs/benchmarks.md has the figures and how to read them. It exits 0 whatever
falls short.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from parts.processes import answer, end, start
from parts.report import Report

MEGABYTE = 1_000_000
# What a process may need besides the model: interpreter, torch, gRPC, what is on the way.
OVERHEAD = 300 * MEGABYTE


def exchange(
    mode: str, folder: Path, *, sites: int = 1, size: int = MEGABYTE, count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One measurement: what the coordinator found, and what the sites say at their end."""
    common = [mode, "--sites", str(sites), "--size", str(size)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        coordinator = start(
            "transport_coordinator.py", *common, "--count", str(count), "--folder", place
        )
        members = None
        try:
            answer(coordinator)
            members = start("transport_sites.py", *common, "--folder", place)
            found = answer(coordinator)
            members.terminate()
            left = answer(members)
        finally:
            end(members, coordinator)
    return found, left


def measure_round_trip(report: Report, folder: Path, *, quick: bool) -> None:
    """A megabyte there and back."""
    found, _ = exchange("echo", folder, count=50 if quick else 500)
    milliseconds = [1e3 * seconds for seconds in found["seconds"]]
    report.add("round_trip_1mb_ms", milliseconds, "ms", at_most=50)
    naive, _ = naive_exchange("echo", folder, size=MEGABYTE, count=20 if quick else 100)
    report.add("naive_round_trip_1mb_ms", [1e3 * seconds for seconds in naive["seconds"]], "ms")


def measure_large(report: Report, folder: Path, *, quick: bool) -> None:
    """A large model, one way and the other, and the memory that it takes."""
    megabytes, count = (100, 2) if quick else (500, 5)
    size, suffix = megabytes * MEGABYTE, f"{megabytes}mb"
    target = 1.5 * megabytes / 500
    peaks = {}
    for mode, name in (("take", f"one_way_{suffix}_s"), ("give", f"way_back_{suffix}_s")):
        found, left = exchange(mode, folder, size=size, count=count)
        report.add(name, found["seconds"], "s", at_most=target)
        peaks[f"coordinator, {mode}"] = found["peak_rss"]
        peaks[f"site, {mode}"] = left["peak_rss"]
    ratios = {who: (peak - OVERHEAD) / size for who, peak in peaks.items()}
    report.add("peak_rss_over_model", [max(ratios.values())], "x", at_most=1.5)
    report.notes.append(
        f"peak_rss_over_model: (peak RSS - 300 MB) / {megabytes} MB, the worst of "
        + ", ".join(f"{who} {peak / MEGABYTE:.0f} MB" for who, peak in peaks.items())
    )
    found, left = naive_exchange("take", folder, size=size, count=1)
    report.add(f"naive_one_way_{suffix}_s", found["seconds"], "s")
    worst = max(found["peak_rss"], left["peak_rss"])
    report.add("naive_peak_rss_over_model", [(worst - OVERHEAD) / size], "x")


def measure_idle(report: Report, folder: Path, *, quick: bool) -> None:
    """A hundred sites that have nothing to do."""
    found, _ = exchange("idle", folder, sites=100, count=10 if quick else 60)
    report.add("idle_100_sites_cpu_percent", [found["percent"]], "%", at_most=2)
    report.notes.append(
        f"idle: {found['sites']} open sessions, heartbeats both ways every 7 s; coordinator's "
        f"peak RSS {found['peak_rss'] / MEGABYTE:.0f} MB"
    )


def naive_exchange(
    mode: str, folder: Path, *, size: int, count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rival: Flower's records as one protobuf message in one gRPC call, over mutual TLS."""
    common = ["--size", str(size)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        server = start("transport_naive.py", "server", mode, *common, "--folder", place)
        client = None
        try:
            port = answer(server)["port"]
            arguments = ("client", mode, *common, "--folder", place)
            client = start(
                "transport_naive.py", *arguments, "--port", str(port), "--count", str(count)
            )
            found = answer(client)
            server.terminate()
            left = answer(server)
        finally:
            end(client, server)
    return found, left


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Transport over loopback and mutual TLS.")
    parser.add_argument("--quick", action="store_true", help="about a minute; rough figures")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parts = {"round-trip": measure_round_trip, "large": measure_large, "idle": measure_idle}
    parser.add_argument("--only", choices=parts, help="one part")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="cloister-benchmark-") as folder:
        for name, measure in parts.items():
            if options.only in (None, name):
                measure(report, Path(folder), quick=options.quick)
    report.print(("cloister", "cryptography", "flwr", "grpcio", "numpy"), as_json=options.json)


if __name__ == "__main__":
    main()
