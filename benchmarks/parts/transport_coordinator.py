"""The coordinator's end of the transport benchmark: the servers and the grid of a deployment.

    transport_coordinator.py MODE --sites N --size BYTES --count N --folder DIR

Makes identities in DIR, prints one JSON line when sites may start and one with its figures, and
ends when its stdin is closed. What is asked of the first site, MODE says; see transport_sites.py.
`idle` asks nothing, and measures the processor's time of this process over COUNT seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# First: see its docstring.
from transport_federation import (
    FEDERATION,
    Members,
    encoded_weights,
    found_federation,
    order,
    peak_rss,
    server_certificate,
    site_name,
    weights_digest,
    weights_manifest,
)

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict  # isort: skip

from coordinator.grids.remote import RemoteGrid
from coordinator.orders import task_content
from coordinator.payload import from_record
from coordinator.service.doorkeeper import Doorkeeper
from coordinator.service.servers import Servers, ServerTls, serve
from core.array_codec import Manifest
from core.coordinator_config import LivenessSection
from core.digests import arrays_digest
from core.errors import IdentityError
from core.messages import encode
from core.wire.documents import SignedRoster

SECONDS = 300.0


class Books(Doorkeeper):
    """Everybody has joined, and nobody else does."""

    def __init__(self, signed: SignedRoster) -> None:
        self._signed = signed

    def roster(self) -> SignedRoster:
        """The one roster."""
        return self._signed

    def _no(self, *_: object) -> Any:
        raise IdentityError("expected sessions only")

    join = collect = renew = control = _no


def open_servers(grid: RemoteGrid, members: Members) -> Servers:
    """Both servers on free ports."""
    key, chain = server_certificate(members.authority)
    tls = ServerTls(key, chain, members.authority.root_pem.encode("ascii"))
    return serve(
        grid,
        Books(members.roster),
        lambda: tls,
        federation=FEDERATION,
        address="127.0.0.1:0",
        enrolment_address="127.0.0.1:0",
    )


def wait(what: str, found: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + SECONDS
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {SECONDS:g} seconds for {what}")
        time.sleep(0.05)


class Asking:
    """Orders to the first site, one after the other."""

    def __init__(self, grid: RemoteGrid, mode: str, size: int) -> None:
        self.manifest: Manifest = weights_manifest(size)
        self._grid, self._mode = grid, mode
        self._digest = weights_digest(size)
        self._record: ArrayRecord | None = None
        if mode != "give":  # then the site has them
            self._record = ArrayRecord()
            for name, fields in encoded_weights(size).items():
                self._record[name] = Array(*fields)
        self._rounds = 0

    def ask(self) -> float:
        """One order and its answer; seconds."""
        self._rounds += 1
        task = order(self._rounds, self._digest)
        if self._record is None:
            content = RecordDict({"task": ConfigRecord({"task": encode(task)})})
        else:
            content = task_content(task, self._record)
        message = self._grid.create_message(content, "train", 1, "1", SECONDS)
        started = time.perf_counter()
        (answer,) = self._grid.send_and_receive([message], timeout=SECONDS)
        seconds = time.perf_counter() - started
        self._check(answer)
        return seconds

    def _check(self, answer: Message) -> None:
        """The answer is of the expected kind; of the first, also its arrays."""
        wanted = "refusal" if self._mode == "take" else "reply"
        if answer.has_error() or wanted not in answer.content:
            raise SystemExit(f"expected a {wanted}, got {answer}")
        if self._rounds == 1 and wanted == "reply":
            record = answer.content["arrays"]
            if not isinstance(record, ArrayRecord):
                raise SystemExit("expected arrays")
            if arrays_digest(from_record(record, self.manifest)) != self._digest:
                raise SystemExit("the arrays that came back are not those that went out")


def idle_percent(seconds: int) -> float:
    """How much of one core this process takes."""
    time.sleep(5)  # handshakes are over, and so is what they left to do
    before, started = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return 100 * (time.process_time() - before) / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("echo", "take", "give", "idle"))
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    grid = RemoteGrid(LivenessSection())
    members = found_federation(options.folder, options.sites)
    servers = open_servers(grid, members)
    members.pin(servers.port, servers.enrolment_port)
    print(json.dumps({"ready": True}), flush=True)
    figures: dict[str, Any] = {}
    if options.mode == "idle":
        wait("all sites", lambda: len(grid.sites()) == options.sites)
        figures["percent"] = idle_percent(options.count)
        figures["sites"] = len(grid.sites())
    else:
        asking = Asking(grid, options.mode, options.size)
        grid.begin_run({1: site_name(0)}, asking.manifest)
        wait("the site", lambda: bool(list(grid.get_node_ids())))
        for _ in range(max(1, options.count // 10)):
            asking.ask()
        figures["seconds"] = [asking.ask() for _ in range(options.count)]
        grid.end_run()
    figures["peak_rss"] = peak_rss()
    print(json.dumps(figures), flush=True)
    sys.stdin.read()  # until the sites have ended
    servers.stop()


if __name__ == "__main__":
    main()
