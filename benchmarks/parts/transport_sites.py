"""The sites' end of the transport benchmark: the sessions and the worker of a deployed client.

    transport_sites.py MODE --sites N --size BYTES --folder DIR

Runs until SIGTERM and then prints one JSON line. What a site answers to an order, MODE says:
`echo` the arrays that came, in records of its own; `take` a refusal, without arrays; `give` the
weights that it holds. The arrays of the first order are hashed and compared with its digest.
"""

import argparse
import json
import signal
import threading
from pathlib import Path

# First: see its docstring.
from transport_federation import (
    encoded_weights,
    peak_rss,
    reply_to,
    site_name,
    weights_manifest,
)

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict  # isort: skip

from client.calls import session_channel
from client.content import read_arrays, read_order
from client.identity_folder import IdentityFolder
from client.outbox import Outbox
from client.service import Arrived, SiteService
from client.session_io import Stream
from client.worker import App
from core.array_codec import Encoded, Manifest, encode_arrays
from core.digests import arrays_digest
from core.messages import Refusal, TrainTask, encode
from core.site_config import IdentitySection


def build_app(mode: str, manifest: Manifest, held: dict[str, Encoded]) -> App:
    """A client app that trains nothing."""

    def answer(message: Message, context: Context) -> Message:
        order = read_order(message.content)
        if mode == "give":
            content = travelling(order, held)
        else:
            arrays = read_arrays(message.content, manifest)
            if order.server_round == 1 and arrays_digest(arrays) != order.arrays_digest:
                raise ValueError("the arrays that arrived are not those that were sent")
            content = travelling(order, encode_arrays(arrays)) if mode == "echo" else no(order)
        return Message(content, reply_to=message)

    return answer


def travelling(order: TrainTask, arrays: dict[str, Encoded]) -> RecordDict:
    """A reply with arrays; its digest is the order's, for the values are the same."""
    record = ArrayRecord()
    for name, fields in arrays.items():
        record[name] = Array(*fields)
    reply = encode(reply_to(order, order.arrays_digest))
    return RecordDict({"reply": ConfigRecord({"reply": reply}), "arrays": record})


def no(order: TrainTask) -> RecordDict:
    """A refusal: the shortest answer."""
    refusal = Refusal(
        run_id=order.run_id,
        server_round=order.server_round,
        site=order.site,
        code="benchmark",
        message="took the weights",
    )
    return RecordDict({"refusal": ConfigRecord({"refusal": encode(refusal)})})


def open_service(folder: Path, app: App, manifest: Manifest) -> SiteService:
    """The service of one site, as `cloister client start` builds it."""
    identity = IdentityFolder(IdentitySection(folder=folder))
    membership = identity.require_membership()

    def dial(arrived: Arrived) -> Stream:
        channel = session_channel(membership, identity.tls_key(), identity.certificate_pem())
        return Stream(channel, arrived)

    return SiteService(
        app=app,
        manifest=manifest,
        identity=identity,
        membership=membership,
        outbox=Outbox(identity.outbox, identity.vault()),
        dial=dial,
        stop_seconds=0.0,
        threads=1,
    )


def main() -> None:
    """Runs the sites."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("echo", "take", "give", "idle"))
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    manifest = {} if options.mode == "idle" else weights_manifest(options.size)
    held = encoded_weights(options.size) if options.mode == "give" else {}
    app = build_app(options.mode, manifest, held)
    names = map(site_name, range(options.sites))
    services = [open_service(options.folder / name, app, manifest) for name in names]
    signal.signal(signal.SIGTERM, lambda *_: [service.stop() for service in services])
    threads = [threading.Thread(target=service.run) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"peak_rss": peak_rss()}), flush=True)


if __name__ == "__main__":
    main()
