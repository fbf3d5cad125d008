"""What two versions of the protocol's implementation must agree on, frozen under its name."""

from dataclasses import asdict
from pathlib import Path

import pytest

from core.digests import canonical_json
from tests.golden.regenerate import golden_files
from tests.support import golden_secagg, naive_secagg
from tests.support.attempts import context

NAMES = {"context.json", "derived.json"}
FILES = {path: content for path, content in golden_files().items() if path.name in NAMES}


@pytest.mark.parametrize(("path", "content"), FILES.items(), ids=lambda v: getattr(v, "name", ""))
def test_what_was_frozen_still_comes_out(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content


def test_files_are_frozen_and_none_is_left_over() -> None:
    assert {path.name for path in FILES} == NAMES
    folder = next(iter(FILES)).parent
    frozen = {path for path in golden_files() if path.parent == folder}
    assert set(folder.iterdir()) == frozen | {folder / "README.md"}


def test_the_naive_implementation_gives_the_frozen_context() -> None:
    fields = asdict(context())
    digest = naive_secagg.context_digest(fields).hex()
    frozen = next(path.read_bytes() for path in FILES if path.name == "context.json")
    assert frozen == canonical_json({"fields": fields, "digest": digest})


def test_the_naive_implementation_gives_what_was_frozen() -> None:
    frozen = next(path.read_bytes() for path in FILES if path.name == "derived.json")
    assert frozen == canonical_json(golden_secagg.derived_naively())
