"""The generated code and the reference page of the wire are what its contract says."""

import re
import subprocess
import sys
from pathlib import Path

from coordinator.grids.link import FRAMES_PER_SECOND
from coordinator.service.requests import MAX_WAITING_PER_CALLER, REQUEST_SECONDS
from coordinator.service.sessions import MAX_STREAMS_PER_SITE
from core.messages import MAX_MESSAGE_BYTES
from core.wire import channel
from core.wire.cloister_pb2 import Frame
from core.wire.frames import MAX_DOCUMENTS, MAX_PENDING, MAX_REASON, MAX_TTL_SECONDS
from core.wire.limits import CHUNK_BYTES, MAX_FRAME_BYTES
from core.wire.transfer import MAX_SWALLOWED_BYTES

ROOT = Path(__file__).parents[2]


def test_the_generated_code_is_the_contract_s(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            "core/wire/cloister.proto",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("cloister_pb2.py", "cloister_pb2.pyi"):
        assert (tmp_path / "core/wire" / name).read_text() == (
            ROOT / "core/wire" / name
        ).read_text()


def test_the_limits_of_the_reference_page_are_the_code_s() -> None:
    page = (ROOT / "docs/reference/wire.md").read_text()
    table = page.split("## Limits")[1].split("##")[0]
    written = dict(re.findall(r"^\| (.+?) \| (\d+) \|$", table, re.MULTILINE))
    limits = {
        "bytes of a frame": MAX_FRAME_BYTES,
        "bytes of a chunk": CHUNK_BYTES,
        "bytes of a document": MAX_MESSAGE_BYTES,
        "documents in a message": MAX_DOCUMENTS,
        "bytes of all documents in a message": CHUNK_BYTES,
        "pending messages in a `Hello`": MAX_PENDING,
        "characters of a reason": MAX_REASON,
        "`ttl_seconds`": int(MAX_TTL_SECONDS),
        "bytes that are read of a message that does not fit": MAX_SWALLOWED_BYTES,
        "bytes of a call's metadata": channel.MAX_METADATA_BYTES,
        "streams of one connection": channel.MAX_STREAMS_PER_CONNECTION,
        "seconds for a TLS handshake": channel.HANDSHAKE_SECONDS,
        "seconds for the request of a call to come": int(REQUEST_SECONDS),
        "calls of one peer or address that wait for their request": MAX_WAITING_PER_CALLER,
        "streams of one site": MAX_STREAMS_PER_SITE,
        "frames a second of one site, chunks apart": FRAMES_PER_SECOND,
        "seconds until a connection without a call is closed": channel.IDLE_SECONDS,
        "seconds between two pings of an idle connection": channel.KEEPALIVE_SECONDS,
        "seconds for the answer to a ping": channel.KEEPALIVE_TIMEOUT_SECONDS,
    }
    assert written == {name: str(value) for name, value in limits.items()}


def test_the_reference_page_names_every_frame_and_field() -> None:
    page = (ROOT / "docs/reference/wire.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:site|coordinator|both) \| (.+) \|$", page, re.M))
    kinds = {field.message_type.name: field.message_type for field in Frame.DESCRIPTOR.fields}
    assert set(rows) == set(kinds)
    for name, kind in kinds.items():
        assert {f.name for f in kind.fields} <= set(re.findall(r"`(\w+)`", rows[name])), name
