"""Whole attempts with fixed secrets, as another implementation would have to play them.

The format is described in ``tests/golden/secure_aggregation/README.md``.
"""

import hashlib
from dataclasses import asdict
from typing import Any

from core.digests import arrays_digest
from core.messages import wire_form
from tests.support.aggregation import STAGES, Play, fixed_random, node_key

# File name: how many sites, and what which of them first fails to send.
ATTEMPTS: dict[str, tuple[int, dict[str, str]]] = {
    "attempt-3-sites.json": (3, {}),
    "attempt-5-sites-one-lost.json": (5, {"dog": "mask"}),
}


class Recorder:
    """Random bytes of one site, fixed by its name, and a note of each draw."""

    def __init__(self, name: str) -> None:
        self._random = fixed_random(f"golden/{name}")
        self.drawn: list[str] = []

    def __call__(self, count: int) -> bytes:
        taken = self._random(count)
        self.drawn.append(taken.hex())
        return taken


def golden_attempt(file: str) -> dict[str, Any]:
    """What stands in one of the files."""
    size, lost = ATTEMPTS[file]
    play, messages = Play(size), list[dict[str, Any]]()
    drawn = {name: Recorder(name) for name in play.names}
    play.sites = {name: play.site(name, random=drawn[name]) for name in play.names}

    def there(stage: str) -> list[str]:
        gone = STAGES[: STAGES.index(stage) + 1]
        return [name for name in play.names if lost.get(name) not in gone]

    def up(stage: str) -> None:
        messages.extend(_entry(name, "coordinator", play.sent[name]) for name in there(stage))

    def down(stage: str, told: dict[str, Any]) -> None:
        messages.extend(_entry("coordinator", name, told[name]) for name in there(stage))

    adverts = play.adverts(there("advert"))
    up("advert")
    down("share", dict.fromkeys(play.names, adverts))
    deliveries = play.deliveries(adverts, there("share"))
    up("share")
    down("mask", deliveries)
    survivors = play.survivors(deliveries, there("mask"))
    up("mask")
    down("confirm", dict.fromkeys(play.names, survivors))
    confirmations = play.confirmations(survivors, there("confirm"))
    up("confirm")
    down("reveal", dict.fromkeys(play.names, confirmations))
    total = play.opened(confirmations, there("reveal"))
    up("reveal")
    transcript = play.coordinator.transcript(arrays_digest({"sum": total}))
    messages.append(_entry("coordinator", "everyone", transcript))
    return {
        "context": {"fields": asdict(play.context), "digest": play.context.hexdigest()},
        "roster": wire_form(play.roster),
        "sites": {name: _secrets(play, name, drawn[name].drawn) for name in play.names},
        "messages": messages,
        "sum": total.tolist(),
    }


def _entry(sender: str, receiver: str, message: Any) -> dict[str, Any]:
    kind = type(message).__name__
    return {"from": sender, "to": receiver, "kind": kind, "message": wire_form(message)}


def _secrets(play: Play, name: str, drawn: list[str]) -> dict[str, Any]:
    values = play.masked_values.get(name)
    return {
        "node-key": hashlib.sha256(name.encode()).hexdigest(),
        "node-public-key": node_key(name).public_hex,
        "random": drawn,
        "values": play.inputs[name].view("<i4").tolist(),
        "masked": None if values is None else values.tolist(),
    }
