"""Writes down whom a process looks up or connects to, from inside of it."""

import sys
from pathlib import Path
from typing import Any

_EVENTS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.connect")


def spy(log: Path) -> None:
    """From now on, every look-up and connection of this process is a line of ``log``.

    What C code of a library does by itself is not seen: ``foreign_peers`` sees its connections.
    """

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            with log.open("a") as file:
                file.write(f"{event} {arguments[-1] if 'connect' in event else arguments[0]}\n")

    sys.addaudithook(heard)


def foreign_peers(pid: int) -> list[str]:
    """The addresses, other than this machine, that a process has sockets to."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            own.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            remote = fields[2].split(":")[0]
            if fields[9] in own and not _is_this_machine(remote):
                found.append(f"{table} {fields[2]}")
    return found


def _is_this_machine(address: str) -> bool:
    """As /proc/net writes it: each word of the address in the order of this machine's bytes."""
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    raw = b"".join(words)
    if len(raw) == 16 and raw[:12] == bytes(10) + b"\xff\xff":
        raw = raw[12:]
    if len(raw) == 4:
        return raw[0] == 127 or raw == bytes(4)
    return raw in (bytes(16), bytes(15) + b"\x01")
