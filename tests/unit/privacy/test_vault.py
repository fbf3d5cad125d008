import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import VaultError
from privacy.vault import KEY_VARIABLE, Vault

KEY = bytes(range(32))
MIB = 1 << 20
HEADER = 8 + 32 + 32
SIZES = (0, 1, 15, 16, 17, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 5)


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def changed(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


def refuses(vault: Vault, sealed: bytes, text: str = "got it changed, cut or lengthened") -> None:
    with pytest.raises(VaultError, match=text):
        vault.open("test", sealed)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens(size: int) -> None:
    data = os.urandom(size)
    sealed = Vault(KEY).seal("test", data)
    assert type(sealed) is bytes
    assert Vault(KEY).open("test", sealed) == data
    assert len(sealed) == HEADER + size + 16 * max(1, -(-size // MIB))


@given(
    st.binary(max_size=4096),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1),
)
def test_any_bytes_and_purpose_open(data: bytes, purpose: str) -> None:
    vault = Vault(KEY)
    assert vault.open(purpose[:256], vault.seal(purpose[:256], data)) == data


def test_views_and_bytearrays_are_taken() -> None:
    vault = Vault(KEY)
    assert (
        vault.open("test", memoryview(bytearray(vault.seal("test", bytearray(b"text"))))) == b"text"
    )
    assert vault.open("test", vault.seal("test", memoryview(b"text")[1:])) == b"ext"


def test_nothing_is_sealed_twice_alike() -> None:
    vault = Vault(KEY)
    first, second = vault.seal("test", b"text"), vault.seal("test", b"text")
    assert first[8:40] != second[8:40]
    assert first[HEADER:] != second[HEADER:]


def test_segments_of_one_message_differ() -> None:
    sealed = Vault(KEY).seal("test", bytes(2 * MIB))
    assert sealed[HEADER : HEADER + MIB] != sealed[HEADER + MIB + 16 : HEADER + 2 * MIB + 16]


def test_the_text_is_not_in_what_is_sealed() -> None:
    data = b"a patient's name" * 100
    assert b"patient" not in Vault(KEY).seal("test", data)


@pytest.mark.parametrize(("key", "purpose"), [(bytes(32), "test"), (KEY, "tesT"), (KEY, "test ")])
def test_another_key_or_purpose_opens_nothing(key: bytes, purpose: str) -> None:
    sealed = Vault(KEY).seal("test", b"text")
    with pytest.raises(
        VaultError, match=r"got another key or purpose\nhint: check the vault's key"
    ):
        Vault(key).open(purpose, sealed)


def test_every_changed_byte_is_noticed() -> None:
    vault = Vault(KEY)
    sealed = vault.seal("test", b"text")
    for index in range(len(sealed)):
        with pytest.raises(VaultError):
            vault.open("test", changed(sealed, index))


def test_every_cut_is_noticed() -> None:
    vault = Vault(KEY)
    sealed = vault.seal("test", b"some text")
    for length in range(len(sealed)):
        with pytest.raises(VaultError):
            vault.open("test", sealed[:length])
    refuses(vault, sealed + b"\0")


def test_segments_cannot_be_left_out_swapped_doubled_or_shortened() -> None:
    vault = Vault(KEY)
    sealed = vault.seal("test", os.urandom(2 * MIB + 5))
    head, size = sealed[:HEADER], MIB + 16
    first, second, last = (
        sealed[HEADER : HEADER + size],
        sealed[HEADER + size : HEADER + 2 * size],
        sealed[HEADER + 2 * size :],
    )
    refuses(vault, head + first + second)  # cut at a segment's end
    refuses(vault, head + first)
    refuses(vault, head + second + first + last)
    refuses(vault, head + first + first + last)
    refuses(vault, head + first + last)
    refuses(vault, head + first + second + last + last)
    refuses(vault, head + first + second + last[:-1])
    refuses(vault, head + first + second + last[:16])
    refuses(vault, head + first + second + last[:15])
    refuses(vault, head + last)


def test_the_last_segment_may_not_be_empty_after_others() -> None:
    vault = Vault(KEY)
    sealed = vault.seal("test", bytes(MIB))
    refuses(vault, sealed + sealed[-16:])


def test_a_segment_of_another_message_does_not_fit() -> None:
    vault = Vault(KEY)
    one, two = vault.seal("test", b"text"), vault.seal("test", b"text")
    refuses(vault, one[:HEADER] + two[HEADER:])


@pytest.mark.parametrize("data", [b"", b"junk", b"CLVAULT1", bytes(200), b"CLVAULT2" + bytes(200)])
def test_what_was_not_sealed_is_named(data: bytes) -> None:
    refuses(Vault(KEY), data, f"expected sealed data for 'test', got {len(data)} bytes that")


@given(st.binary(max_size=300))
def test_junk_raises_nothing_else(data: bytes) -> None:
    for text in (data, b"CLVAULT1" + data):
        with pytest.raises(VaultError):
            Vault(KEY).open("test", text)


@pytest.mark.parametrize("purpose", ["", "a\n", "\u00e9", "a" * 257])
def test_a_purpose_is_short_and_printable(purpose: str) -> None:
    with pytest.raises(VaultError, match="expected a purpose of 1 to 256 printable characters"):
        Vault(KEY).seal(purpose, b"")


def test_what_version_1_sealed_still_opens() -> None:
    """The layout, computed here a second time from the primitives."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    salt, data = bytes(range(100, 132)), bytes(MIB) + b"end"
    derived = HKDF(SHA256(), 64, salt, b"cloister/vault/1\0test").derive(KEY)
    cipher = AESGCM(derived[:32])
    first = cipher.encrypt(bytes(12), data[:MIB], None)
    last = cipher.encrypt((1).to_bytes(11, "big") + b"\1", data[MIB:], None)
    sealed = b"CLVAULT1" + salt + derived[32:] + first + last
    assert Vault(KEY).open("test", sealed) == data


def test_the_key_is_in_no_repr_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(Vault(KEY)) == "Vault(key=***)"
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex() + "0")
    with pytest.raises(VaultError) as caught:
        Vault.load(None)
    assert KEY.hex()[:8] not in str(caught.value)


def test_a_key_file_gives_the_same_vault(tmp_path: Path) -> None:
    made = Vault.create(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert Vault.load(tmp_path / "key").open("test", made.seal("test", b"text")) == b"text"


def test_two_key_files_differ(tmp_path: Path) -> None:
    Vault.create(tmp_path / "a")
    Vault.create(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    Vault.create(tmp_path / "key")
    with pytest.raises(VaultError, match=r"expected to write a new file .*key, got one that is"):
        Vault.create(tmp_path / "key")


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Vault.create(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(VaultError, match=r"readable by its owner only, got mode 0640\nhint: chmod"):
        Vault.load(tmp_path / "key")


def test_the_environment_comes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Vault.create(tmp_path / "key")
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    sealed = Vault(KEY).seal("test", b"text")
    assert Vault.load(tmp_path / "key").open("test", sealed) == b"text"
    assert Vault.load(None).open("test", sealed) == b"text"


def test_no_key_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(VaultError, match="expected a vault key in CLOISTER_VAULT_KEY or in a file"):
        Vault.load(None)
    with pytest.raises(VaultError, match=r"expected a key file at .*, got: No such file"):
        Vault.load(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "00", KEY.hex().upper(), KEY.hex() + "\n\n", " " + KEY.hex()])
def test_a_key_that_is_none_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(text)
    with pytest.raises(VaultError, match=r"expected 64 hexadecimal digits in .*key, got"):
        Vault.load(tmp_path / "key")
    monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(VaultError, match="expected 64 hexadecimal digits in CLOISTER_VAULT_KEY"):
        Vault.load(None)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(VaultError, match="expected a vault key of 32 bytes, got 16"):
        Vault(bytes(16))
