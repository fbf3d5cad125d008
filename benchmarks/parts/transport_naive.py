"""The naive way: Flower's records as one protobuf message in one gRPC call, over mutual TLS.

    transport_naive.py server|client echo|take --size BYTES --folder DIR [--port N --count N]

The server makes identities in DIR, prints its port, and one more line after SIGTERM; the client
measures. gRPC's limits are lifted; keys, certificates and the allocator are those of our side.
"""

import argparse
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# First: see its docstring.
from transport_federation import (
    FEDERATION,
    encoded_weights,
    found_federation,
    peak_rss,
    server_certificate,
    site_name,
    weights_digest,
    weights_manifest,
)

import grpc  # isort: skip
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from client.identity_folder import IdentityFolder
from core.array_codec import decode_arrays
from core.digests import arrays_digest
from core.site_config import IdentitySection
from privacy.identities.names import server_tls_name

METHOD = "/naive.Rival/Exchange"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def content_of(size: int) -> RecordDict:
    """The weights as Flower's records."""
    record = ArrayRecord()
    for name, fields in encoded_weights(size).items():
        record[name] = Array(*fields)
    return RecordDict({"arrays": record})


def check(content: RecordDict, size: int) -> None:
    """What arrived is what was sent."""
    arrays = decode_arrays(dict(content["arrays"]), weights_manifest(size))  # type: ignore[arg-type]
    if arrays_digest(arrays) != weights_digest(size):
        raise SystemExit("the arrays that arrived are not those that were sent")


def run_server(mode: str, size: int, folder: Path) -> None:
    """Answers until SIGTERM."""
    members = found_federation(folder, 1)
    (folder / "root.pem").write_text(members.authority.root_pem)
    calls: list[int] = []

    def handle(request: Any, _: Any) -> Any:
        content = recorddict_from_proto(request)
        if not calls:
            check(content, size)
        calls.append(1)
        return recorddict_to_proto(content if mode == "echo" else RecordDict())

    handler = grpc.unary_unary_rpc_method_handler(
        handle, RecordDictProto.FromString, RecordDictProto.SerializeToString
    )
    service, _, method = METHOD.strip("/").partition("/")
    server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    root = members.authority.root_pem.encode("ascii")
    pair = server_certificate(members.authority)
    credentials = grpc.ssl_server_credentials([pair], root, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print(json.dumps({"port": port}), flush=True)
    stopped.wait()
    print(json.dumps({"peak_rss": peak_rss()}), flush=True)


def run_client(mode: str, size: int, folder: Path, port: int, count: int) -> None:
    """Measures ``count`` calls after one that is checked."""
    identity = IdentityFolder(IdentitySection(folder=folder / site_name(0)))
    credentials = grpc.ssl_channel_credentials(
        (folder / "root.pem").read_bytes(),
        identity.tls_key().private_pem(),
        identity.certificate_pem().encode("ascii"),
    )
    name = ("grpc.ssl_target_name_override", server_tls_name(FEDERATION))
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, [*OPTIONS, name])
    exchange = channel.unary_unary(
        METHOD, RecordDictProto.SerializeToString, RecordDictProto.FromString
    )
    content = content_of(size)
    found = []
    for number in range(count + 1):
        started = time.perf_counter()
        answer = recorddict_from_proto(exchange(recorddict_to_proto(content)))
        found.append(time.perf_counter() - started)
        if mode == "echo" and number == 0:
            check(answer, size)
    print(json.dumps({"seconds": found[1:], "peak_rss": peak_rss()}), flush=True)


def main() -> None:
    """Runs one end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("end", choices=("server", "client"))
    parser.add_argument("mode", choices=("echo", "take"))
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    if options.end == "server":
        run_server(options.mode, options.size, options.folder)
    else:
        run_client(options.mode, options.size, options.folder, options.port, options.count)


if __name__ == "__main__":
    main()
