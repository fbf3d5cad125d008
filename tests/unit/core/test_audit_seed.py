import hashlib
import stat
from pathlib import Path

import numpy as np
import pytest

from core.audit_seed import AuditSeed
from core.errors import AuditError


def test_a_folder_keeps_its_seed(tmp_path: Path) -> None:
    first = AuditSeed.of_folder(tmp_path / "run")

    assert AuditSeed.of_folder(tmp_path / "run").reveal() == first.reveal()
    assert AuditSeed.of_folder(tmp_path / "other").reveal() != first.reveal()
    assert stat.S_IMODE((tmp_path / "run" / "audit.seed").stat().st_mode) == 0o600


def test_the_commitment_is_to_the_seed_and_the_repr_is_silent(tmp_path: Path) -> None:
    seed = AuditSeed(bytes(range(32)))

    expected = hashlib.sha256(b"cloister/audit-seed/1\0" + bytes(range(32))).hexdigest()
    assert seed.commitment == expected
    assert seed.reveal() not in repr(seed)


def test_purposes_have_streams_of_their_own() -> None:
    seed, again = AuditSeed(bytes(32)), AuditSeed(bytes(32))

    drawn = seed.generator("a").integers(0, 2**63, 8)
    assert np.array_equal(drawn, again.generator("a").integers(0, 2**63, 8))
    assert not np.array_equal(drawn, seed.generator("b").integers(0, 2**63, 8))
    assert seed.key("a") != AuditSeed(bytes(31) + b"\1").key("a")


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "AB" * 32, "ab" * 32 + "\n"])
def test_something_else_in_its_place_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.seed").write_text(text)

    with pytest.raises(AuditError, match="expected the audit's seed in"):
        AuditSeed.of_folder(tmp_path)


def test_the_seed_of_a_run_that_has_begun_is_never_drawn_anew(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="No such file"):
        AuditSeed.existing(tmp_path)
    assert list(tmp_path.iterdir()) == []

    drawn = AuditSeed.of_folder(tmp_path)
    assert AuditSeed.existing(tmp_path).reveal() == drawn.reveal()
