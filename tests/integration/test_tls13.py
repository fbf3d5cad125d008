"""TLS 1.3 and nothing older, in both directions, whatever kind of key the certificates have."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from core.errors import SessionError
from core.wire.channel import check_refuses_tls12
from privacy.identities.authority import create_authority
from privacy.identities.tls_keys import TlsKey
from tests.support.certificates import CLIENT, SERVER, Forgery, organisation_root
from tests.support.tls_peer import NAME

ROOT = Path(__file__).parents[2]
SITE = "north.site.clinic.cloister.internal"
NAMES = {"server": (NAME, SERVER), "client": (SITE, CLIENT)}
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "GRPC_SSL_CIPHER_SUITES"}


def our_own(folder: Path, now: datetime) -> None:
    authority = create_authority("clinic", now)
    (folder / "root.pem").write_text(authority.root_pem)
    for role in NAMES:
        key = TlsKey.generate()
        purpose = "server" if role == "server" else "client"
        chain = authority.issuing.issue(key, NAMES[role][0], purpose, 1, now)
        (folder / f"{role}.pem").write_text(chain)
        (folder / f"{role}.key").write_bytes(key.private_pem())


def an_organisation_s(folder: Path, now: datetime) -> None:
    root = TlsKey(rsa.generate_private_key(65537, 2048))
    root_pem = organisation_root(root, now)
    (folder / "root.pem").write_text(root_pem)
    for role, (name, usage) in NAMES.items():
        key = TlsKey(rsa.generate_private_key(65537, 2048))
        leaf = Forgery(dns_names=(name,), usages=(usage,), now=now, key=key)
        (folder / f"{role}.pem").write_text(leaf.pem(root, root_pem))
        (folder / f"{role}.key").write_bytes(key.private_pem())


@pytest.fixture(scope="module", params=[our_own, an_organisation_s], ids=["P-256", "RSA"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tls")
    request.param(made, datetime.now(UTC))
    return made


def command(role: str, folder: Path, mode: str, *port: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.tls_peer", role, str(folder), mode, *port]


@contextmanager
def server(folder: Path, mode: str) -> Iterator[int]:
    process = subprocess.Popen(
        command("server", folder, mode),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def call(folder: Path, mode: str, port: int) -> str:
    done = subprocess.run(
        command("client", folder, mode, str(port)),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def handshake(folder: Path, port: int, newest: ssl.TLSVersion) -> str | None:
    """The version that a client with a good certificate agrees on with the server."""
    context = ssl.create_default_context(cafile=str(folder / "root.pem"))
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    context.maximum_version = newest
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=NAME) as secure:
                return secure.version()
        except (ssl.SSLError, ConnectionError):
            return None


class OldServer:
    """Speaks TLS 1.2 and nothing newer; remembers what came of the handshakes."""

    def __init__(self, folder: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.agreed: list[str | None] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    with self._context.wrap_socket(connection, server_side=True) as secure:
                        self.agreed.append(secure.version())
                except OSError:
                    self.agreed.append(None)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def test_a_server_agrees_on_tls13_only(folder: Path) -> None:
    with server(folder, "tls13") as port:
        assert handshake(folder, port, ssl.TLSVersion.TLSv1_2) is None
        assert handshake(folder, port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        check_refuses_tls12("127.0.0.1", port)
        assert call(folder, "tls13", port) == "echo"


def test_without_the_requirement_it_would_not(folder: Path) -> None:
    with server(folder, "default") as port:
        assert handshake(folder, port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises(SessionError, match=f"expected 127.0.0.1:{port} to refuse TLS 1.2, got"):
            check_refuses_tls12("127.0.0.1", port)


@pytest.mark.parametrize(("mode", "agreed"), [("tls13", None), ("default", "TLSv1.2")])
def test_a_client_agrees_on_tls13_only(folder: Path, mode: str, agreed: str | None) -> None:
    old = OldServer(folder)
    try:
        assert call(folder, mode, old.port) == "UNAVAILABLE"
    finally:
        old.close()
    assert set(old.agreed) == {agreed}


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        words = f"expected an answer from 127.0.0.1:{port}, got timed out"
        with pytest.raises(SessionError, match=words):
            check_refuses_tls12("127.0.0.1", port, timeout_seconds=0.1)
    with pytest.raises(SessionError, match=f"expected an answer from 127.0.0.1:{port}, got "):
        check_refuses_tls12("127.0.0.1", port)
