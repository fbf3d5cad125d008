"""A gRPC server or client in a process of its own: gRPC reads its environment only once.

    python -m tests.support.tls_peer server FOLDER {tls13,default}         prints its port
    python -m tests.support.tls_peer client FOLDER {tls13,default} PORT    prints what came of it

The folder holds `root.pem`, and `server.pem`, `server.key`, `client.pem`, `client.key`.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.wire.channel import (
    CONTROL,
    FEDERATION,
    channel_options,
    quiet_grpc,
    require_tls13,
    server_options,
)

NAME = "coordinator.clinic.cloister.internal"


def main(role: str, folder: Path, mode: str, *port: str) -> None:
    """Runs one of the two."""
    quiet_grpc()
    if mode == "tls13":
        require_tls13()
    {"server": serve, "client": call}[role](folder, *port)


def serve(folder: Path) -> None:
    """Sends back what is sent, until stdin ends."""
    import grpc

    pair = (_read(folder, "server.key"), _read(folder, "server.pem"))
    credentials = grpc.ssl_server_credentials([pair], _read(folder, "root.pem"), True)
    server = grpc.server(ThreadPoolExecutor(1), options=server_options())
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    handlers = grpc.method_handlers_generic_handler(FEDERATION, {CONTROL.split("/")[-1]: echo})
    server.add_generic_rpc_handlers((handlers,))
    sys.stdout.write(f"{server.add_secure_port('127.0.0.1:0', credentials)}\n")
    sys.stdout.flush()
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


def call(folder: Path, port: str) -> None:
    """Makes one call."""
    import grpc

    credentials = grpc.ssl_channel_credentials(
        *(_read(folder, name) for name in ("root.pem", "client.key", "client.pem"))
    )
    address = f"127.0.0.1:{port}"
    with grpc.secure_channel(address, credentials, channel_options(NAME)) as channel:
        try:
            answer = channel.unary_unary(CONTROL)(b"echo", timeout=10).decode()
        except grpc.RpcError as error:
            answer = error.code().name
    sys.stdout.write(f"{answer}\n")


def _read(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
